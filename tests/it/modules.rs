//! The modules at the top of each crate depend on each other in one direction only.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module and what it makes, or a layer and its service: each names the other.
const PAIRS: &[(&str, &str)] = &[("handle", "builder"), ("layer", "service")];

/// The modules that each module names as `crate::module`, in code that is not for tests.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_have_no_cycles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut crates = vec![root.to_path_buf()];
    crates.extend(
        fs::read_dir(root.join("crates"))
            .unwrap()
            .map(|e| e.unwrap().path()),
    );
    for folder in crates {
        let graph = graph(&folder.join("src"));
        let edges: usize = graph.values().map(BTreeSet::len).sum();
        assert!(
            graph.len() < 3 || edges > 0,
            "nothing was read in {}",
            folder.display()
        );
        assert_eq!(cycle(&graph), None, "modules of {}", folder.display());
    }
}

#[test]
fn a_cycle_is_found() {
    let module = |name: &str, uses: &[&str]| {
        (
            name.to_owned(),
            uses.iter().map(|&of| of.to_owned()).collect(),
        )
    };
    let mut graph = Graph::from([
        module("a", &["b", "c"]),
        module("b", &["c"]),
        module("c", &[]),
    ]);
    assert_eq!(cycle(&graph), None);
    graph.get_mut("c").unwrap().insert("a".to_owned());
    assert_eq!(cycle(&graph).unwrap(), ["a", "b", "c"]);
    let source = "use crate::{scope, guard::Guard};\nfn f() { crate::verify::g() }\n\
                  // crate::comment\n#[cfg(test)]\nmod tests { use crate::test_only; }";
    let found: Vec<_> = modules_in(source).into_iter().collect();
    assert_eq!(found, ["guard", "scope", "verify"]);
}

fn graph(source: &Path) -> Graph {
    let mut graph = Graph::new();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let uses = graph.entry(module.clone()).or_default();
        for file in rust_files(&path) {
            uses.extend(modules_in(&fs::read_to_string(&file).unwrap()));
        }
        uses.remove(&module);
        for (_, other) in PAIRS.iter().filter(|(of, _)| *of == module) {
            uses.remove(*other);
        }
    }
    // What is in no file of its own is an item that the crate exports, or a module that is inline.
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    for uses in graph.values_mut() {
        uses.retain(|module| modules.contains(module));
    }
    graph
}

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries
            .flat_map(|entry| rust_files(&entry.unwrap().path()))
            .collect();
    }
    let is_code = path.extension().is_some_and(|of| of == "rs")
        && !["tests.rs", "interleavings.rs"].contains(&path.file_name().unwrap().to_str().unwrap());
    is_code.then(|| path.to_path_buf()).into_iter().collect()
}

/// Returns the names that follow `crate::`, or stand at the top of its braces.
fn modules_in(source: &str) -> BTreeSet<String> {
    let code = source.split("\nmod tests {").next().unwrap_or_default();
    let code: String = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n");
    let mut modules = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => modules.extend(identifier(after)),
            Some(list) => {
                let mut depth = 0;
                for item in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        modules.extend(identifier(item));
                    }
                    match item.chars().next_back() {
                        Some('{') => depth += 1,
                        Some('}') if depth == 0 => break,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    modules
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text
        .trim_start()
        .chars()
        .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

/// Returns the modules of a cycle, if there is one: what remains after all modules are removed that use no others.
fn cycle(graph: &Graph) -> Option<Vec<String>> {
    let mut rest = graph.clone();
    loop {
        let modules: BTreeSet<String> = rest.keys().cloned().collect();
        let before = rest.len();
        rest.retain(|_, uses| uses.iter().any(|module| modules.contains(module)));
        if rest.len() == before {
            break;
        }
    }
    (!rest.is_empty()).then(|| rest.into_keys().collect())
}

//! Replays the corpus of the fuzz targets, each input through the function that its target calls.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot do without.

use std::fs;
use std::path::Path;

use tower_orgkey::fuzzing;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        // Shown by a test that fails.
        println!("{}", path.display());
        run(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(
        inputs >= 12,
        "the corpus of `{target}` is gone: {inputs} inputs"
    );
}

#[test]
fn fault_44_the_corpus_of_credentials_holds() {
    replay("credential", fuzzing::credential);
}

#[test]
fn fault_23_the_corpus_of_verify_replies_holds() {
    replay("verify_reply", fuzzing::verify_reply);
}

#[test]
fn fault_19_the_corpus_of_token_replies_holds() {
    replay("token_reply", fuzzing::token_reply);
}

#[test]
fn fault_09_the_corpus_of_waits_holds() {
    replay("wait", fuzzing::wait);
}

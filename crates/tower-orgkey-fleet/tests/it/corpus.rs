//! Replays the corpus of the fuzz targets, each input with the function that its target calls.

use std::fs;
use std::path::Path;

use tower_orgkey_fleet::fuzzing;

fn replay(target: &str, run: impl Fn(&str, &[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        // Printed if the test fails.
        println!("{}", path.display());
        let name = path.file_name().unwrap().to_str().unwrap();
        run(name, &fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(
        inputs >= 12,
        "the corpus of `{target}` is gone: {inputs} inputs"
    );
}

#[test]
fn fault_105_corpus_of_sealed_values_stays_sealed() {
    replay("fleet_open", |_, input| fuzzing::open(input));
}

#[test]
fn fault_105_corpus_of_encodings_passes() {
    let is_valid = |name: &str| {
        let valid = ["acknowledgement", "record", "result", "unblock"];
        valid.contains(&name)
            || ["block_of_", "invalidation_of_"]
                .iter()
                .any(|it| name.starts_with(it))
    };
    replay("fleet_decode", |name, input| {
        let is_decoded = fuzzing::decode(input);
        assert!(is_decoded || !is_valid(name));
    });
}

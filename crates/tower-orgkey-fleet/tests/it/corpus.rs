//! Replays the corpus of the fuzz targets, each input with the function that its target calls.

use std::fs;
use std::path::Path;

use tower_orgkey_fleet::fuzzing;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        // Printed if the test fails.
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
fn fault_105_corpus_of_sealed_values_stays_sealed() {
    replay("fleet_open", fuzzing::open);
}

#[test]
fn fault_105_corpus_of_encodings_passes() {
    replay("fleet_decode", fuzzing::decode);
}

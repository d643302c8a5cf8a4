//! Replays the corpus of the fuzz targets, each input with the function that its target calls.

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
fn fault_44_corpus_of_credentials_passes() {
    replay("credential", fuzzing::credential);
}

#[test]
fn fault_23_corpus_of_verify_replies_passes() {
    replay("verify_reply", fuzzing::verify_reply);
}

#[test]
fn fault_19_corpus_of_token_replies_passes() {
    replay("token_reply", fuzzing::token_reply);
}

#[test]
fn fault_09_corpus_of_waits_passes() {
    replay("wait", fuzzing::wait);
}

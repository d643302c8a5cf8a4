#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tower_orgkey::fuzzing::token_reply(input));

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tower_orgkey_fleet::fuzzing::decode(input);
});

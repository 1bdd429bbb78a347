#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_wire::fuzzing::sas_token(data));

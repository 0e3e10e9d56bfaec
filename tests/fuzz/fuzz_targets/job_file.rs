#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mezcal_tests::fuzz::job_file(data));

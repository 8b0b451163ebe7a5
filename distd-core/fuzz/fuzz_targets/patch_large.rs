#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| distd_core_fuzz::bodies::codecs::patch_large(data));

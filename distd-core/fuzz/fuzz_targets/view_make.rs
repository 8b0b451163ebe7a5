#![no_main]

// `preflate-rs` panics on some damaged input, and its caller catches the panic. Only a panic that
// leaves the body is a finding.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |data: &[u8]| distd_core_fuzz::bodies::views::make(data));

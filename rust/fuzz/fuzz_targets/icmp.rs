#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flowlb_fuzz::icmp(data));

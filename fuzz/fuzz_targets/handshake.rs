//! What anybody may send to the port: the head of a request, its query, and what the kernel answers about its sender.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| plaintapd::server::fuzz(data));

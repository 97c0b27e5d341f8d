//! Lines of /proc/PID/maps, in which a process names its files as it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = plaintapd::discover::maps::parse(data);
});

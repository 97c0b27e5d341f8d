//! Files that processes have mapped, whoever made them.
#![no_main]

use std::{fs::File, io::Write, os::fd::AsRawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use plaintapd::discover::{
    Options,
    find::{Budget, Part, find},
    named,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(memory) = memfd_create(c"fuzz", MFdFlags::empty()) else { return };
    let mut file = File::from(memory);
    if file.write_all(data).is_ok() {
        let whole = Part { offset: 0, length: data.len() as u64 };
        let _ = find(&file, whole, &Budget::default(), &Options::default());
        // As an APK too.
        let _ = named(&[format!("/proc/self/fd/{}", file.as_raw_fd()).into()], &Options::default());
    }
});

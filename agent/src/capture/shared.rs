//! Memory of an eBPF array, shared with the kernel.
//!
//! Mapped, because on 5.10 a process without capabilities is refused every bpf call, reading a map included.

use std::{
    ffi::c_void,
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An mmapable array of `u64`s, to read.
#[derive(Debug)]
pub struct Shared {
    memory: NonNull<c_void>,
    words: usize,
}

impl Shared {
    /// Maps the first `words` u64s of `map`.
    pub fn new(map: impl AsFd, words: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(words * size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping, which nothing else points into; the kernel refuses a length that the map has not.
        #[expect(unsafe_code, reason = "mmap")]
        let memory = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { memory, words })
    }

    /// The word at `index`, as it is now; 0 beyond the end.
    pub fn get(&self, index: usize) -> u64 {
        if index >= self.words {
            return 0;
        }
        // SAFETY: the mapping is page-aligned, holds `words` u64s and lives as long as self; the kernel writes words.
        #[expect(unsafe_code, reason = "shared memory")]
        unsafe { self.memory.cast::<AtomicU64>().add(index).as_ref() }.load(Ordering::Relaxed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that new() made, and that nobody else unmaps.
        #[expect(unsafe_code, reason = "munmap")]
        let _ = unsafe { munmap(self.memory, self.words * size_of::<u64>()) };
    }
}

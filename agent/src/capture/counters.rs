//! What the kernel side counted, read from memory that it shares.
//!
//! Mapped, because on 5.10 a process without capabilities is refused every bpf call, reading a map included.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use plaintap_abi::Counter;

/// The kernel's counters, as they stand at each look.
#[derive(Debug)]
pub struct Counters {
    memory: NonNull<std::ffi::c_void>,
}

const LENGTH: NonZeroUsize = match NonZeroUsize::new(Counter::COUNT * size_of::<u64>()) {
    Some(length) => length,
    None => unreachable!(),
};

/// What was lost between the traced processes and the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records, or calls that came to none.
    pub events: u64,
    /// Bytes of payload, where their number is known.
    pub bytes: u64,
}

impl Counters {
    /// Maps the counter array `map`.
    pub fn new(map: impl AsFd) -> io::Result<Self> {
        // SAFETY: a fresh mapping of an mmapable array that holds LENGTH bytes; nothing else points into it.
        #[expect(unsafe_code, reason = "mmap")]
        let memory = unsafe { mmap(None, LENGTH, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { memory })
    }

    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        // SAFETY: the mapping is page-aligned, holds COUNT u64s and lives as long as self; the kernel adds atomically.
        #[expect(unsafe_code, reason = "shared memory")]
        unsafe { self.memory.cast::<AtomicU64>().add(counter as usize).as_ref() }.load(Ordering::Relaxed)
    }

    /// All losses so far.
    pub fn losses(&self) -> Losses {
        let sum = |counters: &[Counter]| counters.iter().map(|counter| self.get(*counter)).sum();
        Losses {
            // Not TooDeepCalls: each comes back as an unmatched return.
            events: sum(&[
                Counter::RingFullRecords,
                Counter::UnreadableRecords,
                Counter::MapFullCalls,
                Counter::UnmatchedReturns,
            ]),
            bytes: sum(&[Counter::RingFullBytes, Counter::UnreadableBytes, Counter::OversizeBytes]),
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping that new() made, and that nobody else unmaps.
        #[expect(unsafe_code, reason = "munmap")]
        let _ = unsafe { munmap(self.memory, LENGTH.get()) };
    }
}

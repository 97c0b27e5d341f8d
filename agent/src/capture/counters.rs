//! What the kernel side counted.

use std::{io, os::fd::AsFd};

use plaintap_abi::Counter;

use super::shared::Shared;

/// The kernel's counters, as they stand at each look.
#[derive(Debug)]
pub struct Counters(Shared);

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
        Shared::new(map, Counter::COUNT).map(Self)
    }

    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize)
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
                Counter::UnreadableLengths,
            ]),
            bytes: sum(&[Counter::RingFullBytes, Counter::UnreadableBytes, Counter::OversizeBytes]),
        }
    }
}

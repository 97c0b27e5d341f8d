//! Losses that no event tells of, as they are the last of their connection: read from memory that the kernel side shares.

use std::{io, os::fd::AsFd};

use plaintap_abi::{TAILS, Tail, tail_place};

use super::shared::Shared;

/// Losses told at a time, so that their lines never crowd out events.
const AT_A_TIME: usize = 32;

/// A loss with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The connection.
    pub connection_id: u64,
    /// Whether it was written, else read.
    pub written: bool,
    /// The bytes that are missing.
    pub bytes: u64,
}

/// The kernel's table of tails, and which of them are settled.
#[derive(Debug)]
pub struct Tails {
    shared: Shared,
    /// The `end` of each place at the last look.
    seen: Vec<u64>,
    /// The `end` of each place that is settled: told, or made good by an event.
    settled: Vec<u64>,
}

impl Tails {
    /// Maps the table `map`.
    pub fn new(map: impl AsFd) -> io::Result<Self> {
        let places = TAILS as usize;
        let shared = Shared::new(map, 2 * places)?;
        Ok(Self { shared, seen: vec![0; places], settled: vec![0; places] })
    }

    /// The losses that stayed the last of their connection since the look before this one, each told once, and whether
    /// others need another look. `next` tells the offset that a connection's events have come to, read or written.
    pub fn look(&mut self, next: impl Fn(u64, bool) -> u64) -> (Vec<Loss>, bool) {
        let mut losses = Vec::new();
        let mut unsettled = false;
        for place in 0..TAILS as usize {
            let tail = Tail { check: self.shared.get(2 * place), end: self.shared.get(2 * place + 1) };
            if tail.end == self.settled[place] {
                continue;
            }
            let (connection_id, written, end) = (tail.check ^ tail.end, tail.end & 1 == 1, tail.end >> 1);
            let is_whole = tail_place(connection_id, written) as usize == place;
            let missing = end.saturating_sub(next(connection_id, written));
            if !is_whole || self.seen[place] != tail.end {
                // It is being written, or new: an event may yet come.
                self.seen[place] = tail.end;
                unsettled = true;
                continue;
            }
            if missing > 0 && losses.len() == AT_A_TIME {
                unsettled = true;
                continue;
            }
            self.settled[place] = tail.end;
            if missing > 0 {
                losses.push(Loss { connection_id, written, bytes: missing });
            }
        }
        (losses, unsettled)
    }
}

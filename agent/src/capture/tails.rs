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
            if self.seen[place] != tail.end {
                // It is new, or being written: an event may yet come.
                self.seen[place] = tail.end;
                unsettled = true;
                continue;
            }
            // Two threads wrote it at once, and neither's word can be told. The totals have both.
            let missing = if is_whole { missing } else { 0 };
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

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;

    fn table() -> (File, Tails) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(TAILS * size_of::<Tail>() as u64).unwrap();
        let tails = Tails::new(&file).unwrap();
        (file, tails)
    }

    /// As the kernel side leaves it.
    fn leave(file: &File, connection_id: u64, written: bool, end: u64) {
        let end = end << 1 | u64::from(written);
        let tail = Tail { check: connection_id ^ end, end };
        let place = u64::from(tail_place(connection_id, written)) * size_of::<Tail>() as u64;
        file.write_all_at(bytemuck::bytes_of(&tail), place).unwrap();
    }

    #[test]
    fn a_loss_that_stays_the_last_is_told_once() {
        let (file, mut tails) = table();
        assert_eq!(tails.look(|_, _| 0), (vec![], false));
        leave(&file, 7, true, 500);
        assert_eq!(tails.look(|_, _| 100), (vec![], true));
        let loss = Loss { connection_id: 7, written: true, bytes: 400 };
        assert_eq!(
            tails.look(|id, written| if (id, written) == (7, true) { 100 } else { 0 }),
            (vec![loss], false)
        );
        assert_eq!(tails.look(|_, _| 100), (vec![], false));
    }

    #[test]
    fn a_loss_that_an_event_told_of_is_not_told_again() {
        let (file, mut tails) = table();
        leave(&file, 7, false, 500);
        tails.look(|_, _| 100);
        assert_eq!(tails.look(|_, _| 600), (vec![], false));
    }

    #[test]
    fn what_two_threads_wrote_at_once_is_not_believed_and_not_waited_for() {
        let (file, mut tails) = table();
        leave(&file, 7, true, 500);
        let place = u64::from(tail_place(7, true)) * size_of::<Tail>() as u64;
        file.write_all_at(&[0xff; 8], place).unwrap();
        tails.look(|_, _| 0);
        assert_eq!(tails.look(|_, _| 0), (vec![], false));
    }

    #[test]
    fn many_losses_are_told_some_at_a_time() {
        let (file, mut tails) = table();
        (1..=100).for_each(|id| leave(&file, id << 12, true, 10));
        tails.look(|_, _| 0);
        let mut told = 0;
        loop {
            let (losses, unsettled) = tails.look(|_, _| 0);
            assert!(losses.len() <= AT_A_TIME);
            told += losses.len();
            if !unsettled {
                break;
            }
        }
        // Those that share a place are told as one.
        assert!((90..=100).contains(&told), "{told}");
    }
}

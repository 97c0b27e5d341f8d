//! Losses that no event tells of, as they are the last of their connection: read from memory that the kernel side shares.

use std::{io, os::fd::AsFd};

use plaintap_abi::{TAIL_WAYS, TAILS, Tail, tail_place};

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
    /// Each place as it was at the last look.
    seen: Vec<Tail>,
    /// The `end` of each place that is settled: told, or made good by an event.
    settled: Vec<u64>,
}

impl Tails {
    /// Maps the table `map`.
    pub fn new(map: impl AsFd) -> io::Result<Self> {
        let places = TAILS as usize;
        let shared = Shared::new(map, 2 * places)?;
        Ok(Self { shared, seen: vec![Tail::default(); places], settled: vec![0; places] })
    }

    /// The losses that stayed the last of their connection since the look before this one, each told once, and whether
    /// others need another look. `next` tells the bytes that a connection's events have come to, read or written.
    pub fn look(&mut self, next: impl Fn(u64, bool) -> u64) -> (Vec<Loss>, bool) {
        let mut losses = Vec::new();
        let mut unsettled = false;
        for place in 0..TAILS as usize {
            let tail = Tail { check: self.shared.get(2 * place), end: self.shared.get(2 * place + 1) };
            let seen = self.seen[place];
            let is_settled = seen.end == self.settled[place];
            if tail == seen && is_settled {
                continue;
            }
            // What was seen a look ago and still is missing: its connection went quiet, or gave up the place to another.
            let is_last = tail == seen || seen.connection() != tail.connection();
            if is_last && !is_settled {
                if losses.len() == AT_A_TIME {
                    unsettled = true;
                    continue;
                }
                self.settled[place] = seen.end;
                losses.extend(lost(seen, place, &next));
            }
            if tail != seen {
                // It is new, or being written: an event may yet come.
                self.seen[place] = tail;
                unsettled = true;
            }
        }
        (losses, unsettled)
    }
}

/// What is missing at the end of the connection that `tail` is of.
fn lost(tail: Tail, place: usize, next: impl Fn(u64, bool) -> u64) -> Option<Loss> {
    let (connection_id, written) = tail.connection();
    // Two threads wrote it at once, and neither's word can be told. The totals have both.
    let is_whole = place & !(TAIL_WAYS as usize - 1) == tail_place(connection_id, written) as usize;
    let bytes = (tail.end >> 1).saturating_sub(next(connection_id, written));
    (is_whole && bytes > 0).then_some(Loss { connection_id, written, bytes })
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
        let mut place = u64::from(tail_place(connection_id, written)) * size_of::<Tail>() as u64;
        let mut there = [0; 16];
        loop {
            file.read_exact_at(&mut there, place).unwrap();
            let there: Tail = bytemuck::cast(there);
            if there.end == 0 || there.connection() == tail.connection() {
                break;
            }
            place += size_of::<Tail>() as u64;
        }
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
    fn a_loss_that_another_took_the_place_of_is_told_if_it_was_seen() {
        let (file, mut tails) = table();
        let place = u64::from(tail_place(7, true)) * size_of::<Tail>() as u64;
        let other = (8..).map(|id| id << 12).find(|id| tail_place(*id, true) == tail_place(7, true)).unwrap();
        leave(&file, 7, true, 500);
        assert_eq!(tails.look(|_, _| 100), (vec![], true));
        file.write_all_at(bytemuck::bytes_of(&Tail::default()), place).unwrap();
        leave(&file, other, true, 300);
        let loss = |connection_id, bytes| Loss { connection_id, written: true, bytes };
        assert_eq!(tails.look(|_, _| 100), (vec![loss(7, 400)], true));
        assert_eq!(tails.look(|_, _| 100), (vec![loss(other, 200)], false));
        assert_eq!(tails.look(|_, _| 100), (vec![], false));
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
        assert_eq!(told, 100);
    }
}

//! The logbuff: the run's log lines that late clients still see, the first ones pinned, then the newest.
//!
//! The first lines say version, targets and probes; they stay whatever comes later. Bounded in lines, and in bytes since
//! a line is (`log::MAX_LINE`). The original keeps 128 lines. Source: shared/protocol.md.

use bytes::Bytes;
use heapless::{Deque, Vec};

const PINNED: usize = 32;
const NEWEST: usize = 96;

#[derive(Clone, Debug)]
struct Line {
    seq: u64,
    message: Bytes,
}

/// Kept log lines, encoded.
#[derive(Debug, Default)]
pub struct Logbuff {
    pinned: Vec<Line, PINNED>,
    newest: Deque<Line, NEWEST>,
}

impl Logbuff {
    /// Keeps the journal's message `seq`, a log line.
    pub fn append(&mut self, seq: u64, message: Bytes) {
        let Err(line) = self.pinned.push(Line { seq, message }) else { return };
        if self.newest.is_full() {
            self.newest.pop_front();
        }
        // There is room now.
        let _ = self.newest.push_back(line);
    }

    /// The kept lines with numbers below `seq`, oldest first.
    pub fn before(&self, seq: u64) -> std::vec::Vec<Bytes> {
        let lines = self.pinned.iter().chain(&self.newest);
        lines.take_while(|line| line.seq < seq).map(|line| line.message.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(lines: u64, before: u64) -> std::vec::Vec<u8> {
        let mut logbuff = Logbuff::default();
        for seq in 1..=lines {
            logbuff.append(seq, vec![seq as u8].into());
        }
        logbuff.before(before).into_iter().map(|message| message[0]).collect()
    }

    #[test]
    fn the_first_lines_and_the_newest_are_kept() {
        let all = kept(200, u64::MAX);
        assert_eq!(all.len(), PINNED + NEWEST);
        assert_eq!(all[..PINNED], (1..=32).collect::<std::vec::Vec<u8>>());
        assert_eq!(all[PINNED..], (105..=200).collect::<std::vec::Vec<u8>>());
    }

    #[test]
    fn only_lines_before_the_cursor_are_given() {
        assert_eq!(kept(5, 3), [1, 2]);
        assert!(kept(5, 1).is_empty());
    }
}

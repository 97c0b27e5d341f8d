//! The logbuff: the run's log lines that late clients still see, the first ones pinned, then the newest.
//!
//! The first lines say version, targets and probes; they stay whatever comes later. Bounded in lines and in bytes. The
//! original keeps 128 lines. Source: shared/protocol.md.

use bytes::Bytes;
use heapless::{Deque, Vec};

const PINNED: usize = 32;
const NEWEST: usize = 96;
/// Encoded bytes of either part. A line is much shorter (`log::MAX_LINE`).
const PINNED_BYTES: usize = 16 << 10;
const NEWEST_BYTES: usize = 48 << 10;

#[derive(Clone, Debug)]
struct Line {
    seq: u64,
    message: Bytes,
}

/// Kept log lines, encoded.
#[derive(Debug, Default)]
pub struct Logbuff {
    pinned: Vec<Line, PINNED>,
    pinned_bytes: usize,
    newest: Deque<Line, NEWEST>,
    newest_bytes: usize,
    left_out: u64,
}

/// What is kept of a range of lines, oldest first.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the run's first lines.
    pub first: std::vec::Vec<Bytes>,
    /// Of the newest lines.
    pub newest: std::vec::Vec<Bytes>,
}

impl Logbuff {
    /// Keeps the journal's message `seq`, a log line.
    pub fn append(&mut self, seq: u64, message: Bytes) {
        let line = Line { seq, message };
        // Once a line was not pinned, none is: what comes later is newer.
        let bytes = self.pinned_bytes + line.message.len();
        let may_be_pinned = self.newest.is_empty() && bytes <= PINNED_BYTES;
        if may_be_pinned && self.pinned.push(line.clone()).is_ok() {
            self.pinned_bytes = bytes;
            return;
        }
        self.newest_bytes += line.message.len();
        while self.newest.is_full() || self.newest_bytes > NEWEST_BYTES {
            let Some(oldest) = self.newest.pop_front() else { break };
            self.newest_bytes -= oldest.message.len();
            self.left_out += 1;
        }
        // There is room now.
        let _ = self.newest.push_back(line);
    }

    /// The kept lines with numbers above `after` and below `before`.
    pub fn between(&self, after: u64, before: u64) -> Kept {
        let is_asked = |line: &&Line| line.seq > after && line.seq < before;
        let message = |line: &Line| line.message.clone();
        Kept {
            first: self.pinned.iter().filter(is_asked).map(message).collect(),
            newest: self.newest.iter().filter(is_asked).map(message).collect(),
        }
    }

    /// How many lines are kept no longer, and between which numbers they stood: that of the last pinned line and that of
    /// the oldest line behind.
    pub fn left_out(&self) -> (u64, u64, u64) {
        let seq = |line: Option<&Line>| line.map_or(0, |line| line.seq);
        (self.left_out, seq(self.pinned.last()), seq(self.newest.front()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A logbuff of `lines` lines of `length` bytes, numbered from 1.
    fn logbuff(lines: u64, length: usize) -> Logbuff {
        let mut logbuff = Logbuff::default();
        for seq in 1..=lines {
            logbuff.append(seq, vec![seq as u8; length].into());
        }
        logbuff
    }

    fn kept(logbuff: &Logbuff, after: u64, before: u64) -> std::vec::Vec<u8> {
        let Kept { first, newest } = logbuff.between(after, before);
        first.iter().chain(&newest).map(|message| message[0]).collect()
    }

    #[test]
    fn the_first_lines_and_the_newest_are_kept() {
        let logbuff = logbuff(200, 1);
        let all = kept(&logbuff, 0, u64::MAX);
        assert_eq!(all.len(), PINNED + NEWEST);
        assert_eq!(all[..PINNED], (1..=32).collect::<std::vec::Vec<u8>>());
        assert_eq!(all[PINNED..], (105..=200).collect::<std::vec::Vec<u8>>());
        assert_eq!(logbuff.left_out(), (72, 32, 105));
    }

    #[test]
    fn only_lines_of_the_range_are_given() {
        assert_eq!(kept(&logbuff(5, 1), 0, 3), [1, 2]);
        assert_eq!(kept(&logbuff(5, 1), 2, 5), [3, 4]);
        assert!(kept(&logbuff(5, 1), 0, 1).is_empty());
        assert_eq!(logbuff(128, 1).left_out().0, 0);
    }

    #[test]
    fn its_bytes_are_bounded_whatever_the_lines_are() {
        for length in [1, 600, 1000, 20_000, 60_000] {
            let logbuff = logbuff(200, length);
            let Kept { first, newest } = logbuff.between(0, u64::MAX);
            let bytes = |lines: &[Bytes]| lines.iter().map(Bytes::len).sum::<usize>();
            assert!(bytes(&first) <= PINNED_BYTES, "{length}");
            // A line that is longer than all of it would be the only one.
            assert!(bytes(&newest) <= NEWEST_BYTES.max(length), "{length}");
            assert_eq!(first.len() as u64 + newest.len() as u64 + logbuff.left_out().0, 200, "{length}");
        }
    }
}

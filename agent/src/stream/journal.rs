//! The journal: the newest encoded messages, bounded in bytes, numbered from 1 without holes.
//!
//! Clients have no queues. Each holds a cursor, and one that falls behind learns how much it missed; it can neither slow
//! another nor grow memory. A message that is being sent outlives its place in the journal, as `Bytes` are counted.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a message costs besides its own bytes: its entry, and what `Bytes` and the allocator keep with it.
const OVERHEAD: usize = size_of::<Entry>() + 64;

#[derive(Debug)]
struct Entry {
    message: Bytes,
    /// Encoded bytes of all messages before this one, evicted ones included.
    position: u64,
}

/// The newest messages of a run.
#[derive(Debug)]
pub struct Journal {
    entries: VecDeque<Entry>,
    limit: usize,
    used: usize,
    end: Cursor,
}

/// A place in the journal: before the message `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    seq: u64,
    position: u64,
}

impl Cursor {
    /// The number of the message that stands here, or will.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

/// What a cursor comes upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The next message.
    Message(Bytes),
    /// A hole: messages that were evicted before they were read.
    Missed {
        /// How many.
        messages: u64,
        /// Their encoded length in bytes.
        bytes: u64,
    },
}

impl Journal {
    /// An empty journal that takes at most `limit` bytes, bookkeeping included.
    pub fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), limit, used: 0, end: Cursor { seq: 1, position: 0 } }
    }

    /// The number that the next message will have.
    pub fn next_seq(&self) -> u64 {
        self.end.seq
    }

    /// Behind the newest message.
    pub fn end(&self) -> Cursor {
        self.end
    }

    /// Adds a message, and evicts the oldest ones where it needs their room.
    pub fn append(&mut self, message: Bytes) {
        self.used += message.len() + OVERHEAD;
        self.end = Cursor { seq: self.end.seq + 1, position: self.end.position + message.len() as u64 };
        let position = self.end.position - message.len() as u64;
        self.entries.push_back(Entry { message, position });
        while self.used > self.limit {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.used -= oldest.message.len() + OVERHEAD;
        }
    }

    /// What stands at `cursor`, which moves past it; none at the end.
    pub fn read(&self, cursor: &mut Cursor) -> Option<Item> {
        let oldest = self.end.seq - self.entries.len() as u64;
        if cursor.seq < oldest {
            let position = self.entries.front().map_or(self.end.position, |entry| entry.position);
            let missed = Item::Missed { messages: oldest - cursor.seq, bytes: position - cursor.position };
            *cursor = Cursor { seq: oldest, position };
            return Some(missed);
        }
        let entry = self.entries.get(usize::try_from(cursor.seq - oldest).ok()?)?;
        *cursor = Cursor { seq: cursor.seq + 1, position: entry.position + entry.message.len() as u64 };
        Some(Item::Message(entry.message.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal_of(messages: usize) -> Journal {
        Journal::new(messages * (10 + OVERHEAD))
    }

    fn message(byte: u8) -> Bytes {
        vec![byte; 10].into()
    }

    #[test]
    fn every_cursor_reads_every_message_in_order() {
        let mut journal = journal_of(4);
        let mut one = journal.end();
        journal.append(message(1));
        let mut other = journal.end();
        journal.append(message(2));
        assert_eq!(journal.read(&mut one), Some(Item::Message(message(1))));
        assert_eq!(journal.read(&mut one), Some(Item::Message(message(2))));
        assert_eq!(journal.read(&mut one), None);
        assert_eq!(journal.read(&mut other), Some(Item::Message(message(2))));
        assert_eq!(journal.read(&mut other), None);
        assert_eq!(one, other);
    }

    #[test]
    fn a_cursor_left_behind_learns_how_much_it_missed() {
        let mut journal = journal_of(2);
        let mut cursor = journal.end();
        for byte in 1..=5 {
            journal.append(message(byte));
        }
        assert_eq!(journal.read(&mut cursor), Some(Item::Missed { messages: 3, bytes: 30 }));
        assert_eq!(journal.read(&mut cursor), Some(Item::Message(message(4))));
        assert_eq!(journal.read(&mut cursor), Some(Item::Message(message(5))));
        assert_eq!(cursor, journal.end());
    }

    #[test]
    fn its_size_never_passes_the_limit() {
        let mut journal = Journal::new(1000);
        for length in (0..200).chain([5000]).chain(0..200) {
            journal.append(vec![0; length].into());
            let used: usize = journal.entries.iter().map(|entry| entry.message.len() + OVERHEAD).sum();
            assert!(used <= 1000 && used == journal.used);
        }
    }

    #[test]
    fn a_message_larger_than_the_journal_is_missed_and_counted() {
        let mut journal = Journal::new(100);
        let mut cursor = journal.end();
        journal.append(vec![0; 5000].into());
        assert_eq!(journal.read(&mut cursor), Some(Item::Missed { messages: 1, bytes: 5000 }));
        assert_eq!(journal.read(&mut cursor), None);
    }
}

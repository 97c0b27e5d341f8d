//! The journal: the newest encoded messages, bounded in bytes, numbered from 1 without holes.
//!
//! Clients have no queues. Each holds a cursor, and one that falls behind learns how much it missed; it can neither slow
//! another nor grow memory. Messages stand one behind the other in large blocks, so that what comes and goes leaves no holes
//! in the heap, and a block's memory goes back as a whole; who reads a message gets a copy.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

/// The usual size of a block; a journal has eight at least.
const BLOCK: usize = 128 << 10;
/// What a message costs besides its own bytes: its entry, twice, as a queue that grows has room for more.
const OVERHEAD: usize = 2 * size_of::<Entry>();

/// What clients may choose events by. All events of a connection share one: to leave out some of them would tear it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// The name of the thread that used the connection first.
    pub comm: Box<str>,
    /// The host name that was asked for; empty: unknown.
    pub host: Box<str>,
}

/// Messages, one behind the other.
#[derive(Debug)]
struct Block {
    /// The position of its first message.
    start: u64,
    data: Vec<u8>,
}

impl Block {
    /// The position behind its last message.
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }
}

#[derive(Debug)]
struct Entry {
    /// Encoded bytes of all messages before this one, evicted ones included.
    position: u64,
    /// What the event is about; none: it is a log line.
    subject: Option<Rc<Subject>>,
}

impl Entry {
    /// Bytes that it takes beside its message. A subject counts in full, though others may share it.
    fn cost(&self) -> usize {
        let subject = self.subject.as_ref().map_or(0, |subject| {
            // `Rc` keeps two counts.
            size_of::<Subject>() + 2 * size_of::<usize>() + subject.comm.len() + subject.host.len()
        });
        OVERHEAD + subject
    }
}

/// The newest messages of a run.
#[derive(Debug)]
pub struct Journal {
    entries: VecDeque<Entry>,
    blocks: VecDeque<Block>,
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
    /// A message that is not wanted.
    LeftOut,
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
        let (entries, blocks) = (VecDeque::new(), VecDeque::new());
        Self { entries, blocks, limit, used: 0, end: Cursor { seq: 1, position: 0 } }
    }

    /// The number that the next message will have.
    pub fn next_seq(&self) -> u64 {
        self.end.seq
    }

    /// Behind the newest message.
    pub fn end(&self) -> Cursor {
        self.end
    }

    /// Adds a message, an event about `subject` or a log line, and evicts the oldest ones where it needs their room.
    pub fn append(&mut self, message: &[u8], subject: Option<Rc<Subject>>) {
        let position = self.end.position;
        self.end = Cursor { seq: self.end.seq + 1, position: position + message.len() as u64 };
        let has_room = |block: &&mut Block| block.data.capacity() - block.data.len() >= message.len();
        match self.blocks.back_mut().filter(has_room) {
            Some(block) => block.data.extend_from_slice(message),
            None => {
                let mut data = Vec::with_capacity((self.limit / 8).min(BLOCK).max(message.len()));
                data.extend_from_slice(message);
                self.used += data.capacity();
                self.blocks.push_back(Block { start: position, data });
            }
        }
        let entry = Entry { position, subject };
        self.used += entry.cost();
        self.entries.push_back(entry);
        while self.used > self.limit {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.used -= oldest.cost();
            let left = self.entries.front().map(|entry| entry.position);
            while let Some(block) = self.blocks.front()
                && left.is_none_or(|left| block.end() <= left)
            {
                self.used -= block.data.capacity();
                self.blocks.pop_front();
            }
        }
    }

    /// The bytes from one position to another, of one message.
    fn bytes(&self, start: u64, end: u64) -> Bytes {
        let block = self.blocks.partition_point(|block| block.start <= start).checked_sub(1);
        let bytes = block.and_then(|block| self.blocks.get(block)).and_then(|block| {
            let offset = |position: u64| usize::try_from(position - block.start).ok();
            block.data.get(offset(start)?..offset(end)?)
        });
        // It is there, as its entry is.
        Bytes::copy_from_slice(bytes.unwrap_or_default())
    }

    /// Before the oldest message left.
    pub fn oldest(&self) -> Cursor {
        self.cursor(0)
    }

    /// Before the message `seq`, or the oldest one left if that is gone; none if it is not even next.
    pub fn at(&self, seq: u64) -> Option<Cursor> {
        let place = seq.saturating_sub(self.oldest().seq);
        (seq <= self.end.seq).then(|| self.cursor(usize::try_from(place).unwrap_or(usize::MAX)))
    }

    /// Before the `events` newest wanted events, or the oldest message left if there are fewer.
    pub fn newest(&self, events: u64, wanted: impl Fn(&Subject) -> bool) -> Cursor {
        if events == 0 {
            return self.end;
        }
        let all = self.entries.iter().enumerate().rev();
        let mut chosen = all.filter(|(_, entry)| entry.subject.as_deref().is_some_and(&wanted));
        match usize::try_from(events - 1).ok().and_then(|more| chosen.nth(more)) {
            Some((place, _)) => self.cursor(place),
            None => self.oldest(),
        }
    }

    /// How many log lines there are with numbers from `first` to below `end`.
    pub fn log_lines(&self, first: u64, end: u64) -> u64 {
        let oldest = self.oldest().seq;
        let place = |seq: u64| usize::try_from(seq.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let (first, end) = (place(first), place(end).min(self.entries.len()));
        let lines = self.entries.range(first.min(end)..end).filter(|entry| entry.subject.is_none());
        lines.count() as u64
    }

    /// Before the message at `place`, counted from the oldest one.
    fn cursor(&self, place: usize) -> Cursor {
        let oldest = self.end.seq - self.entries.len() as u64;
        match self.entries.get(place) {
            Some(entry) => Cursor { seq: oldest + place as u64, position: entry.position },
            None => self.end,
        }
    }

    /// What stands at `cursor`, which moves past it; none at the end. A message is asked for once whether it is `wanted`: an
    /// event by its subject, a log line by none.
    pub fn read(&self, cursor: &mut Cursor, wanted: impl FnOnce(Option<&Subject>) -> bool) -> Option<Item> {
        let oldest = self.oldest();
        if cursor.seq < oldest.seq {
            let messages = oldest.seq - cursor.seq;
            let bytes = oldest.position - cursor.position;
            *cursor = oldest;
            return Some(Item::Missed { messages, bytes });
        }
        let place = usize::try_from(cursor.seq - oldest.seq).ok()?;
        let entry = self.entries.get(place)?;
        let end = self.cursor(place + 1);
        *cursor = end;
        let wanted = wanted(entry.subject.as_deref());
        Some(if wanted { Item::Message(self.bytes(entry.position, end.position)) } else { Item::LeftOut })
    }
}

impl Journal {
    /// Forgets all messages, which readers then have missed. Their memory is given back, and cleared with that (`allocator`).
    pub fn clear(&mut self) {
        self.used = 0;
        self.entries = VecDeque::new();
        self.blocks = VecDeque::new();
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

    fn read(journal: &Journal, cursor: &mut Cursor) -> Option<Item> {
        journal.read(cursor, |_| true)
    }

    #[test]
    fn what_is_forgotten_is_missed_and_the_numbers_go_on() {
        let mut journal = journal_of(10);
        let mut cursor = journal.end();
        (0..3).for_each(|byte| journal.append(&message(byte), None));
        journal.clear();
        assert_eq!((journal.used, journal.oldest(), journal.next_seq()), (0, journal.end(), 4));
        journal.append(&message(9), None);
        assert_eq!(read(&journal, &mut cursor), Some(Item::Missed { messages: 3, bytes: 30 }));
        assert_eq!(read(&journal, &mut cursor), Some(Item::Message(message(9))));
        assert_eq!((read(&journal, &mut cursor), cursor.seq()), (None, 5));
    }

    /// Messages 1 to 8: a log line, then by turns events of process 0, events of process 1 and log lines.
    fn mixed(messages: usize) -> Journal {
        let subject = |pid| Some(Rc::new(Subject { pid, ..Subject::default() }));
        let subjects = [subject(0), subject(1), None];
        let cost = Entry { position: 0, subject: subject(0) }.cost();
        let mut journal = Journal::new(messages * (10 + cost));
        for seq in 1..=8 {
            journal.append(&message(seq), subjects[usize::from(seq + 1) % 3].clone());
        }
        journal
    }

    #[test]
    fn every_cursor_reads_every_message_in_order() {
        let mut journal = journal_of(4);
        let mut one = journal.end();
        journal.append(&message(1), None);
        let mut other = journal.end();
        journal.append(&message(2), None);
        assert_eq!(read(&journal, &mut one), Some(Item::Message(message(1))));
        assert_eq!(read(&journal, &mut one), Some(Item::Message(message(2))));
        assert_eq!(read(&journal, &mut one), None);
        assert_eq!(read(&journal, &mut other), Some(Item::Message(message(2))));
        assert_eq!(read(&journal, &mut other), None);
        assert_eq!(one, other);
    }

    #[test]
    fn a_cursor_left_behind_learns_how_much_it_missed() {
        let mut journal = journal_of(2);
        let mut cursor = journal.end();
        for byte in 1..=5 {
            journal.append(&message(byte), None);
        }
        assert_eq!(read(&journal, &mut cursor), Some(Item::Missed { messages: 3, bytes: 30 }));
        assert_eq!(read(&journal, &mut cursor), Some(Item::Message(message(4))));
        assert_eq!(read(&journal, &mut cursor), Some(Item::Message(message(5))));
        assert_eq!(cursor, journal.end());
    }

    #[test]
    fn its_size_never_passes_the_limit() {
        let mut journal = Journal::new(1000);
        for length in (0..200).chain([5000]).chain(0..200) {
            let subject = Subject { host: "h".repeat(length % 9).into(), ..Subject::default() };
            journal.append(&vec![0; length], (length % 2 == 0).then(|| Rc::new(subject)));
            let entries: usize = journal.entries.iter().map(Entry::cost).sum();
            let blocks: usize = journal.blocks.iter().map(|block| block.data.capacity()).sum();
            assert!(journal.used <= 1000 && entries + blocks == journal.used);
        }
    }

    #[test]
    fn a_message_larger_than_the_journal_is_missed_and_counted() {
        let mut journal = Journal::new(100);
        let mut cursor = journal.end();
        journal.append(&[0; 5000], None);
        assert_eq!(read(&journal, &mut cursor), Some(Item::Missed { messages: 1, bytes: 5000 }));
        assert_eq!(read(&journal, &mut cursor), None);
    }

    #[test]
    fn what_is_not_wanted_is_passed_over_and_numbered_all_the_same() {
        let journal = mixed(100);
        let mut cursor = journal.oldest();
        let mut wanted = Vec::new();
        while let Some(item) =
            journal.read(&mut cursor, |subject| subject.is_some_and(|subject| subject.pid == 1))
        {
            match item {
                Item::Message(_) => wanted.push(cursor.seq() - 1),
                item => assert_eq!(item, Item::LeftOut),
            }
        }
        assert_eq!((wanted, cursor), (vec![3, 6], journal.end()));
    }

    #[test]
    fn the_newest_events_are_counted_after_the_choice() {
        let journal = mixed(100);
        let newest = |events, pid| journal.newest(events, |subject| subject.pid == pid).seq();
        // Events of process 0 are 2, 5 and 8, those of process 1 are 3 and 6.
        assert_eq!((newest(0, 0), newest(1, 0), newest(2, 0), newest(3, 0)), (9, 8, 5, 2));
        assert_eq!((newest(1, 1), newest(2, 1)), (6, 3));
        // Fewer than that, or none: all that there is.
        assert_eq!((newest(4, 0), newest(u64::MAX, 1), newest(1, 2)), (1, 1, 1));
    }

    #[test]
    fn a_place_is_found_by_its_number_for_as_long_as_it_is_there() {
        let journal = mixed(4);
        let oldest = journal.oldest().seq();
        assert!((2..=5).contains(&oldest), "{oldest}");
        for seq in oldest..=9 {
            let mut cursor = journal.at(seq).unwrap();
            assert_eq!(cursor.seq(), seq);
            let expected = (seq < 9).then(|| Item::Message(message(seq as u8)));
            assert_eq!(read(&journal, &mut cursor), expected);
        }
        assert_eq!((journal.at(1), journal.at(10)), (Some(journal.oldest()), None));
        // A cursor made so counts as one that has been there all the time.
        let (mut journal, mut cursor) = (mixed(4), journal.at(6).unwrap());
        (0..100).for_each(|_| journal.append(&message(0), None));
        let missed = journal.oldest().seq() - 6;
        assert_eq!(read(&journal, &mut cursor), Some(Item::Missed { messages: missed, bytes: missed * 10 }));
    }

    #[test]
    fn log_lines_are_counted_between_two_places() {
        let journal = mixed(100);
        let lines = |first, end| journal.log_lines(first, end);
        // They are 1, 4 and 7.
        assert_eq!((lines(1, 9), lines(1, 7), lines(2, 7), lines(5, 2), lines(9, 100)), (3, 2, 1, 0, 0));
    }

    proptest::proptest! {
        #[test]
        fn each_message_is_read_left_out_or_counted_as_missed(
            steps in proptest::collection::vec((0usize..300, 0u32..3, 0u8..4), 1..200),
            limit in 0usize..4000,
        ) {
            let mut journal = Journal::new(limit);
            let mut cursors = [journal.end(); 2];
            // Messages and bytes that each cursor came past.
            let mut passed = [(0, 0); 2];
            let (mut appended, mut bytes) = (0, 0);
            for (length, pid, reads) in steps {
                let subject = (pid > 0).then(|| Rc::new(Subject { pid, ..Subject::default() }));
                journal.append(&vec![0; length], subject);
                (appended, bytes) = (appended + 1, bytes + length as u64);
                for (cursor, passed) in cursors.iter_mut().zip(&mut passed) {
                    for _ in 0..reads {
                        let before = *cursor;
                        let wanted = |subject: Option<&Subject>| subject.is_some_and(|subject| subject.pid == 1);
                        match journal.read(cursor, wanted) {
                            None => proptest::prop_assert_eq!(*cursor, journal.end()),
                            Some(Item::Missed { messages, bytes }) => {
                                *passed = (passed.0 + messages, passed.1 + bytes);
                            }
                            Some(Item::Message(_) | Item::LeftOut) => {
                                let length = cursor.position - before.position;
                                *passed = (passed.0 + 1, passed.1 + length);
                            }
                        }
                    }
                }
                let seq = cursors[1].seq();
                if let Some(again) = journal.at(seq).filter(|again| again.seq() == seq) {
                    proptest::prop_assert_eq!(again, cursors[1]);
                }
            }
            for (mut cursor, (mut messages, mut counted)) in cursors.into_iter().zip(passed) {
                while let Some(item) = journal.read(&mut cursor, |_| true) {
                    let (more, length) = match item {
                        Item::Missed { messages, bytes } => (messages, bytes),
                        Item::Message(message) => (1, message.len() as u64),
                        Item::LeftOut => unreachable!("all are wanted"),
                    };
                    (messages, counted) = (messages + more, counted + length);
                }
                proptest::prop_assert_eq!((messages, counted), (appended, bytes));
            }
        }
    }
}

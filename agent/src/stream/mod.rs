//! What clients are sent: the journal, the logbuff, and heartbeats.
//!
//! Owns both and the run's totals. Every message is encoded once, whatever the number of clients.

mod journal;
mod logbuff;

use std::{
    rc::Rc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use plaintap_proto::{Event, Heartbeat, LogEntry, LogType, log_entry::Payload};
use prost::Message;

use crate::{capture::counters::Losses, log::Limiter};

use journal::Journal;
pub use journal::{Cursor, Item, Subject};
use logbuff::{Kept, Logbuff};

/// Log lines that are taken at once, and a second: tens of KiB, for which few events have to go.
const LINES: u32 = 512;
const LINES_PER_SECOND: u32 = 16;

/// The stream of one run.
#[derive(Debug)]
pub struct Stream {
    run_id: String,
    started: Instant,
    journal: Journal,
    /// Where an event is encoded before it is kept.
    scratch: Vec<u8>,
    logbuff: Logbuff,
    limiter: Limiter,
    captured_events: u64,
    captured_bytes: u64,
}

/// What one client's heartbeat tells of that client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    /// How many heartbeats it got.
    pub heartbeats: i64,
    /// The last journal message that it is done with: sent, or not wanted.
    pub last_seq: u64,
    /// What it missed, being too slow.
    pub missed_messages: u64,
    /// Their encoded bytes.
    pub missed_bytes: u64,
}

impl Stream {
    /// An empty stream whose journal takes at most `journal_size` bytes.
    pub fn new(run_id: String, journal_size: usize) -> Self {
        Self {
            run_id,
            started: Instant::now(),
            journal: Journal::new(journal_size),
            scratch: Vec::new(),
            logbuff: Logbuff::default(),
            limiter: Limiter::new(LINES, LINES_PER_SECOND, Instant::now()),
            captured_events: 0,
            captured_bytes: 0,
        }
    }

    /// The run's name: 16 hexadecimal digits.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Adds an event about `subject` for all clients.
    pub fn event(&mut self, event: Event, subject: Rc<Subject>) {
        self.captured_events += 1;
        self.captured_bytes += event.payload.len() as u64;
        let entry = LogEntry {
            log_type: LogType::Event.into(),
            seq: self.journal.next_seq(),
            payload: Some(Payload::EventPayload(event)),
        };
        self.scratch.clear();
        // A vector takes as much as it is given.
        let _ = entry.encode(&mut self.scratch);
        self.journal.append(&self.scratch, Some(subject));
    }

    /// Adds a line of the program's log for all clients, those that come later included; unless there are too many, which
    /// the next line tells.
    pub fn log(&mut self, line: &str) {
        match self.limiter.pass(Instant::now()) {
            Some(0) => self.add_line(line),
            Some(suppressed) => self.add_line(&format!("{line} suppressed_lines={suppressed}")),
            None => {}
        }
    }

    fn add_line(&mut self, line: &str) {
        let seq = self.journal.next_seq();
        let message = run_log(line, seq);
        self.logbuff.append(seq, message.clone());
        self.journal.append(&message, None);
    }

    /// Forgets what the journal holds, and all that events left here; the kept log lines stay.
    pub fn forget(&mut self) {
        self.journal.clear();
        self.scratch = Vec::new();
    }

    /// Where the journal ends: a client that starts here gets what comes from now on.
    pub fn end(&self) -> Cursor {
        self.journal.end()
    }

    /// Before the oldest message left.
    pub fn oldest(&self) -> Cursor {
        self.journal.oldest()
    }

    /// Behind the message `seq`, or before the oldest one left if that is gone; none if `seq` did not come yet.
    pub fn after(&self, seq: u64) -> Option<Cursor> {
        self.journal.at(seq.checked_add(1)?)
    }

    /// Before the `events` newest wanted events, or the oldest message left if there are fewer.
    pub fn newest(&self, events: u64, wanted: impl Fn(&Subject) -> bool) -> Cursor {
        self.journal.newest(events, wanted)
    }

    /// The kept log lines before `cursor`, and a line that says how many are left out where some are.
    pub fn kept_logs(&self, cursor: Cursor) -> Vec<Bytes> {
        let Kept { mut first, newest } = self.logbuff.between(0, cursor.seq());
        let (left_out, last, next) = self.logbuff.left_out();
        // A client that starts further back gets some of them from the journal.
        let left_out = left_out - self.journal.log_lines(cursor.seq().max(last + 1), next);
        if left_out > 0 {
            let text = format!("older log lines are left out here: left_out_lines={left_out}");
            first.push(own_line("INF", &text));
        }
        first.extend(newest);
        first
    }

    /// The kept log lines between the message `seq` and `cursor`.
    pub fn kept_logs_after(&self, seq: u64, cursor: Cursor) -> Vec<Bytes> {
        let Kept { mut first, newest } = self.logbuff.between(seq, cursor.seq());
        first.extend(newest);
        first
    }

    /// What stands at `cursor`, which moves past it; none at the journal's end. `wanted` decides of a message by its
    /// subject, of a log line by none.
    pub fn read(&self, cursor: &mut Cursor, wanted: impl FnOnce(Option<&Subject>) -> bool) -> Option<Item> {
        self.journal.read(cursor, wanted)
    }

    /// A heartbeat for one client; `clients` are connected.
    pub fn heartbeat(&self, session: &Session, losses: Losses, clients: u32) -> Bytes {
        let count = session.heartbeats;
        let heartbeat = Heartbeat {
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64),
            count,
            message: format!("heartbeat:{count}"),
            run_id: self.run_id.clone(),
            last_seq: session.last_seq,
            captured_events: self.captured_events,
            captured_bytes: self.captured_bytes,
            lost_events: losses.events,
            lost_bytes: losses.bytes,
            missed_messages: session.missed_messages,
            missed_bytes: session.missed_bytes,
            clients,
            uptime_ms: self.started.elapsed().as_millis() as u64,
        };
        let entry = LogEntry {
            log_type: LogType::Heartbeat.into(),
            seq: 0,
            payload: Some(Payload::HeartbeatPayload(heartbeat)),
        };
        entry.encode_to_vec().into()
    }
}

/// A log line of `level`, as `WRN`, for one client only.
pub fn own_line(level: &str, text: &str) -> Bytes {
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    run_log(&format!("{time} {level} {text}"), 0)
}

/// A log line as a message; `seq` 0 if it is for one client only.
fn run_log(line: &str, seq: u64) -> Bytes {
    let entry =
        LogEntry { log_type: LogType::ProcessLog.into(), seq, payload: Some(Payload::RunLog(line.into())) };
    entry.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream::new("0123456789abcdef".into(), 1 << 20)
    }

    fn decode(bytes: Bytes) -> LogEntry {
        LogEntry::decode(bytes).unwrap()
    }

    #[test]
    fn events_and_log_lines_are_numbered_together_from_1() {
        let mut stream = stream();
        let mut cursor = stream.end();
        stream.log("one");
        stream.event(Event::default(), Rc::default());
        stream.log("three");
        let mut seqs = Vec::new();
        while let Some(Item::Message(message)) = stream.read(&mut cursor, |_| true) {
            seqs.push(decode(message).seq);
        }
        assert_eq!(seqs, [1, 2, 3]);
    }

    #[test]
    fn a_late_client_gets_each_log_line_once() {
        let mut stream = stream();
        stream.log("early");
        let mut cursor = stream.end();
        stream.log("late");
        let kept: Vec<u64> = stream.kept_logs(cursor).into_iter().map(|line| decode(line).seq).collect();
        assert_eq!(kept, [1]);
        let Some(Item::Message(next)) = stream.read(&mut cursor, |_| true) else { panic!("no message") };
        assert_eq!(decode(next).seq, 2);
    }

    #[test]
    fn a_heartbeat_tells_the_runs_and_the_clients_totals() {
        let mut stream = stream();
        stream.event(Event { payload: vec![0; 10].into(), ..Event::default() }, Rc::default());
        let session = Session { heartbeats: 3, last_seq: 1, missed_messages: 4, missed_bytes: 5 };
        let entry = decode(stream.heartbeat(&session, Losses { events: 6, bytes: 7 }, 2));
        let Some(Payload::HeartbeatPayload(beat)) = entry.payload else { panic!("no heartbeat") };
        assert_eq!((entry.seq, beat.count, beat.message.as_str()), (0, 3, "heartbeat:3"));
        assert_eq!((beat.captured_events, beat.captured_bytes), (1, 10));
        assert_eq!((beat.lost_events, beat.lost_bytes), (6, 7));
        assert_eq!((beat.missed_messages, beat.missed_bytes, beat.clients), (4, 5, 2));
    }

    #[test]
    fn a_flood_of_log_lines_does_not_wash_the_events_away() {
        let mut stream = stream();
        let event = stream.end();
        stream.event(Event::default(), Rc::default());
        (0..100_000).for_each(|number| stream.log(&format!("line {number}")));
        assert!(matches!(stream.read(&mut { event }, |_| true), Some(Item::Message(_))));
        assert!(stream.end().seq() < 2_000, "{:?}", stream.end());
    }

    #[test]
    fn lines_left_out_are_counted_for_each_client() {
        let mut stream = stream();
        (1..=200).for_each(|number| stream.log(&format!("line {number}")));
        let lines = |cursor| -> Vec<String> {
            let texts = stream.kept_logs(cursor).into_iter().map(|line| match decode(line).payload {
                Some(Payload::RunLog(line)) => line,
                other => panic!("no line: {other:?}"),
            });
            texts.collect()
        };
        // Lines 33 to 104 are kept no longer.
        let all = lines(stream.end());
        assert_eq!((all.len(), all[31].as_str(), all[33].as_str()), (129, "line 32", "line 105"));
        assert!(all[32].ends_with("INF older log lines are left out here: left_out_lines=72"), "{}", all[32]);
        let further_back = lines(stream.after(100).unwrap());
        assert_eq!(further_back.len(), 33);
        assert!(further_back[32].ends_with("left_out_lines=68"), "{}", further_back[32]);
        assert_eq!(lines(stream.after(32).unwrap()).len(), 32);
        assert_eq!(lines(stream.after(10).unwrap()).len(), 10);
    }
}

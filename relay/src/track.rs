//! What a stream's messages are to the relay: which run they are of, which have been sent before, and which are missing.

use std::mem;

use bytes::Bytes;
use plaintap_proto::{Heartbeat, LogEntry, LogType, log_entry::Payload};
use prost::Message;

use crate::subject::{Kind, header_text};

/// A place in a device's stream: behind the message `seq` of `run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The run; empty: the server names none.
    pub run: String,
    /// The highest number so far; 0: none.
    pub seq: u64,
}

/// A message for the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is.
    pub kind: Kind,
    /// Its number in its run, or where it says that messages are missing, the last of theirs; 0: it has none.
    pub seq: u64,
    /// Where the device's stream is once this is sent.
    pub place: Place,
    /// How many messages are missing, where it says so.
    pub gap: u64,
    /// Of an event.
    pub about: Option<About>,
    /// The bytes.
    pub body: Bytes,
}

impl Outgoing {
    /// A line in the device's log that says how many messages are missing up to number `seq`, and perhaps why.
    pub fn gap(seq: u64, place: Place, messages: u64, why: &str) -> Self {
        let run = &place.run;
        let line = format!("relay gap missed_messages={messages} run={run} up_to_seq={seq}{why}");
        let entry =
            LogEntry { log_type: LogType::ProcessLog.into(), seq: 0, payload: Some(Payload::RunLog(line)) };
        Self { kind: Kind::Log, seq, gap: messages, about: None, body: entry.encode_to_vec().into(), place }
    }

    /// Whether the device's stream is at this message once it is sent. One that comes ahead of what is between is sent by each of two
    /// relays that begin at once.
    pub fn moves(&self) -> bool {
        self.seq > 0 && self.place.seq >= self.seq
    }
}

/// What tells an event from others without decoding it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its process.
    pub pid: i64,
    /// The thread's name.
    pub comm: String,
    /// The host name that its connection asked for; empty: not known.
    pub host: String,
    /// When it was, by the device's clock, in nanoseconds since 1970.
    pub timestamp: i64,
}

/// Of the lines that a server sends before it names its run, so many are kept, of so many bytes: the largest server keeps 512,
/// our own 64 KiB.
const MOST_WAITING: usize = 512;
const MOST_WAITING_BYTES: usize = 1 << 20;

/// What a device sends that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Rubbish {
    /// Other bytes than a message's.
    #[error("it is no LogEntry: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Lines that might be of any run.
    #[error("more lines than a server keeps, and no heartbeat that names the run")]
    Nameless,
}

/// Follows a device's stream over its connections.
#[derive(Debug)]
pub struct Track {
    place: Place,
    /// Numbers tell what is missing: nothing is left out on purpose.
    whole: bool,
    /// Lines of the place's run up to this number were sent, though the place may not be behind them.
    lines: u64,
    /// What came since there was a connection, until a heartbeat says which run it is of.
    waiting: Option<Waiting>,
    /// The numbers of lines beyond the place that came before that heartbeat: they are not missing.
    ahead: Vec<u64>,
    /// What this connection has missed so far, by its heartbeats.
    missed: u64,
}

/// Lines and their bytes.
#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<(LogEntry, Bytes)>,
    bytes: usize,
}

impl Track {
    /// Goes on behind `place`. With `whole` the stream has no filter, and each hole in its numbers is a loss.
    pub fn new(place: Place, whole: bool) -> Self {
        Self { place, whole, lines: 0, waiting: Some(Waiting::default()), ahead: Vec::new(), missed: 0 }
    }

    /// Lines of the place's run up to this number are stored, and not sent again.
    pub fn with_lines(self, lines: u64) -> Self {
        Self { lines, ..self }
    }

    /// The place of what came last.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// There is a new connection.
    pub fn connected(&mut self) {
        self.waiting = Some(Waiting::default());
        self.ahead.clear();
        self.missed = 0;
    }

    /// Takes a message, and returns what is to be sent now.
    pub fn take(&mut self, body: Bytes) -> Result<Vec<Outgoing>, Rubbish> {
        let entry = LogEntry::decode(body.clone())?;
        let mut out = Vec::new();
        match (&mut self.waiting, &entry.payload) {
            (Some(_), Some(Payload::HeartbeatPayload(heartbeat))) => {
                let waiting = self.waiting.take().unwrap_or_default();
                // It becomes part of headers.
                let run = header_text(&heartbeat.run_id);
                if run != self.place.run {
                    self.place = Place { run, seq: 0 };
                    self.lines = 0;
                }
                let start = self.place.seq;
                for (entry, body) in waiting.lines {
                    self.ahead.extend(Some(entry.seq).filter(|seq| *seq > start));
                    self.send(&entry, body, &mut out, false);
                    // What stood between these lines is still to come, or is told as missing by the next message.
                    self.place.seq = start;
                    if let Some(last) = out.last_mut() {
                        last.place.seq = start;
                    }
                }
                if self.whole || start > 0 {
                    self.heartbeat(heartbeat, 0, &mut out);
                } else {
                    // All that the device no longer has of a run of which nothing was stored yet.
                    let kept = self.ahead.iter().filter(|line| **line <= heartbeat.last_seq).count() as u64;
                    self.heartbeat(heartbeat, heartbeat.last_seq.saturating_sub(kept), &mut out);
                }
                self.send(&entry, body, &mut out, false);
            }
            // A server that numbers and names nothing.
            (Some(_), Some(Payload::EventPayload(_))) => {
                let waiting = self.waiting.take().unwrap_or_default();
                for (entry, body) in waiting.lines {
                    self.send(&entry, body, &mut out, false);
                }
                self.send(&entry, body, &mut out, true);
            }
            (Some(waiting), _) => {
                waiting.bytes += body.len();
                if waiting.lines.len() >= MOST_WAITING || waiting.bytes > MOST_WAITING_BYTES {
                    return Err(Rubbish::Nameless);
                }
                waiting.lines.push((entry, body));
            }
            (None, payload) => {
                if let Some(Payload::HeartbeatPayload(heartbeat)) = payload {
                    self.heartbeat(heartbeat, 0, &mut out);
                }
                self.send(&entry, body, &mut out, true);
            }
        }
        Ok(out)
    }

    /// What a heartbeat says of a stream whose numbers don't tell: how far it is, what was left out on purpose counted, and what is
    /// missing of it, which is `at_least` so much.
    fn heartbeat(&mut self, heartbeat: &Heartbeat, at_least: u64, out: &mut Vec<Outgoing>) {
        let more = heartbeat.missed_messages.saturating_sub(self.missed).max(at_least);
        self.missed = heartbeat.missed_messages;
        if self.whole {
            return;
        }
        let after = self.place.seq;
        if header_text(&heartbeat.run_id) == self.place.run {
            self.place.seq = after.max(heartbeat.last_seq);
        }
        if more > 0 {
            out.push(self.gap(after, more));
        }
    }

    /// Sends a message unless it was sent before; what is missing before it is told first.
    fn send(&mut self, entry: &LogEntry, body: Bytes, out: &mut Vec<Outgoing>, tell: bool) {
        let seq = entry.seq;
        if seq > 0 && seq <= self.place.seq {
            return;
        }
        if seq > 0 && tell {
            let between = self.ahead.iter().filter(|line| (self.place.seq + 1..seq).contains(line)).count();
            let hole = (seq - self.place.seq - 1).saturating_sub(between as u64);
            if hole > 0 && self.whole && !self.place.run.is_empty() {
                // Whoever goes on from here knows of it: the place is behind it.
                let after = mem::replace(&mut self.place.seq, seq - 1);
                out.push(self.gap(after, hole));
            }
        }
        self.place.seq = self.place.seq.max(seq);
        let (kind, about) = match &entry.payload {
            Some(Payload::EventPayload(event)) => {
                let about = About {
                    pid: event.pid,
                    comm: event.pname.clone(),
                    host: event.server_name.clone(),
                    timestamp: event.timestamp,
                };
                (Kind::Event, Some(about))
            }
            Some(Payload::HeartbeatPayload(_)) => (Kind::Heartbeat, None),
            _ => (Kind::Log, None),
        };
        if kind == Kind::Log && seq > 0 {
            if seq <= self.lines {
                return;
            }
            self.lines = seq;
        }
        out.push(Outgoing { kind, seq, place: self.place.clone(), gap: 0, about, body });
    }

    /// Says that messages are missing behind number `after`, up to our place.
    fn gap(&self, after: u64, messages: u64) -> Outgoing {
        // The numbers of lines that came ahead are those lines'.
        let last = (after..=self.place.seq).rev().find(|seq| !self.ahead.contains(seq));
        let last = last.filter(|last| *last > after);
        Outgoing::gap(last.unwrap_or(0), self.place.clone(), messages, "")
    }
}

#[cfg(test)]
mod tests {
    use plaintap_proto::Event;
    use proptest::prelude::*;

    use super::*;

    fn bytes(seq: u64, payload: Payload) -> Bytes {
        LogEntry { seq, payload: Some(payload), ..Default::default() }.encode_to_vec().into()
    }

    fn event(seq: u64) -> Bytes {
        bytes(seq, Payload::EventPayload(Event { pid: 7, pname: "curl".into(), ..Default::default() }))
    }

    fn line(seq: u64) -> Bytes {
        bytes(seq, Payload::RunLog("a line".into()))
    }

    fn heartbeat(run_id: &str, missed_messages: u64) -> Bytes {
        let heartbeat = Heartbeat { run_id: run_id.into(), missed_messages, ..Default::default() };
        bytes(0, Payload::HeartbeatPayload(heartbeat))
    }

    fn place(run: &str, seq: u64) -> Place {
        Place { run: run.into(), seq }
    }

    /// Of each message that is to be sent: kind, number, where the stream is then, and the gap that it tells of.
    fn taken(track: &mut Track, messages: &[Bytes]) -> Vec<(Kind, u64, u64, u64)> {
        let out = messages.iter().flat_map(|message| track.take(message.clone()).unwrap());
        out.map(|out| (out.kind, out.seq, out.place.seq, out.gap)).collect()
    }

    #[test]
    fn a_new_stream_is_sent_from_its_first_message_on() {
        let mut track = Track::new(Place::default(), true);
        let out = taken(&mut track, &[line(1), line(3), heartbeat("r", 0), event(2), event(4)]);
        assert_eq!(
            out,
            [
                // Until what stood between them has come, the stream is not further than this.
                (Kind::Log, 1, 0, 0),
                (Kind::Log, 3, 0, 0),
                (Kind::Heartbeat, 0, 0, 0),
                (Kind::Event, 2, 2, 0),
                (Kind::Event, 4, 4, 0),
            ]
        );
        assert_eq!(track.place(), &place("r", 4));
    }

    #[test]
    fn lines_that_are_stored_though_the_place_is_before_them_are_not_sent_again() {
        let mut track = Track::new(place("r", 0), true).with_lines(4);
        let out = taken(
            &mut track,
            &[line(1), line(3), line(6), heartbeat("r", 0), event(2), line(4), event(5), event(7)],
        );
        assert_eq!(
            out,
            [
                (Kind::Log, 6, 0, 0),
                (Kind::Heartbeat, 0, 0, 0),
                (Kind::Event, 2, 2, 0),
                (Kind::Event, 5, 5, 0),
                (Kind::Event, 7, 7, 0)
            ]
        );
        track.connected();
        assert_eq!(
            taken(&mut track, &[line(1), heartbeat("s", 0)]),
            [(Kind::Log, 1, 0, 0), (Kind::Heartbeat, 0, 0, 0)]
        );
        track.connected();
        assert_eq!(taken(&mut track, &[line(1), heartbeat("s", 0)]), [(Kind::Heartbeat, 0, 0, 0)]);
    }

    #[test]
    fn what_was_sent_before_is_not_sent_again_and_a_hole_is_told() {
        let mut track = Track::new(place("r", 5), true);
        let out = taken(&mut track, &[line(2), heartbeat("r", 0), event(5), event(6), event(9)]);
        assert_eq!(
            out,
            [
                (Kind::Heartbeat, 0, 5, 0),
                (Kind::Event, 6, 6, 0),
                (Kind::Log, 8, 8, 2),
                (Kind::Event, 9, 9, 0)
            ]
        );
    }

    #[test]
    fn lines_that_come_ahead_make_the_hole_smaller() {
        let mut track = Track::new(place("r", 5), true);
        let out = taken(&mut track, &[line(7), heartbeat("r", 0), event(10)]);
        assert_eq!(
            out,
            [
                (Kind::Log, 7, 5, 0),
                (Kind::Heartbeat, 0, 5, 0),
                (Kind::Log, 9, 9, 3),
                (Kind::Event, 10, 10, 0)
            ]
        );
    }

    #[test]
    fn another_run_begins_at_its_first_message() {
        let mut track = Track::new(place("old", 500), true);
        let out = taken(&mut track, &[line(1), heartbeat("new", 0), event(2)]);
        assert_eq!(out, [(Kind::Log, 1, 0, 0), (Kind::Heartbeat, 0, 0, 0), (Kind::Event, 2, 2, 0)]);
        assert_eq!(track.place(), &place("new", 2));
    }

    #[test]
    fn a_run_fits_into_a_header_whatever_it_is() {
        let mut track = Track::new(Place::default(), true);
        taken(&mut track, &[heartbeat(&format!("a\r\nNats-Msg-Id: b{}", "c".repeat(1000)), 0), event(1)]);
        let run = &track.place().run;
        assert!(run.starts_with("aNats-Msg-Id: bccc") && run.len() == 256, "{run}");
    }

    #[test]
    fn a_filtered_stream_tells_only_what_its_heartbeats_say() {
        let mut track = Track::new(place("r", 5), false);
        let heartbeat = |last_seq, missed_messages| {
            let heartbeat = Heartbeat { run_id: "r".into(), last_seq, missed_messages, ..Default::default() };
            bytes(0, Payload::HeartbeatPayload(heartbeat))
        };
        let out = taken(&mut track, &[heartbeat(8, 3), event(12), heartbeat(20, 3), heartbeat(30, 7)]);
        assert_eq!(
            out,
            [
                // The journal went on while nobody was there.
                (Kind::Log, 8, 8, 3),
                (Kind::Heartbeat, 0, 8, 0),
                (Kind::Event, 12, 12, 0),
                // What the filter left out is behind us.
                (Kind::Heartbeat, 0, 20, 0),
                (Kind::Log, 30, 30, 4),
                (Kind::Heartbeat, 0, 30, 0)
            ]
        );
        // Of another connection, which begins to count anew.
        track.connected();
        assert_eq!(taken(&mut track, &[heartbeat(32, 2)])[0], (Kind::Log, 32, 32, 2));
        // One that does not say where the hole is.
        assert_eq!(taken(&mut track, &[heartbeat(32, 9)])[0], (Kind::Log, 0, 32, 7));
        track.connected();
        assert_eq!(taken(&mut track, &[heartbeat(u64::MAX, 1), heartbeat(u64::MAX, 2)]).len(), 4);
    }

    #[test]
    fn what_a_filtered_stream_no_longer_has_of_its_run_is_told_and_kept_lines_are_not_missing() {
        let mut track = Track::new(place("old", 5), false);
        let heartbeat = Heartbeat { run_id: "new".into(), last_seq: 50, ..Default::default() };
        let heartbeat = bytes(0, Payload::HeartbeatPayload(heartbeat));
        let out = taken(&mut track, &[line(1), line(2), line(60), heartbeat.clone(), heartbeat]);
        assert_eq!(
            out[3..],
            [(Kind::Log, 50, 50, 48), (Kind::Heartbeat, 0, 50, 0), (Kind::Heartbeat, 0, 50, 0)]
        );
    }

    #[test]
    fn lines_of_no_known_run_are_kept_up_to_a_bound() {
        let mut track = Track::new(place("r", 5), true);
        for seq in 1..=512 {
            assert_eq!(track.take(line(seq)).unwrap(), []);
        }
        assert!(matches!(track.take(line(513)), Err(Rubbish::Nameless)));
        assert_eq!(track.place(), &place("r", 5));
        assert_eq!(taken(&mut track, &[heartbeat("new", 0)]).len(), 513);
        track.connected();
        let large = || bytes(0, Payload::RunLog("a".repeat(1 << 19)));
        assert!(track.take(large()).is_ok() && track.take(large()).is_err());
    }

    #[test]
    fn servers_that_number_nothing_are_sent_as_they_come() {
        let mut track = Track::new(Place::default(), true);
        let out = taken(&mut track, &[line(0), event(0), event(0), heartbeat("", 0)]);
        assert_eq!(
            out.iter().map(|out| out.0).collect::<Vec<_>>(),
            [Kind::Log, Kind::Event, Kind::Event, Kind::Heartbeat]
        );
    }

    /// What may come: a message, rubbish, or a new connection.
    #[derive(Clone, Debug)]
    enum Came {
        Message(Bytes),
        Connection,
    }

    fn came() -> impl Strategy<Value = Came> {
        prop_oneof![
            8 => (0..60u64).prop_map(|seq| Came::Message(event(seq))),
            3 => (0..60u64).prop_map(|seq| Came::Message(line(seq))),
            2 => ("[ab]?", 0..60u64, 0..9u64).prop_map(|(run_id, last_seq, missed_messages)| {
                let heartbeat = Heartbeat { run_id, last_seq, missed_messages, ..Default::default() };
                Came::Message(bytes(0, Payload::HeartbeatPayload(heartbeat)))
            }),
            1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Came::Message(bytes.into())),
            1 => Just(Came::Connection),
        ]
    }

    proptest! {
        #[test]
        fn whatever_comes_no_place_goes_back_and_no_number_moves_it_twice(
            all in prop::collection::vec(came(), 0..80), whole: bool,
        ) {
            let mut track = Track::new(Place::default(), whole);
            let mut last = Place::default();
            for came in all {
                let Came::Message(bytes) = came else { track.connected(); continue };
                for out in track.take(bytes).unwrap_or_default() {
                    let same_run = out.place.run == last.run;
                    prop_assert!(!same_run || out.place.seq >= last.seq, "{out:?} behind {last:?}");
                    prop_assert!(!same_run || !out.moves() || out.place.seq > last.seq, "{out:?} again, behind {last:?}");
                    last = out.place;
                }
            }
        }
    }
}

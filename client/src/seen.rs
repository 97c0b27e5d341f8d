//! What was seen of a stream, and so what was missed: while away, by being too slow, or by the agent itself.
//!
//! A run of the agent numbers its messages without holes. When a connection ends, the next one is asked to go on behind the
//! last number seen; if it can't, the hole between that and the first new one is what was missed (messages that a filter
//! would have left out are among them). Older servers number nothing, and then that is said.

use plaintap_proto::{Heartbeat, LogEntry, log_entry::Payload};

use crate::note::counted;

/// What was seen so far; one for a stream, over all its connections.
#[derive(Debug, Default)]
pub struct Seen {
    /// The run that `last` belongs to; empty until a heartbeat names it.
    run_id: String,
    /// The highest number seen.
    last: u64,
    /// There is a new connection, and it is not yet known what was missed before it.
    away: Option<Away>,
    /// By us, on this connection.
    missed_messages: u64,
    /// By the agent, in this run: events and bytes. `None` until a heartbeat says it.
    lost: Option<(u64, u64)>,
    /// Another took it from the agent and stored it: what the agent says of its connection is not about ours.
    kept: bool,
}

/// The kept log lines that a new connection starts with, before its first heartbeat: they are no longer missed.
#[derive(Debug, Default)]
struct Away {
    lines: u64,
    lines_after_last: u64,
}

impl Seen {
    /// The message to go on behind: its number and its run. None if the server numbers nothing, or has not yet said which
    /// run it is.
    pub fn place(&self) -> Option<(u64, &str)> {
        (!self.run_id.is_empty()).then_some((self.last, &self.run_id))
    }

    /// A new connection stands in place of one that ended.
    pub fn reconnected(&mut self) {
        self.away = Some(Away::default());
        self.missed_messages = 0;
    }

    /// It was stored, and comes from there.
    pub fn is_kept(&mut self) {
        self.kept = true;
    }

    /// Takes a message into account; returns what the person should be told.
    pub fn entry(&mut self, entry: &LogEntry) -> Vec<String> {
        match (&entry.payload, &mut self.away) {
            (Some(Payload::HeartbeatPayload(heartbeat)), _) => self.heartbeat(heartbeat),
            (Some(Payload::RunLog(_)), Some(away)) => {
                away.lines += u64::from(entry.seq > 0);
                away.lines_after_last += u64::from(entry.seq > self.last);
                vec![]
            }
            _ => {
                let told = match entry.seq.checked_sub(1) {
                    Some(before) => self.back_at(before),
                    None => self.away.take().map(|_| UNKNOWN.to_owned()),
                };
                self.last = self.last.max(entry.seq);
                Vec::from_iter(told)
            }
        }
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Vec<String> {
        let mut told = vec![];
        if self.away.is_some() {
            // That many are part of the hole, which is told as such.
            self.missed_messages = heartbeat.missed_messages;
        }
        if self.away.is_none() {
            self.last = self.last.max(heartbeat.last_seq);
        } else if heartbeat.run_id.is_empty() || self.run_id.is_empty() {
            self.away = None;
            self.last = heartbeat.last_seq;
            told.push(UNKNOWN.to_owned());
        } else if heartbeat.run_id == self.run_id {
            told.extend(self.back_at(heartbeat.last_seq));
        } else {
            let lines = self.away.take().map_or(0, |away| away.lines);
            self.last = heartbeat.last_seq;
            self.lost = None;
            told.push(match heartbeat.last_seq.saturating_sub(lines) {
                0 => "the agent was restarted: missed the old run's end".to_owned(),
                missed => format!(
                    "the agent was restarted: missed the old run's end, and {} of the new run",
                    counted(missed, "message")
                ),
            });
        }
        self.run_id.clone_from(&heartbeat.run_id);
        told.extend(self.losses(heartbeat));
        told
    }

    /// The new connection, if what was missed before it is not yet known, goes on after `seq`. Below `last` it repeats what
    /// was seen.
    fn back_at(&mut self, seq: u64) -> Option<String> {
        let hole = seq.checked_sub(self.last)?;
        let away = self.away.take()?;
        self.last = seq;
        match hole.saturating_sub(away.lines_after_last) {
            0 => Some("missed nothing while away".to_owned()),
            missed => Some(format!("missed {} while away", counted(missed, "message"))),
        }
    }

    fn losses(&mut self, heartbeat: &Heartbeat) -> Vec<String> {
        let mut told = vec![];
        if heartbeat.missed_messages > self.missed_messages {
            let missed = counted(heartbeat.missed_messages, "message");
            let bytes = counted(heartbeat.missed_bytes, "byte");
            told.push(match self.kept {
                false => format!("too slow: missed {missed} ({bytes}) so far on this connection"),
                true => format!("not stored: {missed} ({bytes}), so far on the relay's connection"),
            });
        }
        self.missed_messages = heartbeat.missed_messages;
        let now = (heartbeat.lost_events, heartbeat.lost_bytes);
        if self.lost.is_some_and(|before| now.0 > before.0 || now.1 > before.1) {
            let (events, bytes) = (counted(now.0, "event"), counted(now.1, "byte"));
            told.push(format!("the agent lost {events} ({bytes}) so far in its run"));
        }
        self.lost = Some(now);
        told
    }
}

const UNKNOWN: &str = "what was missed while away is unknown: the server does not number its messages";

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64) -> LogEntry {
        LogEntry { seq, payload: Some(Payload::EventPayload(Default::default())), ..Default::default() }
    }

    fn line(seq: u64) -> LogEntry {
        LogEntry { seq, payload: Some(Payload::RunLog(String::new())), ..Default::default() }
    }

    fn heartbeat(run_id: &str, last_seq: u64) -> LogEntry {
        beat(at(run_id, last_seq))
    }

    fn at(run_id: &str, last_seq: u64) -> Heartbeat {
        Heartbeat { run_id: run_id.to_owned(), last_seq, ..Default::default() }
    }

    fn beat(heartbeat: Heartbeat) -> LogEntry {
        LogEntry { payload: Some(Payload::HeartbeatPayload(heartbeat)), ..Default::default() }
    }

    fn told(seen: &mut Seen, entries: &[LogEntry]) -> Vec<String> {
        entries.iter().flat_map(|entry| seen.entry(entry)).collect()
    }

    #[test]
    fn the_hole_between_two_connections_is_what_was_missed() {
        for (back, expected) in [
            (vec![heartbeat("a", 20)], "missed 10 messages while away"),
            (vec![heartbeat("a", 10)], "missed nothing while away"),
            // Lines 5 and 15 were kept for latecomers: one was seen, the other is now.
            (vec![line(5), line(15), heartbeat("a", 20), event(21)], "missed 9 messages while away"),
            (vec![event(12)], "missed 1 message while away"),
            // A connection that repeats, or goes on where the last one ended.
            (vec![heartbeat("a", 8), event(9), event(10), event(11)], "missed nothing while away"),
        ] {
            let mut seen = Seen::default();
            assert!(told(&mut seen, &[line(1), line(5), heartbeat("a", 9), event(10)]).is_empty());
            seen.reconnected();
            assert_eq!(told(&mut seen, &back), [expected]);
            assert!(told(&mut seen, &[heartbeat("a", 21), event(22)]).is_empty());
        }
    }

    #[test]
    fn a_hole_that_the_server_tells_of_is_told_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.place(), None);
        told(&mut seen, &[heartbeat("a", 9), event(10)]);
        assert_eq!(seen.place(), Some((10, "a")));
        seen.reconnected();
        let back = Heartbeat { missed_messages: 5, ..at("a", 15) };
        assert_eq!(
            told(&mut seen, &[line(0), beat(back.clone()), event(16)]),
            ["missed 5 messages while away"]
        );
        assert_eq!(seen.place(), Some((16, "a")));
        let slow = Heartbeat { missed_messages: 7, missed_bytes: 9, ..back };
        assert_eq!(
            told(&mut seen, &[beat(slow)]),
            ["too slow: missed 7 messages (9 bytes) so far on this connection"]
        );
    }

    #[test]
    fn a_restarted_agent_is_told_from_a_hole() {
        let mut seen = Seen::default();
        told(&mut seen, &[heartbeat("a", 9), event(10)]);
        seen.reconnected();
        assert_eq!(
            told(&mut seen, &[line(1), line(2), heartbeat("b", 5), event(6)]),
            ["the agent was restarted: missed the old run's end, and 3 messages of the new run"]
        );
        seen.reconnected();
        assert_eq!(
            told(&mut seen, &[line(1), heartbeat("c", 1)]),
            ["the agent was restarted: missed the old run's end"]
        );
    }

    #[test]
    fn an_old_server_cannot_say_what_was_missed() {
        for back in [heartbeat("", 0), event(0)] {
            let mut seen = Seen::default();
            assert!(told(&mut seen, &[line(0), heartbeat("", 0), event(0)]).is_empty());
            seen.reconnected();
            assert_eq!(told(&mut seen, &[line(0), back, event(0)]), [UNKNOWN]);
        }
    }

    #[test]
    fn messages_left_out_on_one_connection_were_filtered_and_are_not_missed() {
        let mut seen = Seen::default();
        assert!(
            told(&mut seen, &[heartbeat("a", 0), event(1), event(9), heartbeat("a", 20), event(30)])
                .is_empty()
        );
    }

    #[test]
    fn what_was_not_stored_is_the_relays_to_miss() {
        let mut seen = Seen::default();
        seen.is_kept();
        let missed = Heartbeat { missed_messages: 2, missed_bytes: 1, ..at("a", 9) };
        assert_eq!(
            told(&mut seen, &[heartbeat("a", 0), event(1), beat(missed), event(12)]),
            ["not stored: 2 messages (1 byte), so far on the relay's connection"]
        );
    }

    #[test]
    fn losses_are_told_when_they_grow() {
        let mut seen = Seen::default();
        let first = Heartbeat { lost_events: 4, lost_bytes: 40, ..Default::default() };
        let slow = Heartbeat { missed_messages: 2, missed_bytes: 1, ..first.clone() };
        let lossy = Heartbeat { lost_events: 5, ..slow.clone() };
        assert!(told(&mut seen, &[beat(first.clone()), beat(first)]).is_empty());
        assert_eq!(
            told(&mut seen, &[beat(slow.clone()), beat(slow)]),
            ["too slow: missed 2 messages (1 byte) so far on this connection"]
        );
        assert_eq!(
            told(&mut seen, &[beat(lossy.clone()), beat(lossy)]),
            ["the agent lost 5 events (40 bytes) so far in its run"]
        );
    }
}

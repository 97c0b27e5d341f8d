//! A `LogEntry` as one line of JSON: what `plaintap watch --json` prints and what `vectors/` holds.
//!
//! It is protobuf's own JSON mapping with the `.proto`'s names and with defaults written out, so that every language's
//! protobuf library can produce it for comparison; `vectors/README.md` says it for people.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{Direction, Event, Heartbeat, LogEntry, LogType, log_entry::Payload};

/// `entry` as one JSON object, without a line feed. The text is printable ASCII, whatever the strings hold (the rest is
/// `\uXXXX`), so that no terminal obeys it.
pub fn line(entry: &LogEntry) -> String {
    let mut line = String::new();
    let mut units = [0; 2];
    for c in value(entry).to_string().chars() {
        if matches!(c, ' '..='~') {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line
}

fn value(entry: &LogEntry) -> Value {
    let mut object = json!({ "log_type": name(entry.log_type, LogType::as_str_name) });
    match &entry.payload {
        Some(Payload::EventPayload(event)) => object["event_payload"] = event_value(event),
        Some(Payload::HeartbeatPayload(heartbeat)) => {
            object["heartbeat_payload"] = heartbeat_value(heartbeat)
        }
        Some(Payload::RunLog(text)) => object["run_log"] = json!(text),
        None => {}
    }
    object["seq"] = long(entry.seq);
    object
}

fn event_value(event: &Event) -> Value {
    json!({
        "timestamp": long(event.timestamp),
        "uuid": event.uuid,
        "src_ip": event.src_ip,
        "src_port": event.src_port,
        "dst_ip": event.dst_ip,
        "dst_port": event.dst_port,
        "pid": long(event.pid),
        "pname": event.pname,
        "type": event.r#type,
        "length": event.length,
        "payload": BASE64_STANDARD.encode(&event.payload),
        "direction": name(event.direction, Direction::as_str_name),
        "tid": event.tid,
        "uid": event.uid,
        "connection_id": long(event.connection_id),
        "stream_offset": long(event.stream_offset),
        "lost_before": long(event.lost_before),
        "app": event.app,
        "server_name": event.server_name,
        "process_start": long(event.process_start),
        "library": event.library,
        "truncated": event.truncated,
    })
}

fn heartbeat_value(heartbeat: &Heartbeat) -> Value {
    json!({
        "timestamp": long(heartbeat.timestamp),
        "count": long(heartbeat.count),
        "message": heartbeat.message,
        "run_id": heartbeat.run_id,
        "last_seq": long(heartbeat.last_seq),
        "captured_events": long(heartbeat.captured_events),
        "captured_bytes": long(heartbeat.captured_bytes),
        "lost_events": long(heartbeat.lost_events),
        "lost_bytes": long(heartbeat.lost_bytes),
        "missed_messages": long(heartbeat.missed_messages),
        "missed_bytes": long(heartbeat.missed_bytes),
        "clients": heartbeat.clients,
        "uptime_ms": long(heartbeat.uptime_ms),
    })
}

/// A 64-bit integer as a string: JSON readers that keep numbers as doubles would round it.
fn long(number: impl ToString) -> Value {
    Value::String(number.to_string())
}

/// An enum's value by name, or its number if it is of a later release.
fn name<E: TryFrom<i32>>(number: i32, name: fn(&E) -> &'static str) -> Value {
    E::try_from(number).map_or(json!(number), |known| json!(name(&known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_nothing_that_a_terminal_obeys_and_parses_to_the_same_text() {
        let text = "\u{1b}[2J\u{9b}\u{202e}\u{7f}\n\u{e9}\u{1f600}\"\\";
        let entry = LogEntry { payload: Some(Payload::RunLog(text.to_owned())), ..LogEntry::default() };
        let line = line(&entry);
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        assert_eq!(line.parse::<Value>().unwrap()["run_log"], text);
    }
}

//! The messages that `*.bin` and `*.json` hold, for the example that writes the files and the test that compares them.

use std::path::PathBuf;

use plaintap_proto::{Direction, Event, Heartbeat, LogEntry, LogType, Protocol, json, log_entry::Payload};
use prost::Message;

/// One message with its two forms.
pub struct Vector {
    /// The files' name, without an ending.
    pub name: &'static str,
    /// What the bytes decode to in this release.
    pub entry: LogEntry,
    /// The message on the wire, with the fields that this release does not know.
    pub bytes: Vec<u8>,
}

impl Vector {
    fn new(name: &'static str, entry: LogEntry) -> Self {
        let bytes = entry.encode_to_vec();
        Self { name, entry, bytes }
    }

    /// The JSON file's whole text.
    pub fn json(&self) -> String {
        json::line(&self.entry) + "\n"
    }

    /// Where this vector's file with this ending is kept.
    pub fn path(&self, ending: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors")).join(format!("{}.{ending}", self.name))
    }
}

/// Every vector, in the order of README.md.
pub fn all() -> Vec<Vector> {
    vec![
        Vector::new("process_log", process_log()),
        Vector::new("heartbeat_first", heartbeat_first()),
        Vector::new("heartbeat_full", heartbeat_full()),
        Vector::new("event_full", event(7, event_full())),
        Vector::new("event_unknown_address", event(8, event_unknown_address())),
        Vector::new("event_ipv6_binary", event(9, event_ipv6_binary())),
        Vector::new("event_old", event(0, event_old())),
        Vector::new("event_hostile", event(10, event_hostile())),
        Vector::new("extremes_low", event(u64::MAX, extremes_low())),
        Vector::new("extremes_high", event(u64::MAX, extremes_high())),
        future_fields(),
        future_kind(),
    ]
}

fn process_log() -> LogEntry {
    LogEntry {
        log_type: LogType::ProcessLog.into(),
        seq: 1,
        payload: Some(Payload::RunLog(
            "2025-08-02T14:16:10Z INF plaintapd version=0.1.0 kernel=6.12".to_owned(),
        )),
    }
}

fn heartbeat_first() -> LogEntry {
    let heartbeat =
        Heartbeat { timestamp: 1_754_144_170, message: "heartbeat:0".to_owned(), ..Heartbeat::default() };
    LogEntry {
        log_type: LogType::Heartbeat.into(),
        seq: 0,
        payload: Some(Payload::HeartbeatPayload(heartbeat)),
    }
}

fn heartbeat_full() -> LogEntry {
    let heartbeat = Heartbeat {
        timestamp: 1_754_144_185,
        count: 1,
        message: "heartbeat:1".to_owned(),
        run_id: "00c0ffee5eed1234".to_owned(),
        last_seq: 1234,
        captured_events: 1200,
        captured_bytes: 5_000_000_000,
        lost_events: 3,
        lost_bytes: 4096,
        missed_messages: 17,
        missed_bytes: 278_528,
        clients: 2,
        uptime_ms: 15_250,
    };
    LogEntry {
        log_type: LogType::Heartbeat.into(),
        seq: 0,
        payload: Some(Payload::HeartbeatPayload(heartbeat)),
    }
}

fn event(seq: u64, event: Event) -> LogEntry {
    LogEntry { log_type: LogType::Event.into(), seq, payload: Some(Payload::EventPayload(event)) }
}

fn event_full() -> Event {
    let payload = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
    Event {
        timestamp: 1_754_144_170_123_456_789,
        uuid: "1234_1250_ChromiumNet1_0_1_10.0.0.2:43210-93.184.216.34:443".to_owned(),
        src_ip: "10.0.0.2".to_owned(),
        src_port: 43210,
        dst_ip: "93.184.216.34".to_owned(),
        dst_port: 443,
        pid: 1234,
        pname: "ChromiumNet1".to_owned(),
        r#type: Protocol::Http1Request as u32,
        length: payload.len() as u32,
        payload: payload.as_slice().into(),
        direction: Direction::Written.into(),
        tid: 1250,
        uid: 10_123,
        connection_id: 42,
        stream_offset: 16_384,
        lost_before: 123,
        app: "com.android.chrome".to_owned(),
        server_name: "example.org".to_owned(),
        process_start: 987_650_000_000,
        library: "/apex/com.android.conscrypt/lib64/libssl.so".to_owned(),
        truncated: true,
    }
}

fn event_unknown_address() -> Event {
    let payload = b"HTTP/1.1 204 No Content\r\n\r\n";
    Event {
        timestamp: 1_754_144_171_000_000_000,
        uuid: "sock:1234_1251_my_app_0_0_0.0.0.0:0-0.0.0.0:0_0".to_owned(),
        src_ip: "0.0.0.0".to_owned(),
        dst_ip: "0.0.0.0".to_owned(),
        pid: 1234,
        pname: "my_app".to_owned(),
        r#type: Protocol::Http1Response as u32,
        length: payload.len() as u32,
        payload: payload.as_slice().into(),
        direction: Direction::Read.into(),
        tid: 1251,
        connection_id: 43,
        ..Event::default()
    }
}

fn event_ipv6_binary() -> Event {
    let payload: Vec<u8> = (0..=255).collect();
    Event {
        timestamp: 1_754_144_172_000_000_001,
        uuid: "1234_1252_curl_5_1_[2001:db8::1]:43211-[2001:db8::2]:8443".to_owned(),
        src_ip: "2001:db8::1".to_owned(),
        src_port: 43211,
        dst_ip: "2001:db8::2".to_owned(),
        dst_port: 8443,
        pid: 1234,
        pname: "curl".to_owned(),
        length: 256,
        payload: payload.into(),
        direction: Direction::Written.into(),
        tid: 1252,
        connection_id: 44,
        ..Event::default()
    }
}

/// As the original tool sends it: fields 1 to 11 only.
fn event_old() -> Event {
    let payload = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    Event {
        timestamp: 1_754_144_173_000_000_000,
        uuid: "4321_4321_curl_5_0_10.0.0.2:43212-93.184.216.34:443".to_owned(),
        src_ip: "10.0.0.2".to_owned(),
        src_port: 43212,
        dst_ip: "93.184.216.34".to_owned(),
        dst_port: 443,
        pid: 4321,
        pname: "curl".to_owned(),
        r#type: Protocol::Http1Response as u32,
        length: payload.len() as u32,
        payload: payload.as_slice().into(),
        ..Event::default()
    }
}

/// Text that a terminal would obey, and that JSON must escape.
fn event_hostile() -> Event {
    let payload =
        "clear \u{1b}[2J\u{9b}1m, a return\rover it, turned \u{202e}round, \"quoted\" \u{e9}\u{1f600}\n";
    Event {
        timestamp: 1_754_144_174_000_000_000,
        uuid: "77_77_\u{1b}[31mevil\n_0_1_10.0.0.2:1-10.0.0.3:2".to_owned(),
        src_ip: "10.0.0.2".to_owned(),
        src_port: 1,
        dst_ip: "10.0.0.3".to_owned(),
        dst_port: 2,
        pid: 77,
        pname: "\u{1b}[31mevil\n".to_owned(),
        length: payload.len() as u32,
        payload: payload.as_bytes().into(),
        direction: Direction::Written.into(),
        app: "\u{2028}\u{feff}\u{fffd}".to_owned(),
        ..Event::default()
    }
}

fn extremes_low() -> Event {
    Event { timestamp: i64::MIN, pid: i64::MIN, direction: i32::MIN, ..Event::default() }
}

fn extremes_high() -> Event {
    Event {
        timestamp: i64::MAX,
        src_port: u32::MAX,
        dst_port: u32::MAX,
        pid: i64::MAX,
        r#type: u32::MAX,
        length: u32::MAX,
        direction: i32::MAX,
        tid: u32::MAX,
        uid: u32::MAX,
        connection_id: u64::MAX,
        stream_offset: u64::MAX,
        lost_before: u64::MAX,
        process_start: u64::MAX,
        truncated: true,
        ..Event::default()
    }
}

/// Field 199, which no release knows, with the bytes "later" (tag 199 << 3 | 2 as a varint, the length, the bytes).
const LATER: &[u8] = b"\xba\x0c\x05later";

/// An event whose enum has a value, and whose messages have a field, of a later release.
fn future_fields() -> Vector {
    let entry = event(11, Event { direction: 7, ..event_old() });
    let Some(Payload::EventPayload(event)) = &entry.payload else { unreachable!() };
    let event = [&event.encode_to_vec(), LATER].concat();
    let head = LogEntry { log_type: entry.log_type, ..LogEntry::default() }.encode_to_vec();
    let tail = LogEntry { seq: entry.seq, ..LogEntry::default() }.encode_to_vec();
    // Field 2, event_payload: its tag and length.
    let mut tag = vec![0x12];
    prost::encoding::encode_varint(event.len() as u64, &mut tag);
    Vector { name: "future_fields", entry, bytes: [&head, &tag, &event, &tail, LATER].concat() }
}

/// A kind of message that this release does not know.
fn future_kind() -> Vector {
    let entry = LogEntry { log_type: 3, seq: 12, payload: None };
    Vector { name: "future_kind", bytes: [&entry.encode_to_vec(), LATER].concat(), entry }
}

//! Recordings to be played to clients: HTTP/1.1 conversations on many connections, written as `plaintap record` does.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use plaintap_proto::{Direction, Event, Heartbeat, LogEntry, LogType, Protocol, log_entry::Payload};
use prost::Message;

/// The connections, which take turns.
const CONNECTIONS: u64 = 64;
/// The largest payload of an event.
const PIECE: usize = 16 << 10;
/// Bytes of the responses' bodies, one after the other: what a page's parts are, more or less.
const BODIES: [usize; 8] = [200, 1_500, 4_000, 12_000, 30_000, 90_000, 300, 700];
/// 2025-01-01, in nanoseconds since 1970.
const START: i64 = 1_735_689_600_000_000_000;
/// Bytes of a device's events, one after the other: 600 on average.
const EVENTS: [usize; 6] = [180, 1_000, 250, 1_400, 150, 620];
/// The number of a device's first event, behind a log line.
pub const FIRST_EVENT: u64 = 2;

/// Writes a recording of about `bytes` bytes to the file `path`.
pub fn write(path: &str, bytes: u64) -> Result<()> {
    let mut recording = Recording::create(Path::new(path), START, 20_000)?;
    let text: String =
        (0..2_000).map(|line| format!("<p>line {line} of a page, as long as lines are</p>\n")).collect();
    for turn in 0.. {
        if recording.written >= bytes {
            break;
        }
        let connection = turn % CONNECTIONS;
        let size = BODIES[(turn / CONNECTIONS) as usize % BODIES.len()];
        let request = format!(
            "GET /page/{turn} HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
        );
        recording.say(connection, Direction::Written, Protocol::Http1Request, request.as_bytes())?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {size}\r\n\r\n");
        let response = [head.as_bytes(), &text.as_bytes()[..size]].concat();
        for piece in response.chunks(PIECE) {
            recording.say(connection, Direction::Read, Protocol::Http1Response, piece)?;
        }
    }
    recording.out.flush().context("writing the recording")
}

/// Writes what the device number `index` has to say to the file `path`: a log line, a heartbeat that names the device's run,
/// and `events` events, `between` apart and numbered from `FIRST_EVENT`, the first of which comes `after` the heartbeat.
pub fn write_device(
    path: &Path,
    index: usize,
    events: u64,
    between: Duration,
    after: Duration,
) -> Result<()> {
    let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).context("too long");
    let start = START + nanoseconds(after)? - nanoseconds(between)? * FIRST_EVENT as i64;
    let mut recording = Recording::create(path, start, nanoseconds(between)?)?;
    recording.seq = FIRST_EVENT - 1;
    recording.put(LogType::ProcessLog, 1, Payload::RunLog("msg=\"a device of a bench\"".to_owned()))?;
    let heartbeat = Heartbeat {
        timestamp: START / 1_000_000_000,
        message: "heartbeat:0".to_owned(),
        run_id: format!("{:016x}", 0xbe0c_0000_0000_0000 + index as u64),
        ..Heartbeat::default()
    };
    recording.put(LogType::Heartbeat, 0, Payload::HeartbeatPayload(heartbeat))?;
    let text = "a line of an answer, as long as lines are\n".repeat(40);
    for event in 0..events {
        let (way, protocol, head) = match event % 2 {
            0 => (
                Direction::Written,
                Protocol::Http1Request,
                "GET /api HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
            ),
            _ => (Direction::Read, Protocol::Http1Response, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        };
        let size = EVENTS[event as usize % EVENTS.len()];
        let payload = [head, &text[..size - head.len()]].concat();
        recording.say(event / 2 % CONNECTIONS, way, protocol, payload.as_bytes())?;
    }
    recording.out.flush().context("writing the recording")
}

struct Recording {
    out: BufWriter<File>,
    /// The time of a message with number 0, and between two, in nanoseconds.
    start: i64,
    step: i64,
    seq: u64,
    written: u64,
    /// Of each connection, where it stands: read, written.
    offsets: [[u64; 2]; CONNECTIONS as usize],
}

impl Recording {
    fn create(path: &Path, start: i64, step: i64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { out, start, step, seq: 0, written: 0, offsets: [[0; 2]; CONNECTIONS as usize] })
    }

    fn say(
        &mut self,
        connection: u64,
        direction: Direction,
        protocol: Protocol,
        payload: &[u8],
    ) -> Result<()> {
        let way = usize::from(direction == Direction::Written);
        self.seq += 1;
        let (port, pid) = (40_000 + connection as u32, 1_000 + connection as i64 / 8);
        let event = Event {
            timestamp: self.start + self.seq as i64 * self.step,
            uuid: format!("{pid}_{pid}_bench_0_{way}_10.0.0.2:{port}-192.0.2.1:443"),
            src_ip: "10.0.0.2".to_owned(),
            src_port: port,
            dst_ip: "192.0.2.1".to_owned(),
            dst_port: 443,
            pid,
            pname: "bench".to_owned(),
            r#type: protocol as u32,
            length: payload.len() as u32,
            payload: payload.to_vec().into(),
            direction: direction.into(),
            tid: pid as u32,
            uid: 10_000,
            connection_id: connection + 1,
            stream_offset: self.offsets[connection as usize][way],
            server_name: "www.example.org".to_owned(),
            ..Event::default()
        };
        self.offsets[connection as usize][way] += payload.len() as u64;
        self.put(LogType::Event, self.seq, Payload::EventPayload(event))
    }

    fn put(&mut self, kind: LogType, seq: u64, payload: Payload) -> Result<()> {
        let entry = LogEntry { log_type: kind.into(), seq, payload: Some(payload) };
        let message = entry.encode_length_delimited_to_vec();
        self.written += message.len() as u64;
        self.out.write_all(&message).context("writing the recording")
    }
}

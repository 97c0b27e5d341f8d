//! A recording to be played to clients: HTTP/1.1 conversations on many connections, written as `plaintap record` does.

use std::{
    fs::File,
    io::{BufWriter, Write},
};

use anyhow::{Context, Result};
use plaintap_proto::{Direction, Event, LogEntry, LogType, Protocol, log_entry::Payload};
use prost::Message;

/// The connections, which take turns.
const CONNECTIONS: u64 = 64;
/// The largest payload of an event.
const PIECE: usize = 16 << 10;
/// Bytes of the responses' bodies, one after the other: what a page's parts are, more or less.
const BODIES: [usize; 8] = [200, 1_500, 4_000, 12_000, 30_000, 90_000, 300, 700];
/// 2025-01-01, in nanoseconds since 1970.
const START: i64 = 1_735_689_600_000_000_000;

/// Writes a recording of about `bytes` bytes to the file `path`.
pub fn write(path: &str, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {path}"))?;
    let mut recording = Recording {
        out: BufWriter::with_capacity(1 << 20, file),
        seq: 0,
        written: 0,
        offsets: [[0; 2]; CONNECTIONS as usize],
    };
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

struct Recording {
    out: BufWriter<File>,
    seq: u64,
    written: u64,
    /// Of each connection, where it stands: read, written.
    offsets: [[u64; 2]; CONNECTIONS as usize],
}

impl Recording {
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
            timestamp: START + self.seq as i64 * 20_000,
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
        let entry = LogEntry {
            log_type: LogType::Event.into(),
            seq: self.seq,
            payload: Some(Payload::EventPayload(event)),
        };
        let message = entry.encode_length_delimited_to_vec();
        self.written += message.len() as u64;
        self.out.write_all(&message).context("writing the recording")
    }
}

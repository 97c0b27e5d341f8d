//! Prints what plaintapd sends: one line a message.
//!
//! `cargo run -- [URL]`; without one, `ws://127.0.0.1:28257/`.

#[allow(clippy::enum_variant_names, reason = "generated")]
mod ecaptureq;

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use async_tungstenite::{
    smol::connect_async,
    tungstenite::{Message as Frame, protocol::frame::coding::CloseCode},
};
use ecaptureq::{LogEntry, LogType, log_entry::Payload};
use futures_lite::StreamExt;
use prost::Message;

const PROTOCOLS: &[&str] =
    &["?", "http1-request", "http2-request", "http1-response", "http2-response", "websocket"];
const DIRECTIONS: &[&str] = &["?", "read", "written"];

/// Text that harms no terminal: ASCII as it is, `\xHH` for every other byte and the backslash.
fn printable(data: impl AsRef<[u8]>) -> String {
    let show = |&byte: &u8| match byte {
        b' '..=b'~' if byte != b'\\' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    data.as_ref().iter().map(show).collect()
}

/// The number's name, or the number where a newer agent knows more of them.
fn name(names: &[&str], number: i64) -> String {
    let known = usize::try_from(number).ok().and_then(|place| names.get(place));
    known.map_or_else(|| number.to_string(), |name| name.to_string())
}

/// What is printed for one binary message.
fn line(message: &[u8]) -> String {
    let Ok(entry) = LogEntry::decode(message) else {
        return format!("undecodable bytes={}", message.len());
    };
    let seq = entry.seq;
    match (LogType::try_from(entry.log_type), &entry.payload) {
        (Ok(LogType::Event), Some(Payload::EventPayload(event))) => format!(
            "event seq={seq} {}[{}/{}] {} {}:{}->{}:{} {} connection={} offset={} lost_before={} {}",
            printable(&event.pname),
            event.pid,
            event.tid,
            name(DIRECTIONS, event.direction.into()),
            printable(&event.src_ip),
            event.src_port,
            printable(&event.dst_ip),
            event.dst_port,
            name(PROTOCOLS, event.r#type.into()),
            event.connection_id,
            event.stream_offset,
            event.lost_before,
            printable(&event.payload),
        ),
        (Ok(LogType::Heartbeat), Some(Payload::HeartbeatPayload(beat))) => format!(
            "heartbeat count={} run={} last_seq={} lost_events={} missed_messages={}",
            beat.count,
            printable(&beat.run_id),
            beat.last_seq,
            beat.lost_events,
            beat.missed_messages,
        ),
        (Ok(LogType::ProcessLog), Some(Payload::RunLog(text))) => {
            format!("log seq={seq} {}", printable(text))
        }
        _ => format!("unknown log_type={} seq={seq}", entry.log_type),
    }
}

/// Prints all that comes, until the agent ends. Another close is an error: 4008, for one, is "too slow".
async fn follow(url: &str) -> Result<(), Box<dyn Error>> {
    let (mut socket, _) = connect_async(url).await?;
    while let Some(frame) = socket.next().await {
        match frame? {
            Frame::Binary(message) => writeln!(io::stdout(), "{}", line(&message))?,
            Frame::Close(Some(close)) if !matches!(close.code, CloseCode::Normal | CloseCode::Away) => {
                return Err(format!("closed: {close}").into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let url = env::args().nth(1).unwrap_or_else(|| "ws://127.0.0.1:28257/".to_owned());
    match smol::block_on(follow(&url)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;

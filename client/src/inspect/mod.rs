//! `plaintap inspect`: every message as its bytes say it, for those who write a server or a client.

mod wire;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal, Stdout, Write},
    time::Instant,
};

use plaintap_proto::{LogEntry, Protocol, log_entry::Payload};
use prost::{DecodeError, bytes::Bytes};

use crate::{
    commands::InspectArgs,
    consume::{self, Consumer},
    note::{self, counted, note},
    show::{self, time_of_day},
    text,
};
use wire::{Fault, Field, Value};

/// Of a payload in a compact line, so many bytes at most.
const GLIMPSE: usize = 48;

/// Shows messages until there are enough, or the stream ends; then what there was.
pub fn run(args: InspectArgs) -> Result<(), consume::Error> {
    let colour = !args.no_color && io::stdout().is_terminal() && show::takes_colour(|name| env::var_os(name));
    let (url, reconnect) = (args.url.clone(), !args.no_reconnect);
    let out = BufWriter::with_capacity(64 << 10, io::stdout());
    consume::run(Inspect { out, args, colour, tally: Tally::default() }, &url, reconnect)
}

struct Inspect {
    out: BufWriter<Stdout>,
    args: InspectArgs,
    colour: bool,
    tally: Tally,
}

impl Consumer for Inspect {
    fn message(&mut self, bytes: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()> {
        let kind = self.tally.count(bytes, entry);
        let head = format!("#{} {kind}, {}", self.tally.messages, counted(bytes.len() as u64, "byte"));
        let (fields, fault) = wire::fields(bytes);
        // Should the two ever differ, the decoder's word counts.
        let fault = entry
            .err()
            .map(|error| fault.unwrap_or_else(|| Fault { offset: bytes.len(), reason: note::chain(error) }));
        let block = if self.args.compact {
            self.coloured(&head) + &compact(entry.ok(), &fields, fault.as_ref())
        } else {
            self.coloured(&head) + &self.full(bytes, &fields, fault.as_ref())
        };
        self.out.write_all(block.as_bytes())
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.tally.messages += 1;
        *self.tally.kinds.entry("text, where binary belongs").or_default() += 1;
        let number = self.tally.messages;
        let shown: String = text.chars().take(self.args.max_payload).collect();
        let more = if shown.len() < text.len() { " ..." } else { "" };
        writeln!(self.out, "#{number} text, where binary belongs: {}{more}", text::one_line(&shown))
    }

    fn idle(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn enough(&self) -> bool {
        self.args.count.is_some_and(|count| self.tally.messages >= count.get())
    }

    fn finish(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        note(&self.tally.to_string());
        flushed
    }

    fn place(&self) -> String {
        "stdout".to_owned()
    }

    fn is_for_stdout(&self) -> bool {
        true
    }
}

impl Inspect {
    fn coloured(&self, head: &str) -> String {
        if self.colour { format!("\x1b[32m{head}\x1b[0m") } else { head.to_owned() }
    }

    fn full(&self, bytes: &[u8], fields: &[Field], fault: Option<&Fault>) -> String {
        let mut block = "\n".to_owned();
        for field in fields {
            let indent = "  ".repeat(field.depth + 1);
            let name = match field.name {
                Some(name) => name.to_owned(),
                None => format!("unknown field {} at byte {}", field.number, field.offset),
            };
            match &field.value {
                Value::Unsigned(number) => _ = writeln!(block, "{indent}{name}: {number}{}", said(field)),
                Value::Signed(number) => _ = writeln!(block, "{indent}{name}: {number}{}", said(field)),
                Value::Text(text) => _ = writeln!(block, "{indent}{name}: {}", text::one_line(text)),
                Value::Message(length) => _ = writeln!(block, "{indent}{name}: {length} bytes"),
                Value::Bytes(content) => {
                    let _ = writeln!(block, "{indent}{name}: {} bytes", content.len());
                    let hex = self.args.hex || field.name.is_none();
                    block += &self.bytes(content, hex, &format!("{indent}  "));
                }
            }
        }
        if let Some(Fault { offset, reason }) = fault {
            let _ = writeln!(block, "  does not decode: at byte {offset}, {}", text::one_line(reason));
            block += &self.bytes(bytes, true, "  ");
        }
        block += "\n";
        block
    }

    fn bytes(&self, bytes: &[u8], hex: bool, indent: &str) -> String {
        let mut block = String::new();
        let shown = &bytes[..bytes.len().min(self.args.max_payload)];
        let lines = if hex || !text::is_text(shown) { text::hex_dump(shown) } else { text::lines(shown) };
        for line in lines.lines() {
            let _ = writeln!(block, "{indent}{line}");
        }
        if shown.len() < bytes.len() {
            let left_out = counted((bytes.len() - shown.len()) as u64, "byte");
            let _ = writeln!(block, "{indent}... {left_out} more not shown (--max-payload)");
        }
        block
    }
}

/// The rest of a message's line.
fn compact(entry: Option<&LogEntry>, fields: &[Field], fault: Option<&Fault>) -> String {
    let mut line = String::new();
    if let Some(entry) = entry {
        if entry.seq > 0 {
            let _ = write!(line, ", seq {}", entry.seq);
        }
        match &entry.payload {
            Some(Payload::EventPayload(event)) => {
                let glimpse = &event.payload[..event.payload.len().min(GLIMPSE)];
                let glimpse = text::one_line(&String::from_utf8_lossy(glimpse));
                let more = if event.payload.len() > GLIMPSE { " ..." } else { "" };
                let _ = write!(line, ": {}: {glimpse}{more}", show::headline(event));
            }
            Some(Payload::HeartbeatPayload(heartbeat)) => {
                let _ = write!(line, ": {}", show::heartbeat(heartbeat).trim_end());
            }
            Some(Payload::RunLog(text)) => _ = write!(line, ": {}", text::one_line(text)),
            None => {}
        }
    }
    let unknown: Vec<String> =
        fields.iter().filter(|field| field.name.is_none()).map(|field| field.number.to_string()).collect();
    if !unknown.is_empty() {
        let _ = write!(line, " (unknown fields: {})", unknown.join(", "));
    }
    if let Some(Fault { offset, reason }) = fault {
        let _ = write!(line, ": does not decode: at byte {offset}, {}", text::one_line(reason));
    }
    line + "\n"
}

/// What a number stands for.
fn said(field: &Field) -> String {
    match (field.depth, field.name, &field.value) {
        (1, Some("timestamp"), Value::Signed(at)) => {
            // An event's is in nanoseconds, a heartbeat's in seconds.
            let at = if at.unsigned_abs() > 1_000_000_000_000_000 {
                *at
            } else {
                at.saturating_mul(1_000_000_000)
            };
            format!(" ({})", time_of_day(at))
        }
        (1, Some("type"), Value::Unsigned(value)) => {
            format!(" ({})", protocol(u32::try_from(*value).unwrap_or(0)))
        }
        (1, Some("direction"), Value::Signed(1)) => " (read)".to_owned(),
        (1, Some("direction"), Value::Signed(2)) => " (written)".to_owned(),
        _ => String::new(),
    }
}

fn protocol(value: u32) -> &'static str {
    match Protocol::from_wire(value) {
        Protocol::Unknown => "unknown protocol",
        Protocol::Http1Request => "HTTP/1 request",
        Protocol::Http2Request => "HTTP/2 request",
        Protocol::Http1Response => "HTTP/1 response",
        Protocol::Http2Response => "HTTP/2 response",
        Protocol::WebSocket => "WebSocket",
    }
}

/// What there was.
#[derive(Default)]
struct Tally {
    messages: u64,
    /// Of messages, with their headers left out.
    bytes: u64,
    kinds: BTreeMap<&'static str, u64>,
    protocols: BTreeMap<&'static str, u64>,
    began: Option<Instant>,
    last: Option<Instant>,
}

impl Tally {
    fn count(&mut self, bytes: &[u8], entry: Result<&LogEntry, &DecodeError>) -> &'static str {
        self.messages += 1;
        self.bytes += bytes.len() as u64;
        let now = Instant::now();
        self.began.get_or_insert(now);
        self.last = Some(now);
        let kind = match entry.map(|entry| &entry.payload) {
            Ok(Some(Payload::EventPayload(event))) => {
                *self.protocols.entry(protocol(event.r#type)).or_default() += 1;
                "event"
            }
            Ok(Some(Payload::HeartbeatPayload(_))) => "heartbeat",
            Ok(Some(Payload::RunLog(_))) => "log line",
            Ok(None) => "message of an unknown kind",
            Err(_) => "not understood",
        };
        *self.kinds.entry(kind).or_default() += 1;
        kind
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}, {}", counted(self.messages, "message"), counted(self.bytes, "byte"))?;
        if let (Some(began), Some(last)) = (self.began, self.last) {
            let seconds = (last - began).as_secs_f64();
            write!(f, " in {seconds:.1} s")?;
            if seconds > 0.0 {
                write!(f, " ({:.1} messages/s)", self.messages as f64 / seconds)?;
            }
        }
        for (index, (kind, number)) in self.kinds.iter().enumerate() {
            write!(f, "{} {kind} {number}", if index == 0 { ":" } else { "," })?;
            if *kind == "event" {
                // A request in many pieces is as many events of its type.
                let protocols: Vec<String> =
                    self.protocols.iter().map(|(name, number)| format!("{number} of type {name}")).collect();
                write!(f, " ({})", protocols.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use plaintap_proto::Event;

    use super::*;

    #[test]
    fn pieces_of_a_request_are_not_counted_as_requests() {
        let mut tally = Tally::default();
        for r#type in [1, 1, 1, 3] {
            let payload = Some(Payload::EventPayload(Event { r#type, ..Event::default() }));
            tally.count(&[], Ok(&LogEntry { payload, ..LogEntry::default() }));
        }
        let told = tally.to_string();
        assert!(told.ends_with(": event 4 (3 of type HTTP/1 request, 1 of type HTTP/1 response)"), "{told}");
    }
}

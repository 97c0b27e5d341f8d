//! Messages as an older server would have sent them, had there been nothing but text on the wire.

use std::{collections::HashMap, fmt::Write};

use plaintap_proto::{Direction, Event, LogEntry, LogType, Protocol, log_entry::Payload};

use crate::{
    http::{Assembler, Item, Message, Origin, content},
    note::counted,
    show, time,
};

/// Bytes of a payload; of a longer one the rest is counted at its end.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// Connections of which it is remembered who opened them.
const MAX_SIDES: usize = 4096;
/// A body that ends with its connection is complete when there was no more of it for so many seconds.
const QUIET: i64 = 2;

type Side = (i64, (String, u16), (String, u16));

/// What is known of the connections.
#[derive(Default)]
pub struct Plain {
    assembler: Assembler,
    run_id: String,
    /// The connections that the process did not open but accept.
    accepted: HashMap<Side, ()>,
}

impl Plain {
    /// What a message becomes.
    pub fn entry(&mut self, entry: &LogEntry) -> Vec<LogEntry> {
        match &entry.payload {
            Some(Payload::EventPayload(event)) => {
                self.learn(event);
                let items = self.assembler.push(event);
                self.items(&items)
            }
            Some(Payload::RunLog(line)) => vec![log(line.clone())],
            Some(Payload::HeartbeatPayload(heartbeat)) if heartbeat.run_id != self.run_id => {
                // Another run gives its connections the same numbers.
                self.run_id.clone_from(&heartbeat.run_id);
                self.finish()
            }
            Some(Payload::HeartbeatPayload(heartbeat)) => {
                let before = heartbeat.timestamp.saturating_sub(QUIET).saturating_mul(1_000_000_000);
                let items = self.assembler.rest(before);
                self.items(&items)
            }
            None => vec![],
        }
    }

    /// What was begun and not completed.
    pub fn finish(&mut self) -> Vec<LogEntry> {
        let items = self.assembler.finish();
        self.items(&items)
    }

    fn learn(&mut self, event: &Event) {
        if matches!(
            (event.r#type, show::direction(event)),
            (1 | 2, Direction::Read) | (3 | 4, Direction::Written)
        ) {
            if self.accepted.len() >= MAX_SIDES {
                self.accepted.clear();
            }
            let port = |port| u16::try_from(port).unwrap_or(0);
            let (client, server) =
                ((event.src_ip.clone(), port(event.src_port)), (event.dst_ip.clone(), port(event.dst_port)));
            self.accepted.insert((event.pid, client, server), ());
        }
    }

    fn items(&self, items: &[Item]) -> Vec<LogEntry> {
        items.iter().flat_map(|item| self.item(item)).collect()
    }

    fn item(&self, item: &Item) -> Vec<LogEntry> {
        match item {
            Item::Exchange(exchange) => {
                let origin = &exchange.origin;
                let http2 = exchange.stream.is_some();
                let request = exchange.request.as_ref().map(|request| {
                    let mut head =
                        format!("{} {} {}\r\n", request.method, request.target, request.message.version);
                    if http2 && !request.authority.is_empty() {
                        let _ = write!(head, "host: {}\r\n", request.authority);
                    }
                    let protocol = if http2 { Protocol::Http2Request } else { Protocol::Http1Request };
                    self.event(origin, true, protocol, request.message.began, whole(head, &request.message))
                });
                let response = exchange.response.as_ref().map(|response| {
                    let (version, reason) = (&response.message.version, &response.reason);
                    let head =
                        format!("{version} {} {reason}", response.status).trim_end().to_owned() + "\r\n";
                    let protocol = if http2 { Protocol::Http2Response } else { Protocol::Http1Response };
                    self.event(
                        origin,
                        false,
                        protocol,
                        response.message.began,
                        whole(head, &response.message),
                    )
                });
                request.into_iter().chain(response).collect()
            }
            Item::WebSocket(message) => {
                let payload = message.body.bytes.clone();
                vec![self.event(
                    &message.origin,
                    message.from_client,
                    Protocol::WebSocket,
                    message.at,
                    payload,
                )]
            }
            Item::Raw(event) => vec![entry(older(event))],
            Item::Gap(gap) => {
                vec![warning(&gap.origin, &format!("{} were not seen", counted(gap.bytes, "byte")))]
            }
            Item::Note(origin, what) => vec![warning(origin, what)],
        }
    }

    fn event(
        &self,
        origin: &Origin,
        by_client: bool,
        protocol: Protocol,
        at: i64,
        mut payload: Vec<u8>,
    ) -> LogEntry {
        let accepted =
            self.accepted.contains_key(&(origin.pid, origin.client.clone(), origin.server.clone()));
        let written = u8::from(by_client != accepted);
        let left_out = payload.len().saturating_sub(MAX_PAYLOAD);
        if left_out > 0 {
            payload.truncate(MAX_PAYLOAD);
            payload.extend(format!("\r\n... {} more", counted(left_out as u64, "byte")).bytes());
        }
        let (src, dst) = (&origin.client, &origin.server);
        let side = |(ip, port): &(String, u16)| match ip.contains(':') {
            true => format!("[{ip}]:{port}"),
            false => format!("{ip}:{port}"),
        };
        // Which thread it was is not known of what was put together; the first one's number is the process's.
        let (pid, comm) = (origin.pid, &origin.process);
        let uuid = match src.0.is_empty() || dst.0.is_empty() {
            true => format!("sock:{pid}_{pid}_{comm}_0_{written}_0.0.0.0:0-0.0.0.0:0_0"),
            false => format!("{pid}_{pid}_{comm}_0_{written}_{}-{}", side(src), side(dst)),
        };
        let ip = |ip: &str| if ip.is_empty() { "0.0.0.0".to_owned() } else { ip.to_owned() };
        entry(Event {
            timestamp: at,
            uuid,
            src_ip: ip(&src.0),
            src_port: src.1.into(),
            dst_ip: ip(&dst.0),
            dst_port: dst.1.into(),
            pid,
            pname: comm.clone(),
            r#type: protocol as u32,
            length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            payload: payload.into(),
            ..Event::default()
        })
    }
}

/// A message as HTTP/1 would write it without any coding: what named a coding or a length is left out, so that a viewer
/// that looks at them does not decode again.
fn whole(head: String, message: &Message) -> Vec<u8> {
    let decoded = content::decode(message, MAX_PAYLOAD);
    let failed = decoded.failed.is_some();
    let mut text = head;
    for header in &message.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") || is("content-length") || is("content-encoding") && !failed {
            continue;
        }
        let _ = write!(text, "{}: {}\r\n", header.name, header.value);
    }
    if !decoded.bytes.is_empty() {
        let _ = write!(text, "content-length: {}\r\n", decoded.bytes.len());
    }
    text += "\r\n";
    [text.as_bytes(), &decoded.bytes].concat()
}

/// An event's fields 1 to 11.
fn older(event: &Event) -> Event {
    Event {
        timestamp: event.timestamp,
        uuid: event.uuid.clone(),
        src_ip: event.src_ip.clone(),
        src_port: event.src_port,
        dst_ip: event.dst_ip.clone(),
        dst_port: event.dst_port,
        pid: event.pid,
        pname: event.pname.clone(),
        r#type: event.r#type,
        length: event.length,
        payload: event.payload.clone(),
        ..Event::default()
    }
}

fn entry(event: Event) -> LogEntry {
    LogEntry {
        log_type: LogType::Event.into(),
        payload: Some(Payload::EventPayload(event)),
        ..LogEntry::default()
    }
}

fn warning(origin: &Origin, what: &str) -> LogEntry {
    log(format!("{} WRN {}[{}]: {what}", time::utc_s(), origin.process, origin.pid))
}

fn log(line: String) -> LogEntry {
    LogEntry {
        log_type: LogType::ProcessLog.into(),
        payload: Some(Payload::RunLog(line)),
        ..LogEntry::default()
    }
}

//! A stream as `.pcapng`: TCP connections that carry the plaintext, made up from events, for Wireshark and its like.
//!
//! Addresses, directions, times and bytes are the stream's; handshakes, acknowledgements and ends are made up, so that
//! readers follow a connection. A segment's number comes from the stream's offsets: what was not seen is a missing segment.
//! State is bounded: [`MAX_FLOWS`] connections and as many names.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use plaintap_proto::{Direction, Event, LogEntry, log_entry::Payload};
use prost::bytes::Bytes;

use super::{
    Recording,
    blocks::{self, Way},
    segment::{ACK, FIN, PUSH, SYN, Segment},
};
use crate::{
    http::joined::{Joined, Key, side},
    note::counted,
    show, text,
};

const MAX_FLOWS: usize = 4096;
/// Bytes of a segment's payload; an event's fit.
const MAX_SEGMENT: usize = 32 << 10;
/// TCP's numbers can't tell a larger hole from going back.
const MAX_HOLE: u64 = 1 << 30;
/// Characters of a name in a comment.
const MAX_NAME: usize = 200;

/// The connections of one file.
#[derive(Default)]
pub struct Pcapng {
    flows: HashMap<Key, Flow>,
    /// Who has which pair of addresses.
    pairs: HashMap<(SocketAddr, SocketAddr), Key>,
    /// Who was used when.
    recent: BTreeMap<u64, Key>,
    clock: u64,
    names: HashSet<(IpAddr, String)>,
    /// Connections whose address is not known, so far.
    unknown: u32,
    run_id: String,
}

struct Flow {
    client: SocketAddr,
    server: SocketAddr,
    /// The traced process is who opened the connection.
    process_is_client: bool,
    /// What a reader must know of the addresses; empty if they are the real ones.
    remark: String,
    /// What the process read and what it wrote.
    joined: [Joined; 2],
    started: [bool; 2],
    /// The next number of the client's and of the server's bytes.
    next: [u32; 2],
    /// The time of its last packet.
    at: u64,
    used: u64,
}

impl Recording for Pcapng {
    fn begin(&mut self) -> Vec<u8> {
        *self = Self { run_id: std::mem::take(&mut self.run_id), ..Self::default() };
        blocks::head()
    }

    fn message(&mut self, _: &Bytes, entry: &LogEntry) -> Vec<Vec<u8>> {
        match &entry.payload {
            Some(Payload::EventPayload(event)) => vec![self.event(event)],
            // Another run gives its connections the same numbers.
            Some(Payload::HeartbeatPayload(heartbeat)) if heartbeat.run_id != self.run_id => {
                self.run_id.clone_from(&heartbeat.run_id);
                self.end()
            }
            _ => vec![],
        }
    }

    fn end(&mut self) -> Vec<Vec<u8>> {
        let mut all = vec![];
        while let Some((_, key)) = self.recent.pop_first() {
            let mut out = vec![];
            self.close(&key, &mut out);
            all.push(out);
        }
        all
    }
}

impl Pcapng {
    fn event(&mut self, event: &Event) -> Vec<u8> {
        let mut out = vec![];
        let key = Key::of(event);
        let at = u64::try_from(event.timestamp).unwrap_or(0);
        let mut flow = match self.flows.remove(&key) {
            Some(flow) => flow,
            None => self.open(&key, event, &mut out),
        };
        self.name(event, &flow, &mut out);
        let (mut missing, again) = flow.joined[side(event)].place(event, false);
        if !std::mem::replace(&mut flow.started[side(event)], true) {
            // What came before we joined is not missing.
            missing = event.lost_before;
        }
        if missing > MAX_HOLE {
            flow.end(&mut out);
            flow.next = [0; 2];
            flow.begin(at, &mut out);
        }
        flow.at = at;
        let by_client = (side(event) == 1) == flow.process_is_client;
        let sender = usize::from(!by_client);
        if missing <= MAX_HOLE {
            flow.next[sender] = flow.next[sender].wrapping_add(missing as u32);
        }
        let comment = comment(event, &flow, missing);
        let payload = &event.payload[again.min(event.payload.len())..];
        for piece in payload.chunks(MAX_SEGMENT) {
            out.extend(flow.packet(by_client, ACK | PUSH, piece, &comment));
        }
        self.clock += 1;
        self.recent.remove(&flow.used);
        flow.used = self.clock;
        self.recent.insert(self.clock, key.clone());
        self.flows.insert(key, flow);
        if self.flows.len() > MAX_FLOWS
            && let Some((_, oldest)) = self.recent.pop_first()
        {
            self.close(&oldest, &mut out);
        }
        out
    }

    fn open(&mut self, key: &Key, event: &Event, out: &mut Vec<u8>) -> Flow {
        let process_is_client = match (event.r#type, show::direction(event)) {
            (1 | 2, Direction::Read) | (3 | 4, Direction::Written) => false,
            // Most programs that are looked at are clients.
            _ => true,
        };
        let (mut client, server, mut remark) = self.addresses(event);
        if let Some(other) = self.pairs.get(&(client, server)).cloned() {
            if self.flows.get(&other).is_some_and(|flow| flow.process_is_client != process_is_client) {
                // Seen at both of its ends, on one computer. A reader would take the two for one.
                while self.pairs.contains_key(&(client, server)) {
                    client.set_port(client.port().wrapping_add(1).max(1));
                }
                let real = event.src_port;
                remark = format!(
                    "port {} is made up for {real}: this is that connection's other end",
                    client.port()
                );
            } else {
                // The pair's next connection, or the next SSL object on it.
                self.close(&other, out);
            }
        }
        self.pairs.insert((client, server), key.clone());
        let mut flow = Flow {
            client,
            server,
            process_is_client,
            remark,
            joined: Default::default(),
            started: [false; 2],
            next: [0; 2],
            at: 0,
            used: 0,
        };
        // Readers know a name from where it stands in the file on.
        self.name(event, &flow, out);
        flow.begin(u64::try_from(event.timestamp).unwrap_or(0), out);
        flow
    }

    /// Who opened the connection and who accepted it; made up, and said so, where it is not known.
    fn addresses(&mut self, event: &Event) -> (SocketAddr, SocketAddr, String) {
        let address = |ip: &str, port: u32| {
            let ip = ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified())?.to_canonical();
            Some(SocketAddr::new(ip, u16::try_from(port).ok().filter(|port| *port > 0)?))
        };
        let src = address(&event.src_ip, event.src_port);
        let dst = address(&event.dst_ip, event.dst_port);
        let (src, dst) = match (src, dst) {
            (Some(src), Some(dst)) if src.is_ipv4() == dst.is_ipv4() => return (src, dst, String::new()),
            (Some(_), Some(_)) => (None, None),
            known => known,
        };
        // Source: RFC 5737 and 3849, addresses for documentation.
        self.unknown += 1;
        let number = self.unknown;
        let port = 1024 + (number % 60_000) as u16;
        let host = 1 + (number / 60_000 % 250) as u8;
        let v4 = src.or(dst).is_none_or(|known| known.is_ipv4());
        let made_up = |network: u8, port| match v4 {
            true => SocketAddr::new(Ipv4Addr::new(192, 0, 2, network.max(host)).into(), port),
            false => SocketAddr::new(
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, network.into(), host.into()).into(),
                port,
            ),
        };
        let (client, server) = (src.unwrap_or(made_up(1, port)), dst.unwrap_or(made_up(254, 443)));
        (client, server, "an address is not known, and made up".to_owned())
    }

    /// Says the server's name, once.
    fn name(&mut self, event: &Event, flow: &Flow, out: &mut Vec<u8>) {
        let name = &event.server_name;
        let is_name = name.len() <= 255
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if name.is_empty() || !is_name || !flow.remark.is_empty() {
            return;
        }
        if self.names.len() >= MAX_FLOWS {
            self.names.clear();
        }
        if self.names.insert((flow.server.ip(), name.clone())) {
            out.extend(blocks::name(flow.server.ip(), name));
        }
    }

    fn close(&mut self, key: &Key, out: &mut Vec<u8>) {
        if let Some(mut flow) = self.flows.remove(key) {
            flow.end(out);
            self.recent.remove(&flow.used);
            self.pairs.remove(&(flow.client, flow.server));
        }
    }
}

impl Flow {
    fn begin(&mut self, at: u64, out: &mut Vec<u8>) {
        self.at = at;
        out.extend(self.packet(true, SYN, b"", &self.remark.clone()));
        out.extend(self.packet(false, SYN | ACK, b"", ""));
        out.extend(self.packet(true, ACK, b"", ""));
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend(self.packet(true, FIN | ACK, b"", ""));
        out.extend(self.packet(false, FIN | ACK, b"", ""));
        out.extend(self.packet(true, ACK, b"", ""));
    }

    fn packet(&mut self, by_client: bool, flags: u8, payload: &[u8], comment: &str) -> Vec<u8> {
        let (sender, receiver) = if by_client { (0, 1) } else { (1, 0) };
        let (from, to) = if by_client { (self.client, self.server) } else { (self.server, self.client) };
        let (seq, ack) = (self.next[sender], self.next[receiver]);
        let frame = Segment { from, to, by_client, seq, ack, flags, payload }.frame();
        // SYN and FIN take a number each.
        let length = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.next[sender] = seq.wrapping_add(length);
        let way = if by_client == self.process_is_client { Way::Out } else { Way::In };
        blocks::packet(self.at, &frame, way, comment)
    }
}

/// Whose bytes they are.
fn comment(event: &Event, flow: &Flow, missing: u64) -> String {
    let short = |name: &str| text::one_line(&name.chars().take(MAX_NAME).collect::<String>());
    let mut comment = format!("{}[{}]", short(&event.pname), event.pid);
    for more in [&event.app, &event.server_name] {
        if !more.is_empty() {
            comment = format!("{comment} {}", short(more));
        }
    }
    if missing > 0 {
        comment = format!("{comment}; {} missing before this", counted(missing, "byte"));
    }
    if event.truncated {
        comment += "; cut short by the agent's own limit";
    }
    if !flow.remark.is_empty() {
        comment = format!("{comment}; {}", flow.remark);
    }
    comment
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each packet's addresses, number and payload, of blocks that are all well formed.
    fn packets(mut file: &[u8]) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut packets = vec![];
        while !file.is_empty() {
            let (kind, length) = (word(file, 0), word(file, 4) as usize);
            assert_eq!(word(file, length - 4) as usize, length);
            if kind == 6 {
                let frame = &file[28..28 + word(file, 20) as usize];
                let ip = if frame[12] == 8 { 20 } else { 40 };
                let tcp = &frame[14 + ip..];
                let head = usize::from(tcp[12] >> 4) * 4;
                let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
                packets.push((tcp[..4].to_vec(), seq, tcp[head..].to_vec()));
            }
            file = &file[length..];
        }
        packets
    }

    fn event(id: u64, direction: Direction, offset: u64, payload: &[u8]) -> LogEntry {
        let event = Event {
            timestamp: 1_754_144_170_123_456_789,
            src_ip: "10.0.0.2".to_owned(),
            src_port: 1000,
            dst_ip: "10.0.0.3".to_owned(),
            dst_port: 443,
            connection_id: id,
            direction: direction.into(),
            stream_offset: offset,
            payload: payload.to_vec().into(),
            ..Event::default()
        };
        LogEntry { payload: Some(Payload::EventPayload(event)), ..LogEntry::default() }
    }

    fn recorded(entries: &[LogEntry]) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
        let mut pcapng = Pcapng::default();
        let mut file = pcapng.begin();
        for entry in entries {
            file.extend(pcapng.message(&Bytes::new(), entry).concat());
        }
        file.extend(pcapng.end().concat());
        assert!(pcapng.flows.is_empty() && pcapng.pairs.is_empty() && pcapng.recent.is_empty());
        packets(&file)
    }

    fn data(packets: &[(Vec<u8>, u32, Vec<u8>)]) -> Vec<(u32, &[u8])> {
        packets.iter().filter(|p| !p.2.is_empty()).map(|p| (p.1, &p.2[..])).collect()
    }

    #[test]
    fn numbers_follow_offsets_holes_stay_and_what_comes_again_is_left_out() {
        let written = |offset, payload| event(1, Direction::Written, offset, payload);
        let packets = recorded(&[written(50, b"abc"), written(60, b"def"), written(58, b"xxxxxg")]);
        assert_eq!(data(&packets), [(1, &b"abc"[..]), (11, b"def"), (14, b"g")]);
        assert_eq!(packets.len(), 9, "a handshake, the data, the end");
    }

    #[test]
    fn a_connection_seen_at_both_ends_is_two_and_a_pairs_next_one_too() {
        let client = event(1, Direction::Written, 0, b"hello");
        let mut server = event(2, Direction::Read, 0, b"hello");
        if let Some(Payload::EventPayload(event)) = &mut server.payload {
            event.r#type = 1;
        }
        let packets = recorded(&[client, server, event(3, Direction::Written, 0, b"next")]);
        let ports: HashSet<&[u8]> =
            packets.iter().filter(|packet| !packet.2.is_empty()).map(|packet| &packet.0[..]).collect();
        assert_eq!((ports.len(), packets.len()), (2, 3 * 6 + 3));
    }

    #[test]
    fn more_connections_than_are_followed_end_the_oldest() {
        let mut pcapng = Pcapng::default();
        for id in 0..MAX_FLOWS as u64 + 50 {
            let mut entry = event(id + 1, Direction::Written, 0, b"x");
            if let Some(Payload::EventPayload(event)) = &mut entry.payload {
                event.src_ip = String::new();
            }
            pcapng.message(&Bytes::new(), &entry);
        }
        assert_eq!(
            (pcapng.flows.len(), pcapng.recent.len(), pcapng.pairs.len()),
            (MAX_FLOWS, MAX_FLOWS, MAX_FLOWS)
        );
    }

    proptest! {
        #[test]
        fn any_events_make_a_well_formed_file(
            events in prop::collection::vec(
                (0..4u64, 0..3i32, any::<u64>(), any::<u64>(), ".{0,4}", any::<u32>(), any::<i64>(), 0..70_000usize),
                0..8,
            ),
        ) {
            let entries: Vec<LogEntry> = events.into_iter().map(|(id, direction, offset, lost, name, port, at, size)| {
                let event = Event {
                    timestamp: at,
                    src_ip: if id == 1 { "::1".to_owned() } else { name.clone() },
                    src_port: port,
                    dst_ip: "127.0.0.1".to_owned(),
                    dst_port: port,
                    connection_id: id,
                    direction,
                    stream_offset: offset,
                    lost_before: lost,
                    server_name: name.clone(),
                    pname: name,
                    payload: vec![7; size].into(),
                    ..Event::default()
                };
                LogEntry { payload: Some(Payload::EventPayload(event)), ..LogEntry::default() }
            }).collect();
            recorded(&entries);
        }
    }
}

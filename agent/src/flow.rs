//! From a record of the ring to an event for clients: the connection's addresses, protocol and losses.
//!
//! Owns what is remembered of each connection between its records. Bounded: connections that were quiet longest are
//! forgotten.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Instant,
};

use bytes::Bytes;
use nix::time::{ClockId, clock_gettime};
use plaintap_abi::{Endpoints, Header, family, kind, opener};
use plaintap_proto::{Direction, Event};

use crate::{
    capture::ring::Record,
    classify::Classifier,
    process::{Processes, Program},
    recent::Recent,
    sockets::{Ends, Look, Search},
    stream::Subject,
};

/// Questions about addresses on their way; more are asked at later events.
const MAX_QUESTIONS: usize = 256;

/// What all records of a connection have shown.
#[derive(Clone, Debug, Default)]
struct Connection {
    classifier: Classifier,
    /// Where the next payload should start, read and written: in bytes, those aside that the snap length kept out.
    next: [u64; 2],
    server_name: String,
    /// Where its addresses must be looked up, which is seldom.
    search: Option<Box<Search>>,
    /// What clients choose it by, since its first event.
    subject: Option<Rc<Subject>>,
}

/// Makes events of records.
#[derive(Debug)]
pub struct Flow {
    connections: Recent<u64, Connection>,
    /// How many connections are remembered for certain.
    remembered: u32,
    /// Who the connections' processes are.
    pub processes: Processes,
    /// Whether there was a connection without an address.
    pub lacks_address: bool,
    /// Whether addresses are to be looked up.
    searches: bool,
    /// Connections to look up the addresses of, and whose they are.
    questions: Vec<(Program, u64)>,
}

/// What a record comes to.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Something for clients, and what they may choose it by.
    Event(Box<Event>, Rc<Subject>),
    /// Early data of this many bytes was rejected by this connection's peer.
    EarlyDataRejected {
        /// The connection.
        connection_id: u64,
        /// How much was written before; it may be sent again.
        bytes: u64,
    },
    /// Something to remember.
    Nothing,
}

/// Turns the kernel's time into the wall clock's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock minus boot clock, in nanoseconds.
    offset: i64,
}

impl Clock {
    /// As both clocks stand now.
    pub fn now() -> Self {
        // The narrowest of some looks: between two readings this process may have to wait for its turn.
        let looks = (0..5).map(|_| Self::look());
        let (least, most) = looks.min_by_key(|(least, most)| most - least).unwrap_or_default();
        Self { offset: least + (most - least) / 2 }
    }

    /// Follows the wall clock when it is set. While it is not, the offset stays as it is, so that times never go back.
    pub fn follow(&mut self) {
        let (least, most) = Self::look();
        if !(least..=most).contains(&self.offset) {
            *self = Self::now();
        }
    }

    /// The least and the most that the offset can be.
    fn look() -> (i64, i64) {
        // These two clocks always exist.
        let nanoseconds =
            |clock| clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
        let before = nanoseconds(ClockId::CLOCK_BOOTTIME);
        let wall = nanoseconds(ClockId::CLOCK_REALTIME);
        let after = nanoseconds(ClockId::CLOCK_BOOTTIME);
        (wall - after, wall - before)
    }

    /// Nanoseconds of Unix time when the boot clock showed `boot_ns`.
    fn unix(self, boot_ns: u64) -> i64 {
        (boot_ns as i64).wrapping_add(self.offset)
    }
}

impl Flow {
    /// Knows no connection yet, and remembers the last `connections`, no fewer than the kernel side's own map: of one that is
    /// known there only, what came before would count as lost. `searches`: no hook tells addresses, so that they are to be
    /// looked up.
    pub fn new(searches: bool, connections: u32) -> Self {
        Self {
            connections: Recent::new(connections as usize),
            remembered: connections,
            processes: Processes::new(connections as usize / 8),
            lacks_address: false,
            searches,
            questions: Vec::new(),
        }
    }

    /// The connections to look up the addresses of, and whose they are; each is told once.
    pub fn questions(&mut self) -> Vec<(Program, u64)> {
        std::mem::take(&mut self.questions)
    }

    /// Forgets every connection and process.
    pub fn forget(&mut self) {
        *self = Self::new(self.searches, self.remembered);
    }

    /// Takes in what was found out of a connection's addresses.
    pub fn answer(&mut self, connection_id: u64, look: Look) {
        self.connections
            .get_or_insert_with(connection_id, Connection::default)
            .search
            .get_or_insert_default()
            .answer(look);
    }

    /// What `record` comes to.
    pub fn take(&mut self, record: &Record<'_>, clock: Clock) -> Outcome {
        let header = &record.header;
        let connection = self.connections.get_or_insert_with(header.connection_id, Connection::default);
        let program = Program { pid: header.pid, life: header.life };
        self.processes.seen(program);
        match header.kind {
            kind::SERVER_NAME => {
                connection.server_name = String::from_utf8_lossy(record.payload).into_owned();
                Outcome::Nothing
            }
            kind::EARLY_DATA_REJECTED => Outcome::EarlyDataRejected {
                connection_id: header.connection_id,
                bytes: header.stream_offset,
            },
            _ => {
                let ends = sides(&header.endpoints)
                    .or_else(|| connection.search.as_mut().and_then(|search| search.ends(header.time_ns)));
                self.lacks_address |= ends.is_none();
                if self.searches
                    && ends.is_none()
                    && self.questions.len() < MAX_QUESTIONS
                    && connection.search.get_or_insert_default().asks(Instant::now())
                {
                    self.questions.push((program, header.connection_id));
                }
                let event = event(connection, record, ends, clock);
                let subject = connection.subject.get_or_insert_with(|| {
                    Rc::new(Subject {
                        pid: header.pid,
                        uid: header.uid,
                        comm: event.pname.as_str().into(),
                        host: event.server_name.as_str().into(),
                    })
                });
                let process = self.processes.get(program);
                let event = Event { app: process.app.clone(), process_start: process.start_ns, ..event };
                Outcome::Event(Box::new(event), Rc::clone(subject))
            }
        }
    }

    /// The bytes that a connection's events have come to, written or read, those aside that the snap length kept out.
    pub fn next_offset(&self, connection_id: u64, written: bool) -> u64 {
        self.connections.peek(&connection_id).map_or(0, |connection| connection.next[usize::from(written)])
    }
}

/// The event that a record of plaintext is.
fn event(connection: &mut Connection, record: &Record<'_>, ends: Option<Ends>, clock: Clock) -> Event {
    let header = &record.header;
    let written = header.kind == kind::WRITTEN;
    let direction = if written { Direction::Written } else { Direction::Read };
    let protocol =
        connection.classifier.observe(direction, record.payload, header.stream_offset != header.call_start);
    let next = &mut connection.next[usize::from(written)];
    // What is kept of a call is its beginning: what was snapped before a piece was snapped before its call.
    let start = header.stream_offset.saturating_sub(header.snapped);
    // Where threads overtake each other nothing is lost: the record is behind, not ahead.
    let lost_before = start.saturating_sub(*next);
    *next = (*next).max(start.saturating_add(record.payload.len() as u64));
    let end = header.stream_offset.saturating_add(record.payload.len() as u64);
    let truncated = end == header.kept_end && end < header.call_end;
    let pname = pname(header);
    let (src, dst) = ends.map_or((UNKNOWN, UNKNOWN), |ends| (ends.opener, ends.acceptor));
    Event {
        timestamp: clock.unix(header.time_ns),
        uuid: uuid(header, &pname, written, ends),
        src_ip: src.ip().to_string(),
        src_port: src.port().into(),
        dst_ip: dst.ip().to_string(),
        dst_port: dst.port().into(),
        pid: header.pid.into(),
        pname,
        r#type: protocol as u32,
        length: header.length,
        payload: Bytes::copy_from_slice(record.payload),
        direction: direction.into(),
        tid: header.tid,
        uid: header.uid,
        connection_id: header.connection_id,
        stream_offset: header.stream_offset,
        lost_before,
        server_name: connection.server_name.clone(),
        truncated,
        ..Event::default()
    }
}

/// The thread's name.
fn pname(header: &Header) -> String {
    let comm = bytemuck::bytes_of(&header.comm);
    String::from_utf8_lossy(comm.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// eCaptureQ's name for a connection and direction; the file descriptor in it is 0: not known.
fn uuid(header: &Header, pname: &str, written: bool, ends: Option<Ends>) -> String {
    let (pid, tid, way) = (header.pid, header.tid, u8::from(written));
    match ends {
        Some(Ends { opener, acceptor }) => format!("{pid}_{tid}_{pname}_0_{way}_{opener}-{acceptor}"),
        None => format!("sock:{pid}_{tid}_{pname}_0_{way}_{UNKNOWN}-{UNKNOWN}_0"),
    }
}

const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Both sides of the connection; none if no socket was seen.
fn sides(ends: &Endpoints) -> Option<Ends> {
    let address = |words: &[u64; 2]| {
        let bytes: [u8; 16] = bytemuck::cast(*words);
        match ends.family {
            family::INET => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
            // An IPv4 peer of an IPv6 socket is shown as what it is.
            family::INET6 => Some(Ipv6Addr::from(bytes).to_canonical()),
            _ => None,
        }
    };
    let local = SocketAddr::new(address(&ends.local_address)?, ends.local_port);
    let remote = SocketAddr::new(address(&ends.remote_address)?, ends.remote_port);
    // Where nobody saw it opened, the local side is the better guess: more clients than servers run on a device.
    let (opener, acceptor) = if ends.opener == opener::REMOTE { (remote, local) } else { (local, remote) };
    Some(Ends { opener, acceptor })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { offset: 1_000 };

    fn header(stream_offset: u64) -> Header {
        Header {
            time_ns: 5,
            connection_id: 9,
            stream_offset,
            call_start: stream_offset,
            kept_end: stream_offset + 3,
            call_end: stream_offset + 3,
            pid: 7,
            tid: 8,
            kind: kind::WRITTEN,
            length: 3,
            comm: crate::capture::filters::comm("curl"),
            ..Header::default()
        }
    }

    fn ipv4(opener: u8) -> Endpoints {
        let word = |bytes: [u8; 4]| [u64::from(u32::from_ne_bytes(bytes)), 0];
        Endpoints {
            local_address: word([10, 0, 0, 1]),
            remote_address: word([10, 0, 0, 2]),
            local_port: 5000,
            remote_port: 443,
            family: family::INET,
            opener,
            reserved: [0; 2],
        }
    }

    fn event(flow: &mut Flow, header: Header) -> Event {
        match flow.take(&Record { header, payload: b"abc" }, CLOCK) {
            Outcome::Event(event, _) => *event,
            outcome => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn src_is_the_side_that_opened_the_connection() {
        let mut flow = Flow::new(false, 8192);
        let client = event(&mut flow, Header { endpoints: ipv4(opener::LOCAL), ..header(0) });
        assert_eq!((client.src_ip.as_str(), client.src_port, client.dst_port), ("10.0.0.1", 5000, 443));
        let server = event(&mut flow, Header { endpoints: ipv4(opener::REMOTE), ..header(3) });
        assert_eq!((server.src_ip.as_str(), server.src_port, server.dst_port), ("10.0.0.2", 443, 5000));
        let unknown = event(&mut flow, Header { endpoints: ipv4(opener::UNKNOWN), ..header(6) });
        assert_eq!(unknown.src_port, 5000);
    }

    #[test]
    fn the_uuid_has_the_protocols_two_forms() {
        let mut flow = Flow::new(false, 8192);
        let known = event(&mut flow, Header { endpoints: ipv4(opener::LOCAL), ..header(0) });
        assert_eq!(known.uuid, "7_8_curl_0_1_10.0.0.1:5000-10.0.0.2:443");
        let unknown = event(&mut flow, Header { kind: kind::READ, ..header(0) });
        assert_eq!(unknown.uuid, "sock:7_8_curl_0_0_0.0.0.0:0-0.0.0.0:0_0");
        assert_eq!((unknown.src_ip.as_str(), unknown.dst_ip.as_str()), ("0.0.0.0", "0.0.0.0"));
    }

    #[test]
    fn ipv6_stands_in_brackets_and_mapped_ipv4_as_itself() {
        let mut flow = Flow::new(false, 8192);
        let mut ends =
            Endpoints { family: family::INET6, local_port: 1, remote_port: 2, ..Endpoints::default() };
        ends.local_address = bytemuck::cast(Ipv6Addr::LOCALHOST.octets());
        ends.remote_address = bytemuck::cast(Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped().octets());
        let event = event(&mut flow, Header { endpoints: ends, ..header(0) });
        assert_eq!(event.uuid, "7_8_curl_0_1_[::1]:1-1.2.3.4:2");
        assert_eq!(event.src_ip, "::1");
    }

    #[test]
    fn times_are_unix_nanoseconds() {
        assert_eq!(event(&mut Flow::new(false, 8192), header(0)).timestamp, 1_005);
    }

    #[test]
    fn the_clock_stays_until_the_wall_clock_is_set() {
        let right = Clock::now();
        let mut clock = right;
        (0..10_000).for_each(|_| clock.follow());
        assert!((clock.offset - right.offset).abs() < 1_000_000, "{clock:?} {right:?}");
        let mut wrong = Clock { offset: right.offset + 60_000_000_000 };
        wrong.follow();
        assert!((wrong.offset - right.offset).abs() < 1_000_000_000, "{wrong:?} {right:?}");
    }

    #[test]
    fn a_hole_in_the_offsets_is_told_once() {
        let mut flow = Flow::new(false, 8192);
        let lost: Vec<u64> =
            [0, 3, 10, 13, 6].iter().map(|offset| event(&mut flow, header(*offset)).lost_before).collect();
        assert_eq!(lost, [0, 0, 4, 0, 0]);
        assert_eq!(event(&mut Flow::new(false, 8192), header(100)).lost_before, 100);
        assert_eq!(
            (flow.next_offset(9, true), flow.next_offset(9, false), flow.next_offset(1, true)),
            (16, 0, 0)
        );
    }

    #[test]
    fn what_the_snap_length_keeps_out_is_no_loss() {
        let mut flow = Flow::new(false, 8192);
        let cut = event(&mut flow, Header { call_end: 1000, ..header(0) });
        assert!(cut.truncated);
        let next = event(&mut flow, Header { snapped: 997, ..header(1000) });
        assert_eq!((next.truncated, next.lost_before), (false, 0));
        // A call of which 3 bytes were kept and 7 snapped is lost, 3 bytes of another one too.
        let later = event(&mut flow, Header { snapped: 1004, ..header(1016) });
        assert_eq!((later.truncated, later.lost_before), (false, 6));
        assert_eq!(flow.next_offset(9, true), 15);
    }

    #[test]
    fn a_connection_keeps_the_host_name_that_was_asked_for() {
        let mut flow = Flow::new(false, 8192);
        let name =
            Record { header: Header { kind: kind::SERVER_NAME, ..header(0) }, payload: b"example.org" };
        assert_eq!(flow.take(&name, CLOCK), Outcome::Nothing);
        assert_eq!(event(&mut flow, header(0)).server_name, "example.org");
        assert_eq!(event(&mut flow, Header { connection_id: 10, ..header(0) }).server_name, "");
    }

    #[test]
    fn what_a_connection_is_chosen_by_stays_as_its_first_event_had_it() {
        let mut flow = Flow::new(false, 8192);
        let mut subject = |header| match flow.take(&Record { header, payload: b"abc" }, CLOCK) {
            Outcome::Event(_, subject) => subject,
            outcome => panic!("{outcome:?}"),
        };
        let first = subject(header(0));
        assert_eq!((first.pid, first.uid, &*first.comm, &*first.host), (7, 0, "curl", ""));
        let comm = crate::capture::filters::comm("other");
        assert!(Rc::ptr_eq(&first, &subject(Header { comm, uid: 5, ..header(3) })));
        assert_eq!(&*subject(Header { comm, uid: 5, connection_id: 10, ..header(0) }).comm, "other");
    }

    #[test]
    fn looked_up_addresses_are_those_of_later_events() {
        let mut flow = Flow::new(true, 8192);
        assert_eq!(event(&mut flow, header(0)).src_port, 0);
        let program = Program { pid: 7, life: 0 };
        assert_eq!((flow.questions(), flow.questions()), (vec![(program, 9)], vec![]));
        let ends = Ends { opener: ([10, 0, 0, 1], 5000).into(), acceptor: ([10, 0, 0, 2], 443).into() };
        flow.answer(9, Look { ends, time_ns: 6 });
        assert_eq!(event(&mut flow, header(3)).src_port, 0);
        let later = event(&mut flow, Header { time_ns: 7, ..header(6) });
        assert_eq!(later.uuid, "7_8_curl_0_1_10.0.0.1:5000-10.0.0.2:443");
        assert_eq!(event(&mut flow, Header { connection_id: 10, time_ns: 8, ..header(0) }).src_port, 0);
    }

    #[test]
    fn nothing_is_looked_up_where_a_hook_tells() {
        let mut flow = Flow::new(false, 8192);
        event(&mut flow, header(0));
        assert_eq!(flow.questions(), []);
    }

    #[test]
    fn rejected_early_data_is_said() {
        let header = Header { kind: kind::EARLY_DATA_REJECTED, ..header(500) };
        let outcome = Flow::new(false, 8192).take(&Record { header, payload: &[] }, CLOCK);
        assert_eq!(outcome, Outcome::EarlyDataRejected { connection_id: 9, bytes: 500 });
    }
}

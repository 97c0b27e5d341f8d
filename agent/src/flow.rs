//! From a record of the ring to an event for clients: the connection's addresses, protocol and losses.
//!
//! Owns what is remembered of each connection between its records. Bounded: of the connections that were quiet longest,
//! the protocol is forgotten.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::Bytes;
use nix::time::{ClockId, clock_gettime};
use plaintap_abi::{Endpoints, direction, family, opener};
use plaintap_proto::{Direction, Event};

use crate::{capture::ring::Record, classify::Classifier};

/// Connections remembered for certain: as many as the kernel side's own map holds.
const GENERATION: usize = 8192;

/// What all records of a connection have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    classifier: Classifier,
    /// The offset at which the next payload should start, read and written.
    next: [u64; 2],
}

/// Makes events of records.
#[derive(Debug, Default)]
pub struct Flow {
    /// Used since the last turn of generations.
    young: HashMap<u64, Connection>,
    /// Not used since, and dropped at the next turn.
    old: HashMap<u64, Connection>,
}

/// Turns the kernel's time into the wall clock's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock minus boot clock, in nanoseconds.
    offset: i64,
}

impl Clock {
    /// As both clocks stand now. To be read anew from time to time, as the wall clock is set.
    pub fn now() -> Self {
        let nanoseconds = |clock| {
            // These two clocks always exist.
            clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
        };
        Self { offset: nanoseconds(ClockId::CLOCK_REALTIME) - nanoseconds(ClockId::CLOCK_BOOTTIME) }
    }

    /// Nanoseconds of Unix time when the boot clock showed `boot_ns`.
    fn unix(self, boot_ns: u64) -> i64 {
        (boot_ns as i64).wrapping_add(self.offset)
    }
}

impl Flow {
    /// The event that `record` is.
    pub fn event(&mut self, record: &Record<'_>, clock: Clock) -> Event {
        let header = &record.header;
        let (direction, index) = match header.direction {
            direction::READ => (Direction::Read, 0),
            direction::WRITTEN => (Direction::Written, 1),
            _ => (Direction::Unknown, 0),
        };
        let connection = self.connection(header.connection_id);
        let protocol = connection.classifier.observe(direction, record.payload);
        let next = &mut connection.next[index];
        // Where threads overtake each other nothing is lost: the record is behind, not ahead.
        let lost_before = header.stream_offset.saturating_sub(*next);
        *next = (*next).max(header.stream_offset + record.payload.len() as u64);

        let comm = bytemuck::bytes_of(&header.comm);
        let pname = String::from_utf8_lossy(comm.split(|byte| *byte == 0).next().unwrap_or_default());
        let (known, src, dst) = match sides(&header.endpoints) {
            Some((src, dst)) => (true, src, dst),
            None => (false, UNKNOWN, UNKNOWN),
        };
        let uuid = {
            let (pid, tid) = (header.pid, header.tid);
            let way = u8::from(direction == Direction::Written);
            // The file descriptor is 0: not known.
            if known {
                format!("{pid}_{tid}_{pname}_0_{way}_{src}-{dst}")
            } else {
                format!("sock:{pid}_{tid}_{pname}_0_{way}_{src}-{dst}_0")
            }
        };
        Event {
            timestamp: clock.unix(header.time_ns),
            uuid,
            src_ip: src.ip().to_string(),
            src_port: src.port().into(),
            dst_ip: dst.ip().to_string(),
            dst_port: dst.port().into(),
            pid: header.pid.into(),
            pname: pname.into_owned(),
            r#type: protocol as u32,
            length: header.length,
            payload: Bytes::copy_from_slice(record.payload),
            direction: direction.into(),
            tid: header.tid,
            uid: header.uid,
            connection_id: header.connection_id,
            stream_offset: header.stream_offset,
            lost_before,
            ..Event::default()
        }
    }

    fn connection(&mut self, id: u64) -> &mut Connection {
        if !self.young.contains_key(&id) && self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let old = &mut self.old;
        self.young.entry(id).or_insert_with(|| old.remove(&id).unwrap_or_default())
    }
}

const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The side that opened the connection and the side that accepted it; none if no socket was seen.
fn sides(ends: &Endpoints) -> Option<(SocketAddr, SocketAddr)> {
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
    Some(if ends.opener == opener::REMOTE { (remote, local) } else { (local, remote) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plaintap_abi::Header;

    const CLOCK: Clock = Clock { offset: 1_000 };

    fn header(stream_offset: u64) -> Header {
        let mut comm = [0; 2];
        bytemuck::bytes_of_mut(&mut comm)[..4].copy_from_slice(b"curl");
        Header {
            time_ns: 5,
            connection_id: 9,
            stream_offset,
            pid: 7,
            tid: 8,
            direction: direction::WRITTEN,
            length: 3,
            comm,
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
        flow.event(&Record { header, payload: b"abc" }, CLOCK)
    }

    #[test]
    fn src_is_the_side_that_opened_the_connection() {
        let mut flow = Flow::default();
        let client = event(&mut flow, Header { endpoints: ipv4(opener::LOCAL), ..header(0) });
        assert_eq!((client.src_ip.as_str(), client.src_port, client.dst_port), ("10.0.0.1", 5000, 443));
        let server = event(&mut flow, Header { endpoints: ipv4(opener::REMOTE), ..header(3) });
        assert_eq!((server.src_ip.as_str(), server.src_port, server.dst_port), ("10.0.0.2", 443, 5000));
        let unknown = event(&mut flow, Header { endpoints: ipv4(opener::UNKNOWN), ..header(6) });
        assert_eq!(unknown.src_port, 5000);
    }

    #[test]
    fn the_uuid_has_the_protocols_two_forms() {
        let mut flow = Flow::default();
        let event_ = event(&mut flow, Header { endpoints: ipv4(opener::LOCAL), ..header(0) });
        assert_eq!(event_.uuid, "7_8_curl_0_1_10.0.0.1:5000-10.0.0.2:443");
        let event_ = event(&mut flow, Header { direction: direction::READ, ..header(0) });
        assert_eq!(event_.uuid, "sock:7_8_curl_0_0_0.0.0.0:0-0.0.0.0:0_0");
        assert_eq!((event_.src_ip.as_str(), event_.dst_ip.as_str()), ("0.0.0.0", "0.0.0.0"));
    }

    #[test]
    fn ipv6_stands_in_brackets_and_mapped_ipv4_as_itself() {
        let mut flow = Flow::default();
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
        assert_eq!(event(&mut Flow::default(), header(0)).timestamp, 1_005);
    }

    #[test]
    fn a_hole_in_the_offsets_is_told_once() {
        let mut flow = Flow::default();
        let lost: Vec<u64> =
            [0, 3, 10, 13, 6].iter().map(|offset| event(&mut flow, header(*offset)).lost_before).collect();
        assert_eq!(lost, [0, 0, 4, 0, 0]);
        assert_eq!(event(&mut Flow::default(), header(100)).lost_before, 100);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut flow = Flow::default();
        for id in 0..3 * GENERATION as u64 {
            flow.connection(1 << 40).next = [77, 77];
            flow.connection(id);
        }
        assert!(flow.young.len() + flow.old.len() <= 2 * GENERATION);
        assert_eq!(flow.connection(1 << 40).next, [77, 77]);
    }
}

//! A TCP segment in an Ethernet frame, as the network might have carried it had there been no TLS.

use std::net::{IpAddr, SocketAddr};

/// Source: RFC 9293.
pub const FIN: u8 = 1;
/// See `FIN`.
pub const SYN: u8 = 2;
/// See `FIN`.
pub const PUSH: u8 = 8;
/// See `FIN`.
pub const ACK: u8 = 16;

/// One segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Who sends it.
    pub from: SocketAddr,
    /// Who gets it; of the same family.
    pub to: SocketAddr,
    /// The sender is who opened the connection.
    pub by_client: bool,
    /// The number of `payload`'s first byte.
    pub seq: u32,
    /// The next byte expected of the other side.
    pub ack: u32,
    /// Of `SYN` and so on.
    pub flags: u8,
    /// At most 32 KiB.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        // Locally administered addresses, which stand for nobody's hardware.
        let mac = |client| [2, 0, 0, 0, 0, if client { 1 } else { 2 }];
        let tcp = self.tcp();
        let mut frame = Vec::with_capacity(54 + tcp.len());
        frame.extend(mac(!self.by_client));
        frame.extend(mac(self.by_client));
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(0x0800u16.to_be_bytes());
                let mut head = vec![0x45, 0];
                head.extend(((20 + tcp.len()) as u16).to_be_bytes());
                // No identification, not to be fragmented, 64 hops, TCP.
                head.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
                head.extend(from.octets());
                head.extend(to.octets());
                let sum = checksum(&[&head]);
                head[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(head);
            }
            (from, to) => {
                frame.extend(0x86ddu16.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((tcp.len() as u16).to_be_bytes());
                frame.extend([6, 64]);
                frame.extend(octets(from));
                frame.extend(octets(to));
            }
        }
        frame.extend(tcp);
        frame
    }

    fn tcp(&self) -> Vec<u8> {
        // The largest window there is, 1 GiB, so that no reader waits for acknowledgements of their own.
        let options: &[u8] = if self.flags & SYN != 0 { &[1, 3, 3, 14] } else { &[] };
        let mut tcp = Vec::with_capacity(24 + self.payload.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(if self.flags & ACK != 0 { self.ack } else { 0 }.to_be_bytes());
        tcp.extend([(5 + options.len() as u8 / 4) << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(self.payload);
        let length = (tcp.len() as u32).to_be_bytes();
        let pseudo = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (from, to) => [octets(from), octets(to)].concat(),
        };
        let sum = checksum(&[&pseudo, &length, &[0, 0, 0, 6], &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Source: RFC 1071. Only the last part may have an odd length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 =
        words.map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        // The example of RFC 1071, section 3.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }
}

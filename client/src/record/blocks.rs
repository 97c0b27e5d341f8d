//! pcapng's blocks, of which a `.pcapng` is made. Source: draft-ietf-opsawg-pcapng.
//!
//! Written here and not by a crate: five kinds of block, written only, are less than a crate's interface to them.

use std::net::IpAddr;

const ETHERNET: u16 = 1;

/// What a file begins with: whose it is, and its one interface, with times in ns.
pub fn head() -> Vec<u8> {
    let mut section = vec![];
    section.extend(0x1a2b_3c4d_u32.to_le_bytes());
    section.extend(1u16.to_le_bytes());
    section.extend(0u16.to_le_bytes());
    section.extend((-1i64).to_le_bytes());
    option(&mut section, 4, concat!("plaintap ", env!("CARGO_PKG_VERSION")).as_bytes());
    end_of_options(&mut section);
    let mut interface = vec![];
    interface.extend(ETHERNET.to_le_bytes());
    interface.extend(0u16.to_le_bytes());
    interface.extend(0u32.to_le_bytes());
    option(&mut interface, 2, b"plaintap");
    option(&mut interface, 9, &[9]);
    end_of_options(&mut interface);
    [block(0x0a0d_0d0a, &section), block(1, &interface)].concat()
}

/// Which way a packet went, seen from the traced process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the process.
    In,
    /// From the process.
    Out,
}

/// A packet at `at` (ns since 1970), with a comment if there is something to say.
pub fn packet(at: u64, frame: &[u8], way: Way, comment: &str) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let mut body = vec![];
    body.extend(0u32.to_le_bytes());
    body.extend(((at >> 32) as u32).to_le_bytes());
    body.extend((at as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(length.to_le_bytes());
    padded(&mut body, frame);
    if !comment.is_empty() {
        option(&mut body, 1, comment.as_bytes());
    }
    option(&mut body, 2, &if way == Way::In { 1u32 } else { 2 }.to_le_bytes());
    end_of_options(&mut body);
    block(6, &body)
}

/// That an address has a name.
pub fn name(address: IpAddr, name: &str) -> Vec<u8> {
    let (kind, mut record) = match address {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    record.extend(name.bytes());
    record.push(0);
    let mut body = vec![];
    option(&mut body, kind, &record);
    // The end of the records, which look like options; there are no options after them.
    end_of_options(&mut body);
    block(4, &body)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX);
    let mut block = Vec::with_capacity(body.len() + 12);
    block.extend(kind.to_le_bytes());
    block.extend(length.to_le_bytes());
    block.extend(body);
    block.extend(length.to_le_bytes());
    block
}

/// An option, of at most 64 KiB.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    padded(body, value);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// Everything begins at a multiple of four bytes.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_says_its_length_at_both_ends_and_is_aligned() {
        let blocks = [
            packet(1 << 40, b"12345", Way::In, "x"),
            packet(0, b"", Way::Out, ""),
            name([1, 2, 3, 4].into(), "a.example"),
            name("::1".parse().unwrap(), "b"),
        ];
        for block in blocks {
            let length = block.len();
            assert_eq!(length % 4, 0);
            assert_eq!(block[4..8], (length as u32).to_le_bytes());
            assert_eq!(block[length - 4..], (length as u32).to_le_bytes());
        }
    }
}

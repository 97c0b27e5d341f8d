//! HPACK: HTTP/2's headers, decompressed. Source: RFC 7541.
//!
//! A decoder that joins midway, or after a gap, does not know the dynamic table. It says `?` where a field refers to what
//! it never saw, and knows again what is added from then on.

use std::{collections::VecDeque, sync::LazyLock};

use super::{
    Header,
    hpack_table::{LENGTHS, STATIC},
};

/// The largest dynamic table that is kept, whatever the two sides agreed on.
const LARGEST_TABLE: usize = 256 << 10;
/// The most bytes that one block may decode to; a byte can name a field of any length.
const LARGEST_BLOCK: usize = 512 << 10;
const UNKNOWN: &str = "?";

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Newest first.
    table: VecDeque<Header>,
    size: usize,
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, most: 4096 }
    }
}

impl Decoder {
    /// A block's fields, and if the block could not be read to its end, why.
    pub(super) fn decode(&mut self, block: &[u8]) -> (Vec<Header>, Option<&'static str>) {
        let mut fields = vec![];
        let mut size = 0;
        let mut rest = block;
        while let Some(&first) = rest.first() {
            if size > LARGEST_BLOCK {
                return (fields, Some("the headers are too long"));
            }
            match self.field(first, &mut rest) {
                Some(Some(field)) => {
                    size += cost(&field);
                    fields.push(field);
                }
                Some(None) => {}
                None => return (fields, Some("the headers can't be decompressed")),
            }
        }
        (fields, None)
    }

    /// Bytes of memory, about.
    pub(super) fn held(&self) -> usize {
        self.size
    }

    /// Forgets what may no longer be right.
    pub(super) fn forget(&mut self) {
        self.table.clear();
        self.size = 0;
    }

    /// One field, or none if it is a change of the table's size; `None` if it is no HPACK.
    fn field(&mut self, first: u8, rest: &mut &[u8]) -> Option<Option<Header>> {
        if first & 0x80 != 0 {
            return self.lookup(integer(rest, 7)?).map(Some);
        }
        if first & 0xe0 == 0x20 {
            self.most = integer(rest, 5)?.min(LARGEST_TABLE);
            self.evict(0);
            return Some(None);
        }
        let (bits, add) = if first & 0xc0 == 0x40 { (6, true) } else { (4, false) };
        let name = match integer(rest, bits)? {
            0 => string(rest)?,
            index => self.lookup(index)?.name,
        };
        let field = Header { name, value: string(rest)? };
        if add {
            self.add(field.clone());
        }
        Some(Some(field))
    }

    fn lookup(&self, index: usize) -> Option<Header> {
        let index = index.checked_sub(1)?;
        Some(match STATIC.get(index) {
            Some((name, value)) => Header { name: (*name).to_owned(), value: (*value).to_owned() },
            None => self
                .table
                .get(index - STATIC.len())
                .cloned()
                .unwrap_or_else(|| Header { name: UNKNOWN.to_owned(), value: UNKNOWN.to_owned() }),
        })
    }

    fn add(&mut self, field: Header) {
        let size = cost(&field);
        self.evict(size);
        if size <= self.most {
            self.size += size;
            self.table.push_front(field);
        }
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.most
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= cost(&oldest);
        }
    }
}

/// Lossy UTF-8 may have another length than the bytes, which matters for what is evicted only.
fn cost(field: &Header) -> usize {
    field.name.len() + field.value.len() + 32
}

fn integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(take(rest)?) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = take(rest)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (&first, more) = rest.split_first()?;
    *rest = more;
    Some(first)
}

fn string(rest: &mut &[u8]) -> Option<String> {
    let huffman = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, more) = rest.split_at_checked(length)?;
    *rest = more;
    let bytes = if huffman { unhuffman(bytes)? } else { bytes.to_vec() };
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// By length in bits: the first code, and where its symbols begin in `symbols`.
struct Codes {
    first: [(u32, usize, usize); 31],
    symbols: Vec<usize>,
}

static CODES: LazyLock<Codes> = LazyLock::new(|| {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|&symbol| (LENGTHS[symbol], symbol));
    let mut first = [(0, 0, 0); 31];
    let (mut code, mut at) = (0_u32, 0);
    for (length, entry) in first.iter_mut().enumerate() {
        code <<= 1;
        let count = LENGTHS.iter().filter(|&&bits| usize::from(bits) == length).count();
        *entry = (code, at, count);
        code += u32::try_from(count).unwrap_or(0);
        at += count;
    }
    Codes { first, symbols }
});

fn unhuffman(bytes: &[u8]) -> Option<Vec<u8>> {
    let codes = &*CODES;
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut code, mut length) = (0_u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1))) {
        (code, length) = (code << 1 | bit, length + 1);
        let (first, at, count) = *codes.first.get(length)?;
        if let Some(index) =
            code.checked_sub(first).map(|index| index as usize).filter(|&index| index < count)
        {
            // The end of the string never stands in a string.
            out.push(u8::try_from(codes.symbols[at + index]).ok()?);
            (code, length) = (0, 0);
        }
    }
    // What is left is padding: fewer than eight ones.
    (length < 8 && code == (1 << length) - 1).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digits: &str) -> Vec<u8> {
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    fn lines(decoded: (Vec<Header>, Option<&'static str>)) -> Vec<String> {
        assert_eq!(decoded.1, None);
        decoded.0.into_iter().map(|field| format!("{}={}", field.name, field.value)).collect()
    }

    #[test]
    fn the_rfcs_requests_are_decoded_and_the_table_is_kept() {
        let mut decoder = Decoder::default();
        // RFC 7541, C.4.
        let first = ":method=GET :scheme=http :path=/ :authority=www.example.com";
        assert_eq!(lines(decoder.decode(&hex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))).join(" "), first);
        let second = lines(decoder.decode(&hex("828684be5886a8eb10649cbf")));
        assert_eq!(second.join(" "), format!("{first} cache-control=no-cache"));
        let third = lines(decoder.decode(&hex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")));
        assert_eq!(third[4], "custom-key=custom-value");
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn what_was_added_before_joining_is_said_to_be_unknown() {
        let mut decoder = Decoder::default();
        assert_eq!(lines(decoder.decode(&hex("82be"))), [":method=GET", "?=?"]);
    }

    #[test]
    fn a_smaller_table_evicts_the_oldest() {
        let mut decoder = Decoder::default();
        lines(decoder.decode(&hex("828684418cf1e3c2e5f23a6ba0ab90f4ff")));
        assert_eq!(decoder.table.len(), 1);
        assert_eq!(lines(decoder.decode(&[0x20, 0xbe])), ["?=?"]);
    }

    #[test]
    fn a_block_that_names_a_long_field_again_and_again_is_cut() {
        let mut decoder = Decoder::default();
        let mut block = vec![0x40, 1, b'n', 0x7f, 0xa1, 0x1e];
        block.extend([b'v'; 4000]);
        block.extend([0xbe; 100_000]);
        let (fields, why) = decoder.decode(&block);
        assert!(fields.len() < 200 && why.is_some(), "{} {why:?}", fields.len());
    }
}

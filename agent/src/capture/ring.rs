//! The ring's records, typed and checked.

use plaintap_abi::{CLASSES, Header, kind};

/// One record: what was captured, and what of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, who and where.
    pub header: Header,
    /// The plaintext, or what else the header's kind says.
    pub payload: &'a [u8],
}

/// Bytes that are no record of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {length} bytes makes no sense")]
pub struct Malformed {
    length: usize,
}

impl<'a> Record<'a> {
    /// Reads the record that `bytes` hold.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let malformed = Malformed { length: bytes.len() };
        let Some((header, data)) = bytes.split_at_checked(size_of::<Header>()) else {
            return Err(malformed);
        };
        let header: Header = bytemuck::pod_read_unaligned(header);
        // The kernel rounds a record up to 8 bytes, which every class is.
        let sound = match header.kind {
            kind::READ | kind::WRITTEN | kind::SERVER_NAME => {
                CLASSES.contains(&data.len()) && header.length > 0
            }
            kind::EARLY_DATA_REJECTED => data.is_empty() && header.length == 0,
            _ => false,
        };
        match data.get(..header.length as usize) {
            Some(payload) if sound => Ok(Self { header, payload }),
            _ => Err(malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(class: usize, length: u32) -> Vec<u8> {
        let header = Header { length, pid: 7, kind: kind::READ, ..Header::default() };
        let mut bytes = bytemuck::bytes_of(&header).to_vec();
        bytes.extend((0..class).map(|index| index as u8));
        bytes
    }

    #[test]
    fn a_record_holds_as_much_as_its_header_says() {
        let bytes = bytes(256, 3);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!((record.header.pid, record.payload), (7, &[0, 1, 2][..]));
    }

    #[test]
    fn a_record_that_claims_too_much_or_has_no_class_is_refused() {
        for (class, length) in [(256, 257), (256, 0), (256, u32::MAX), (255, 1), (0, 0), (16385, 1)] {
            assert!(Record::parse(&bytes(class, length)).is_err(), "{class} {length}");
        }
        assert!(Record::parse(&[0; 127]).is_err());
        assert!(Record::parse(&[0; 128]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(bytes: Vec<u8>, class in 0usize..17_000, length: u32, kind: u8) {
            let _ = Record::parse(&bytes);
            let mut header = Header { length, kind, ..Header::default() };
            header.connection_id = u64::MAX;
            let mut sized = bytemuck::bytes_of(&header).to_vec();
            sized.resize(size_of::<Header>() + class, 0);
            if let Ok(record) = Record::parse(&sized) {
                proptest::prop_assert_eq!(record.payload.len(), length as usize);
            }
        }
    }
}

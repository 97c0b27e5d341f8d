//! The recordings that hold messages as they are: `.pb` and `.jsonl`.

use plaintap_proto::{LogEntry, json};
use prost::{bytes::Bytes, encoding::encode_varint};

use super::Recording;

/// Every message as it came, fields that we don't know too, each after its length as a varint: what protobuf's libraries
/// call delimited.
pub struct Pb;

impl Recording for Pb {
    fn begin(&mut self) -> Vec<u8> {
        vec![]
    }

    fn message(&mut self, bytes: &Bytes, _: &LogEntry) -> Vec<Vec<u8>> {
        let mut record = Vec::with_capacity(bytes.len() + 5);
        encode_varint(bytes.len() as u64, &mut record);
        record.extend_from_slice(bytes);
        vec![record]
    }
}

/// A line for each message, as `plaintap watch --json` prints it.
pub struct Jsonl;

impl Recording for Jsonl {
    fn begin(&mut self) -> Vec<u8> {
        vec![]
    }

    fn message(&mut self, _: &Bytes, entry: &LogEntry) -> Vec<Vec<u8>> {
        vec![(json::line(entry) + "\n").into_bytes()]
    }
}

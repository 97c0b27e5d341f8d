//! A message as its bytes say it: each field by number and name, known or not, and where and why it stops making sense.
//!
//! A pure function of the bytes. It reads protobuf's wire format itself, since a decoder says neither what it skips nor
//! where it fails. Source: protobuf.dev, "Encoding".

/// What a field's number means.
#[derive(Debug)]
struct Known {
    number: u32,
    name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unsigned,
    Signed,
    Text,
    Bytes,
    Message(&'static str),
}

/// A field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number without a sign; what is unknown is shown so.
    Unsigned(u64),
    /// A number with a sign.
    Signed(i64),
    /// Text.
    Text(&'a str),
    /// Bytes that are no text, or are not known to be.
    Bytes(&'a [u8]),
    /// A message within the message; its fields follow.
    Message(usize),
}

/// A field as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field<'a> {
    /// Where its key stands, in bytes from the message's beginning.
    pub offset: usize,
    /// How many messages it is within.
    pub depth: usize,
    /// The number on the wire.
    pub number: u32,
    /// What the number is called; none if it is unknown.
    pub name: Option<&'static str>,
    /// What it says.
    pub value: Value<'a>,
}

/// Where a message stops making sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Bytes from the message's beginning.
    pub offset: usize,
    /// Why.
    pub reason: String,
}

/// The fields that `bytes`, a `LogEntry`, holds, in their order; and the fault that ended the reading.
pub fn fields(bytes: &[u8]) -> (Vec<Field<'_>>, Option<Fault>) {
    let mut reader = Reader { bytes, fields: vec![] };
    let fault = reader.message("LogEntry", 0, bytes.len(), 0).err();
    (reader.fields, fault)
}

/// Groups within groups that are skipped; a decoder has such a limit too.
const MAX_GROUPS: usize = 64;

struct Reader<'a> {
    bytes: &'a [u8],
    fields: Vec<Field<'a>>,
}

impl<'a> Reader<'a> {
    fn message(&mut self, name: &str, mut at: usize, end: usize, depth: usize) -> Result<(), Fault> {
        while at < end {
            let offset = at;
            let (number, wire) = self.key(&mut at, end)?;
            let known = schema(name).iter().find(|known| known.number == number);
            let kind = known.map(|known| known.kind);
            let right = match kind {
                None => true,
                Some(Kind::Unsigned | Kind::Signed) => wire == 0,
                Some(Kind::Text | Kind::Bytes | Kind::Message(_)) => wire == 2,
            };
            if let (false, Some(known)) = (right, known) {
                let reason = format!("{} ({number}) has wire type {wire}, which is not its own", known.name);
                return Err(Fault { offset, reason });
            }
            let mut nested = None;
            let value = match wire {
                0 => match (self.varint(&mut at, end)?, kind) {
                    (number, Some(Kind::Signed)) => Value::Signed(number as i64),
                    (number, _) => Value::Unsigned(number),
                },
                1 => Value::Unsigned(little_endian(self.take(&mut at, end, 8)?)),
                5 => Value::Unsigned(little_endian(self.take(&mut at, end, 4)?)),
                2 => {
                    let length = self.varint(&mut at, end)?;
                    let from = at;
                    let content = self.take(&mut at, end, length)?;
                    match kind {
                        Some(Kind::Text) => Value::Text(str::from_utf8(content).map_err(|error| Fault {
                            offset: from + error.valid_up_to(),
                            reason: format!("{} is not UTF-8", known.map_or("it", |known| known.name)),
                        })?),
                        Some(Kind::Message(name)) => {
                            nested = Some((name, from, at));
                            Value::Message(content.len())
                        }
                        _ => Value::Bytes(content),
                    }
                }
                3 => {
                    let from = at;
                    self.group(number, &mut at, end)?;
                    Value::Bytes(&self.bytes[from..at])
                }
                _ => return Err(Fault { offset, reason: format!("{wire} is no wire type of a field") }),
            };
            self.fields.push(Field { offset, depth, number, name: known.map(|known| known.name), value });
            if let Some((name, from, to)) = nested {
                self.message(name, from, to, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Skips a group, up to and with its end.
    fn group(&self, number: u32, at: &mut usize, end: usize) -> Result<(), Fault> {
        let mut open = vec![number];
        while let Some(innermost) = open.last().copied() {
            let offset = *at;
            let fault = |reason: &str| Fault { offset, reason: reason.to_owned() };
            if *at >= end {
                return Err(fault("a group does not end"));
            }
            match self.key(at, end)? {
                (_, 0) => _ = self.varint(at, end)?,
                (_, 1) => _ = self.take(at, end, 8)?,
                (_, 5) => _ = self.take(at, end, 4)?,
                (_, 2) => {
                    let length = self.varint(at, end)?;
                    self.take(at, end, length)?;
                }
                (number, 3) if open.len() < MAX_GROUPS => open.push(number),
                (number, 4) if number == innermost => _ = open.pop(),
                (_, 3) => return Err(fault("too many groups within groups")),
                (_, 4) => return Err(fault("the end of a group that did not begin")),
                (_, wire) => return Err(fault(&format!("{wire} is no wire type"))),
            }
        }
        Ok(())
    }

    fn key(&self, at: &mut usize, end: usize) -> Result<(u32, u8), Fault> {
        let offset = *at;
        let fault = |reason| Fault { offset, reason };
        let key = self.varint(at, end)?;
        let key = u32::try_from(key).map_err(|_| fault(format!("{key} is no field's key")))?;
        match (key >> 3, (key & 7) as u8) {
            (0, _) => Err(fault("no field has the number 0".to_owned())),
            key => Ok(key),
        }
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, Fault> {
        let offset = *at;
        let mut value = 0;
        for (index, byte) in self.bytes[offset..end].iter().take(10).enumerate() {
            if index == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                *at = offset + index + 1;
                return Ok(value);
            }
        }
        let reason = if end - offset < 10 { "a number is cut short" } else { "a number is too long" };
        Err(Fault { offset, reason: reason.to_owned() })
    }

    fn take(&self, at: &mut usize, end: usize, length: u64) -> Result<&'a [u8], Fault> {
        let offset = *at;
        let left = end - offset;
        match usize::try_from(length).ok().filter(|length| *length <= left) {
            Some(length) => {
                *at += length;
                Ok(&self.bytes[offset..*at])
            }
            None => Err(Fault { offset, reason: format!("{length} bytes should follow, and {left} do") }),
        }
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

const fn known(number: u32, name: &'static str, kind: Kind) -> Known {
    Known { number, name, kind }
}

/// Source: proto/ecaptureq.proto; a test holds the two together.
fn schema(message: &str) -> &'static [Known] {
    use Kind::{Bytes, Message, Signed, Text, Unsigned};
    const ENTRY: &[Known] = &[
        known(1, "log_type", Signed),
        known(2, "event_payload", Message("Event")),
        known(3, "heartbeat_payload", Message("Heartbeat")),
        known(4, "run_log", Text),
        known(100, "seq", Unsigned),
    ];
    const EVENT: &[Known] = &[
        known(1, "timestamp", Signed),
        known(2, "uuid", Text),
        known(3, "src_ip", Text),
        known(4, "src_port", Unsigned),
        known(5, "dst_ip", Text),
        known(6, "dst_port", Unsigned),
        known(7, "pid", Signed),
        known(8, "pname", Text),
        known(9, "type", Unsigned),
        known(10, "length", Unsigned),
        known(11, "payload", Bytes),
        known(100, "direction", Signed),
        known(101, "tid", Unsigned),
        known(102, "uid", Unsigned),
        known(103, "connection_id", Unsigned),
        known(104, "stream_offset", Unsigned),
        known(105, "lost_before", Unsigned),
        known(106, "app", Text),
        known(107, "server_name", Text),
        known(108, "process_start", Unsigned),
        known(109, "library", Text),
        known(110, "truncated", Unsigned),
    ];
    const HEARTBEAT: &[Known] = &[
        known(1, "timestamp", Signed),
        known(2, "count", Signed),
        known(3, "message", Text),
        known(100, "run_id", Text),
        known(101, "last_seq", Unsigned),
        known(102, "captured_events", Unsigned),
        known(103, "captured_bytes", Unsigned),
        known(104, "lost_events", Unsigned),
        known(105, "lost_bytes", Unsigned),
        known(106, "missed_messages", Unsigned),
        known(107, "missed_bytes", Unsigned),
        known(108, "clients", Unsigned),
        known(109, "uptime_ms", Unsigned),
    ];
    match message {
        "Event" => EVENT,
        "Heartbeat" => HEARTBEAT,
        _ => ENTRY,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plaintap_proto::{Event, LogEntry, log_entry::Payload};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/vectors");

    #[test]
    fn the_names_are_the_proto_files() {
        let proto = include_str!("../../../proto/ecaptureq.proto");
        let mut message = "";
        let mut found = 0;
        for line in proto.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("message ") {
                message = name.trim_end_matches(" {");
            }
            let field = line.strip_suffix(';').and_then(|line| line.split_once(" = "));
            if let (Some((declared, number)), true) = (field, !message.is_empty()) {
                let name = declared.rsplit(' ').next().unwrap();
                let known = schema(message).iter().find(|known| known.number.to_string() == number);
                assert_eq!(known.map(|known| known.name), Some(name), "{message} {number}");
                found += 1;
            }
        }
        assert_eq!(found, ["", "Event", "Heartbeat"].iter().map(|name| schema(name).len()).sum::<usize>());
    }

    #[test]
    fn every_field_of_a_full_event_is_named_and_fields_of_a_later_release_are_numbered() {
        let full = fs::read(format!("{VECTORS}/event_full.bin")).unwrap();
        let (found, fault) = fields(&full);
        assert_eq!(fault, None);
        assert!(found.iter().all(|field| field.name.is_some()));
        assert_eq!(found.iter().filter(|field| field.depth == 1).count(), schema("Event").len());

        let future = fs::read(format!("{VECTORS}/future_fields.bin")).unwrap();
        let (found, fault) = fields(&future);
        assert_eq!(fault, None);
        let unknown: Vec<_> = found.iter().filter(|field| field.name.is_none()).collect();
        assert_eq!(unknown.iter().map(|field| field.number).collect::<Vec<_>>(), [199, 199]);
    }

    #[test]
    fn a_fault_is_named_with_its_place() {
        for (bytes, offset, reason) in [
            (&[0xff; 12][..], 0, "a number is too long"),
            (&[0x08][..], 1, "a number is cut short"),
            (&[0x08, 2, 0x12, 5, 0x08][..], 4, "5 bytes should follow, and 1 do"),
            (&[0x0a, 0][..], 0, "log_type (1) has wire type 2"),
            (&[0x22, 2, b'a', 0xff][..], 3, "run_log is not UTF-8"),
            (&[0x07][..], 0, "no field has the number 0"),
            (&[0x0f][..], 0, "wire type 7"),
            (&[0x2b][..], 1, "a group does not end"),
        ] {
            let fault = fields(bytes).1.unwrap();
            assert_eq!(fault.offset, offset, "{bytes:x?}: {fault:?}");
            assert!(fault.reason.contains(reason), "{bytes:x?}: {fault:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (found, fault) = fields(&bytes);
            prop_assert!(found.iter().all(|field| field.offset < bytes.len()));
            prop_assert!(fault.is_none_or(|fault| fault.offset <= bytes.len()));
        }

        #[test]
        fn what_a_decoder_refuses_has_a_fault(
            pname in ".{0,8}", payload in prop::collection::vec(any::<u8>(), 0..20),
            at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let event = Event { pid: -1, tid: 7, pname, payload: payload.into(), ..Event::default() };
            let payload = Some(Payload::EventPayload(event));
            let mut bytes = LogEntry { log_type: 2, seq: 300, payload }.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let (_, fault) = fields(&bytes);
            prop_assert_eq!(LogEntry::decode(&bytes[..]).is_err(), fault.is_some(), "{:x?}", bytes);
        }
    }
}

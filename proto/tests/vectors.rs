//! The committed vectors are what this release makes, reads, and what an older client can read.

#[path = "../vectors/mod.rs"]
mod vectors;

use std::{collections::BTreeSet, fs};

use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::{Message, bytes::Bytes};

const STALE: &str = "vectors/ is stale: cargo run -p plaintap-proto --example vectors";

#[test]
fn the_committed_files_are_what_this_release_writes() {
    for vector in vectors::all() {
        assert_eq!(fs::read(vector.path("bin")).unwrap(), vector.bytes, "{}: {STALE}", vector.name);
        assert_eq!(
            fs::read_to_string(vector.path("json")).unwrap(),
            vector.json(),
            "{}: {STALE}",
            vector.name
        );
    }
}

#[test]
fn every_file_belongs_to_a_vector_and_readme_names_it() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors");
    let files: BTreeSet<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "bin" || ending == "json"))
        .collect();
    let vectors = vectors::all();
    assert_eq!(files, vectors.iter().flat_map(|v| [v.path("bin"), v.path("json")]).collect());
    let readme = fs::read_to_string(format!("{folder}/README.md")).unwrap();
    for vector in vectors {
        assert!(readme.contains(&format!("`{}`", vector.name)), "README.md does not name {}", vector.name);
    }
}

#[test]
fn every_vector_decodes_to_its_message() {
    for vector in vectors::all() {
        assert_eq!(LogEntry::decode(vector.bytes.as_slice()).unwrap(), vector.entry, "{}", vector.name);
    }
}

#[test]
fn a_client_that_knows_only_the_original_fields_reads_every_vector() {
    for vector in vectors::all() {
        let old = OldLogEntry::decode(vector.bytes.as_slice()).unwrap();
        assert_eq!(old, as_an_old_client_sees(&vector.entry), "{}", vector.name);
    }
}

fn as_an_old_client_sees(entry: &LogEntry) -> OldLogEntry {
    let payload = entry.payload.clone().map(|payload| match payload {
        Payload::EventPayload(event) => OldPayload::EventPayload(OldEvent {
            timestamp: event.timestamp,
            uuid: event.uuid,
            src_ip: event.src_ip,
            src_port: event.src_port,
            dst_ip: event.dst_ip,
            dst_port: event.dst_port,
            pid: event.pid,
            pname: event.pname,
            r#type: event.r#type,
            length: event.length,
            payload: event.payload,
        }),
        Payload::HeartbeatPayload(heartbeat) => OldPayload::HeartbeatPayload(OldHeartbeat {
            timestamp: heartbeat.timestamp,
            count: heartbeat.count,
            message: heartbeat.message,
        }),
        Payload::RunLog(line) => OldPayload::RunLog(line),
    });
    OldLogEntry { log_type: entry.log_type, payload }
}

/// What a client built from the original's `.proto` has.
#[derive(Clone, PartialEq, Message)]
struct OldLogEntry {
    #[prost(int32, tag = "1")]
    log_type: i32,
    #[prost(oneof = "OldPayload", tags = "2, 3, 4")]
    payload: Option<OldPayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OldPayload {
    #[prost(message, tag = "2")]
    EventPayload(OldEvent),
    #[prost(message, tag = "3")]
    HeartbeatPayload(OldHeartbeat),
    #[prost(string, tag = "4")]
    RunLog(String),
}

#[derive(Clone, PartialEq, Message)]
struct OldEvent {
    #[prost(int64, tag = "1")]
    timestamp: i64,
    #[prost(string, tag = "2")]
    uuid: String,
    #[prost(string, tag = "3")]
    src_ip: String,
    #[prost(uint32, tag = "4")]
    src_port: u32,
    #[prost(string, tag = "5")]
    dst_ip: String,
    #[prost(uint32, tag = "6")]
    dst_port: u32,
    #[prost(int64, tag = "7")]
    pid: i64,
    #[prost(string, tag = "8")]
    pname: String,
    #[prost(uint32, tag = "9")]
    r#type: u32,
    #[prost(uint32, tag = "10")]
    length: u32,
    #[prost(bytes = "bytes", tag = "11")]
    payload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct OldHeartbeat {
    #[prost(int64, tag = "1")]
    timestamp: i64,
    #[prost(int64, tag = "2")]
    count: i64,
    #[prost(string, tag = "3")]
    message: String,
}

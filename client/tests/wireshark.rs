//! Recordings for other programs: Wireshark opens them, and captures with `plaintap` as with an interface.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::{fs, os::unix::fs::symlink, process::Command};

use harness::{Plaintap, Server, event};
use plaintap_proto::{LogEntry, Protocol, log_entry::Payload};
use tungstenite::protocol::frame::coding::CloseCode;

/// An event of a connection that is numbered.
fn numbered(seq: u64, offset: u64, protocol: Protocol, payload: &str) -> LogEntry {
    let mut entry = event(seq, payload);
    if let Some(Payload::EventPayload(event)) = &mut entry.payload {
        event.connection_id = 1;
        event.stream_offset = offset;
        event.r#type = protocol as u32;
        event.direction = if matches!(protocol, Protocol::Http1Request) { 2 } else { 1 };
        event.server_name = "www.example.org".to_owned();
        event.timestamp = 1_754_144_170_000_000_000 + seq as i64 * 1_000_000;
    }
    entry
}

fn tshark(args: &[&str]) -> String {
    let done = Command::new("tshark").args(args).output().expect("tshark is missing: apt-get install tshark");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_gap_is_a_missing_segment_and_names_are_resolved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pcapng").to_str().unwrap().to_owned();
    let server = Server::new();
    let record = Plaintap::run(&["record", "-o", &file, "--no-reconnect", &server.url()]);
    let mut session = server.accept();
    let request = "GET /a HTTP/1.1\r\nHost: www.example.org\r\n\r\n";
    session.send(&numbered(1, 0, Protocol::Http1Request, request));
    session.send(&numbered(
        2,
        0,
        Protocol::Http1Response,
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall of it",
    ));
    session.send(&numbered(3, request.len() as u64 + 100, Protocol::Http1Request, "GET /b HTTP/1.1\r\n\r\n"));
    session.close(CloseCode::Normal);
    assert_eq!(record.done().code, Some(0));

    let read = ["-r", &file, "-d", "tcp.port==443,http", "-N", "n", "-T", "fields"];
    let fields = |filter: &str, field: &str| tshark(&[&read[..], &["-Y", filter, "-e", field]].concat());
    assert_eq!(fields("tcp.analysis.lost_segment", "http.request.uri"), "/b\n");
    assert_eq!(fields("http.response", "http.content_length"), "9\n");
    assert_eq!(fields("http.request.uri==\"/a\"", "ip.dst_host"), "www.example.org\n");
    assert_eq!(fields("http.request.uri==\"/a\"", "frame.time_epoch"), "1754144170.001000000\n");
    let comment = fields("http.request.uri==\"/b\"", "frame.comment");
    assert_eq!(comment, "curl[7] www.example.org; 100 bytes missing before this\n");
    assert_eq!(fields("tcp.flags.syn==1 || tcp.flags.fin==1", "tcp.stream"), "0\n".repeat(4));
}

#[test]
fn wireshark_finds_the_interface_and_captures_from_it() {
    let folder = tempfile::tempdir().unwrap();
    // By this name it is an extcap program.
    let link = folder.path().join("plaintap-extcap");
    symlink(env!("CARGO_BIN_EXE_plaintap"), &link).unwrap();
    let asked = Command::new(link).args(["--extcap-interfaces", "--extcap-version=4.0"]).output().unwrap();
    let asked = String::from_utf8(asked.stdout).unwrap();
    assert!(asked.contains("\ninterface {value=plaintap}"), "{asked}");
    let server = Server::new();
    let asked = Plaintap::run(&["extcap", "--extcap-config", "--extcap-interface=plaintap"]).done();
    assert!(asked.stdout.contains("{call=--url}"), "{}", asked.stdout);
    let asked = Plaintap::run(&["extcap", "--extcap-dlts", "--extcap-interface", "plaintap"]).done();
    assert!(asked.stdout.starts_with("dlt {number=1}"), "{}", asked.stdout);

    // As Wireshark does it: a pipe that it reads.
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.to_str().unwrap();
    let capture = [
        "extcap",
        "--capture",
        "--extcap-interface",
        "plaintap",
        "--extcap-capture-filter",
        "",
        "--fifo",
        path,
    ];
    let extcap = Plaintap::run(&[&capture[..], &["--url", &server.url()]].concat());
    let reader = Command::new("timeout")
        .args(["60", "tshark", "-i", path, "-c", "4", "-T", "fields", "-e", "frame.comment"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    server.accept().send(&numbered(1, 0, Protocol::Http1Request, "GET / HTTP/1.1\r\n\r\n"));
    let read = reader.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&read.stdout).contains("curl[7] www.example.org"), "{read:?}");
    extcap.signal("TERM");
    assert_eq!(extcap.done().code, Some(0));
    assert!(fs::metadata(&fifo).is_ok());
}

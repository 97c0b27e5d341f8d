//! `plaintap serve` from outside: between a server and a viewer, both of which the test plays.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use harness::{Plaintap, Server, Session, event, heartbeat, log};
use plaintap_proto::{Direction, Event, LogEntry, Protocol, log_entry::Payload};
use prost::Message as _;
use tungstenite::Message;

fn next(session: &mut Session) -> LogEntry {
    let Message::Binary(bytes) = session.0.read().unwrap() else { panic!() };
    LogEntry::decode(bytes).unwrap()
}

fn next_event(session: &mut Session) -> Event {
    let entry = next(session);
    assert_eq!((entry.seq, entry.log_type), (0, 2), "{entry:?}");
    match entry.payload {
        Some(Payload::EventPayload(event)) => event,
        other => panic!("{other:?}"),
    }
}

fn piece(seq: u64, direction: Direction, protocol: Protocol, payload: Vec<u8>) -> LogEntry {
    let mut entry = event(seq, "");
    if let Some(Payload::EventPayload(event)) = &mut entry.payload {
        event.direction = direction.into();
        event.r#type = protocol as u32;
        event.app = "com.example".to_owned();
        event.payload = payload.into();
    }
    entry
}

#[test]
fn a_viewer_gets_http_decoded_in_the_fields_that_it_knows() {
    let upstream = Server::new();
    let serve = Plaintap::run(&["serve", &upstream.url(), "--listen", "ws://127.0.0.1:0/"]);
    let note = serve.notes("listening on ");
    let address = note.split("ws://").nth(1).unwrap().trim_end_matches('/');
    let mut source = upstream.accept();
    let mut viewers = [Session::connect(address), Session::connect(address)];
    for viewer in &mut viewers {
        assert!(matches!(next(viewer).payload, Some(Payload::HeartbeatPayload(beat)) if beat.count == 0));
    }
    source.send(&heartbeat("a", 0));
    source.send(&log("2025-08-02T14:16:10Z INF a line"));
    let request = "GET /x HTTP/1.1\r\nHost: h\r\n\r\n";
    source.send(&piece(1, Direction::Read, Protocol::Http1Request, request.into()));
    let mut zipped = GzEncoder::new(vec![], Compression::default());
    zipped.write_all(b"in the clear").unwrap();
    let zipped = zipped.finish().unwrap();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", zipped.len());
    source.send(&piece(2, Direction::Written, Protocol::Http1Response, [head.as_bytes(), &zipped].concat()));

    for viewer in &mut viewers {
        assert!(matches!(next(viewer).payload, Some(Payload::RunLog(line)) if line.ends_with("INF a line")));
        let asked = next_event(viewer);
        assert_eq!(asked.payload, request);
        let expected = Event {
            uuid: "7_7_curl_0_0_10.0.0.2:1-10.0.0.3:443".to_owned(),
            src_ip: "10.0.0.2".to_owned(),
            src_port: 1,
            dst_ip: "10.0.0.3".to_owned(),
            dst_port: 443,
            pid: 7,
            pname: "curl".to_owned(),
            r#type: 1,
            length: request.len() as u32,
            payload: asked.payload.clone(),
            ..Event::default()
        };
        assert_eq!(asked, expected, "and no field from 100 on");
        let answered = next_event(viewer);
        assert_eq!(answered.payload, "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nin the clear");
        assert_eq!((answered.r#type, answered.uuid.contains("_curl_0_1_")), (3, true));
    }
    serve.signal("INT");
    assert_eq!(serve.done().code, Some(0));
}

#[test]
fn replay_and_serve_end_well_on_the_signals_that_end_the_others_well() {
    let folder = tempfile::tempdir().unwrap();
    let (file, upstream) = (folder.path().join("a.pb"), Server::new());
    std::fs::write(&file, event(1, "one").encode_length_delimited_to_vec()).unwrap();
    let file = file.to_str().unwrap();
    for signal in ["INT", "TERM", "HUP"] {
        for args in [&["replay", file][..], &["replay", file, "--once"], &["serve", &upstream.url()]] {
            let plaintap = Plaintap::run(&[args, &["--listen", "ws://127.0.0.1:0/"]].concat());
            plaintap.notes("listening on ");
            plaintap.signal(signal);
            assert_eq!(plaintap.done().code, Some(0), "{args:?} {signal}");
        }
    }
}

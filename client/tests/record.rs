//! `plaintap inspect`, `record` and `replay` from outside: the real program against a server or a client that the test
//! plays.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use harness::{Plaintap, Server, Session, event, heartbeat, log};
use plaintap_proto::{LogEntry, json, log_entry::Payload};
use prost::Message as _;
use tempfile::TempDir;
use tungstenite::{Message, protocol::frame::coding::CloseCode};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/vectors");

fn vectors() -> Vec<Vec<u8>> {
    let files = fs::read_dir(VECTORS).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "bin")).collect();
    files.sort();
    assert!(files.len() > 5);
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The program as a client of the server; its session.
fn client(args: &[&str]) -> (Plaintap, Session) {
    let server = Server::new();
    let url = server.url();
    let plaintap = Plaintap::run(&[args, &[&url]].concat());
    (plaintap, server.accept())
}

fn name(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Connects to the URL in a note of `replay`.
fn connect(note: &str) -> Session {
    let address = note.split("ws://").nth(1).unwrap().trim_end_matches('/');
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Session(tungstenite::client(format!("ws://{address}/"), stream).unwrap().0)
}

#[test]
fn inspect_shows_each_field_as_it_is_and_counts_kinds() {
    let (inspect, mut session) = client(&["inspect", "--no-reconnect"]);
    for bytes in vectors() {
        session.0.send(Message::binary(bytes)).unwrap();
    }
    session.0.send(Message::binary(vec![0x22, 2, b'a', 0xff])).unwrap();
    session.0.send(Message::text("{\u{1b}}")).unwrap();
    session.close(CloseCode::Normal);
    let done = inspect.done();
    for part in ["  seq: ", "    pname: ", "unknown field 199 at byte ", "(HTTP/1 request)\n"] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    let fault = "  does not decode: at byte 3, run_log is not UTF-8\n  00000000  22 02 61 ff";
    assert!(done.stdout.contains(fault), "{}", done.stdout);
    assert!(done.stdout.contains("text, where binary belongs: {\\x1b}"), "{}", done.stdout);
    assert!(!done.stdout.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    let counts = done.stderr.lines().last().unwrap();
    for part in [" messages, ", "event ", "heartbeat 2", "not understood 1", "message of an unknown kind 1"] {
        assert!(counts.contains(part), "{part}: {counts}");
    }
    assert_eq!(done.code, Some(0));
}

#[test]
fn inspect_shows_a_stream_of_a_server_that_knows_fewer_fields() {
    let (inspect, mut session) = client(&["inspect", "--no-reconnect"]);
    let mut entry = event(0, "GET / HTTP/1.1\r\n\r\n");
    if let Some(Payload::EventPayload(event)) = &mut entry.payload {
        (event.timestamp, event.r#type, event.length) = (1_754_144_170_123_456_789, 1, 18);
        event.uuid = "7_7_curl_5_1_10.0.0.2:1-10.0.0.3:443".to_owned();
    }
    session.send(&entry);
    session.close(CloseCode::Normal);
    let done = inspect.done();
    for part in [
        "    timestamp: 1754144170123456789 (14:16:10.123Z)\n",
        "    uuid: 7_7_curl_5_1_10.0.0.2:1-10.0.0.3:443\n",
        "    src_ip: 10.0.0.2\n",
        "    dst_port: 443\n",
        "    type: 1 (HTTP/1 request)\n",
        "    length: 18\n",
        "    payload: 18 bytes\n      GET / HTTP/1.1\n",
    ] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    assert!(!done.stdout.contains("seq") && !done.stdout.contains("unknown"), "{}", done.stdout);
    assert_eq!(done.code, Some(0));
}

#[test]
fn inspect_compact_is_a_line_a_message_and_ctrl_c_ends_with_the_counts() {
    let (inspect, mut session) = client(&["inspect", "--compact"]);
    session.send(&heartbeat("a", 0));
    session.send(&event(1, "GET / HTTP/1.1\r\n\r\n"));
    session.0.send(Message::binary(vec![0xff; 40])).unwrap();
    inspect.shows("#1 heartbeat, ");
    inspect.shows("GET / HTTP/1.1\\r\\n");
    inspect.shows("#3 not understood, 40 bytes: does not decode: at byte 0, a number is too long");
    inspect.signal("INT");
    let done = inspect.done();
    assert!(done.stderr.contains("3 messages"), "{}", done.stderr);
    assert_eq!(done.code, Some(0));
}

#[test]
fn a_recording_holds_each_message_as_it_came_for_its_owner_only_and_replay_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.pb");
    let (record, mut session) = client(&["record", "-o", &file, "--no-reconnect"]);
    for bytes in vectors() {
        session.0.send(Message::binary(bytes)).unwrap();
    }
    session.0.send(Message::binary(vec![0xff; 9])).unwrap();
    session.close(CloseCode::Normal);
    let done = record.done();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("a message was left out (1 so far)"), "{}", done.stderr);
    assert_eq!(mode(&file), 0o600);

    let replay = Plaintap::run(&["replay", &file, "--listen=ws://127.0.0.1:0/", "--speed", "max", "--once"]);
    let mut client = connect(&replay.notes("listening on "));
    for bytes in vectors() {
        assert_eq!(client.0.read().unwrap(), Message::binary(bytes));
    }
    assert!(matches!(client.0.read().unwrap(), Message::Close(Some(_))));
    let _ = client.0.read();
    assert_eq!(replay.done().code, Some(0));
}

#[test]
fn replay_serves_again_and_again_and_stays_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.pb");
    fs::write(&file, event(1, "one").encode_length_delimited_to_vec()).unwrap();
    let replay = Plaintap::run(&["replay", &file, "--listen", "ws://127.0.0.1:0/"]);
    let note = replay.notes("listening on ");
    for _ in 0..2 {
        let mut client = connect(&note);
        assert_eq!(client.0.read().unwrap(), Message::binary(event(1, "one").encode_to_vec()));
        replay.notes("has all of the recording");
        client.0.send(Message::Ping("there?".into())).unwrap();
        assert!(matches!(client.0.read().unwrap(), Message::Pong(_)));
    }
}

#[test]
fn jsonl_is_what_watch_prints() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.jsonl");
    let (record, mut session) = client(&["record", "-o", &file, "--count", "1"]);
    session.send(&log("a line"));
    session.send(&event(2, "text"));
    assert_eq!(record.done().code, Some(0));
    let expected = [log("a line"), event(2, "text")].map(|entry| json::line(&entry) + "\n").concat();
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}

#[test]
fn a_file_that_is_there_is_not_written_over_unless_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.pb");
    fs::write(&file, "precious").unwrap();
    let done = Plaintap::run(&["record", "-o", &file, "ws://127.0.0.1:1/"]).done();
    assert!(done.stderr.contains("--force") && done.stderr.contains(&file), "{}", done.stderr);
    assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let (record, mut session) = client(&["record", "-o", &file, "--force", "--count=1"]);
    session.send(&event(1, "x"));
    assert_eq!(record.done().code, Some(0));
    assert_eq!((read_pb(&file).len(), mode(&file)), (1, 0o600));
}

#[test]
fn full_files_are_followed_by_others_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let args =
        ["record", "-o", &name(&folder, "a.pb"), "--rotate-size", "1k", "--keep", "2", "--count", "10"];
    let (record, mut session) = client(&args);
    for seq in 1..=10 {
        session.send(&event(seq, &"x".repeat(500)));
    }
    assert_eq!(record.done().code, Some(0));
    let mut files: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["a-0004.pb", "a-0005.pb"]);
    let seqs: Vec<u64> =
        files.iter().flat_map(|file| read_pb(name(&folder, file))).map(|entry| entry.seq).collect();
    assert_eq!(seqs, [7, 8, 9, 10]);
}

#[test]
fn after_a_time_another_file_begins() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (record, mut session) = client(&["record", "-o", &name(&folder, "a.jsonl"), "--rotate-time", "1s"]);
    let second = folder.path().join("a-0002.jsonl");
    let mut seq = 0;
    while !second.exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "no second file");
        seq += 1;
        session.send(&event(seq, "x"));
        thread::sleep(Duration::from_millis(20));
    }
    record.signal("INT");
    assert_eq!(record.done().code, Some(0));
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Every message that came is in one of them, in order. The first has none if its second was over before anything came.
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let said: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let lines = said.concat().lines().count() as u64;
    let expected: String = (1..=lines).map(|seq| json::line(&event(seq, "x")) + "\n").collect();
    assert!(said.len() > 1 && !said[1].is_empty() && said.concat() == expected && lines <= seq, "{said:?}");
}

#[test]
fn ctrl_c_completes_a_recording_and_a_crash_leaves_all_that_came_before_a_pause() {
    for (signal, code) in [("INT", Some(0)), ("TERM", Some(0)), ("KILL", None)] {
        let folder = tempfile::tempdir().unwrap();
        let file = name(&folder, "a.pb");
        let (record, mut session) = client(&["record", "-o", &file]);
        let mut size = 0;
        for seq in 1..=100 {
            let event = event(seq, &"x".repeat(1000));
            size += event.encode_length_delimited_to_vec().len() as u64;
            session.send(&event);
        }
        until(|| fs::metadata(&file).unwrap().len() >= size);
        record.signal(signal);
        assert_eq!(record.done().code, code);
        assert_eq!(read_pb(&file).len(), 100, "{signal}");
    }
}

#[test]
fn what_is_no_recording_or_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.pb");
    fs::write(&file, [0xff; 100]).unwrap();
    let no_file = name(&folder, "none.pb");
    for (code, args, parts) in [
        (1, ["replay", &file, "--listen=ws://127.0.0.1:0/"], [&*file, "is no recording"]),
        (1, ["replay", &no_file, "--listen=ws://127.0.0.1:0/"], [&*no_file, "can't read"]),
        (2, ["record", "-o", "x.what"], ["x.what", "--format"]),
    ] {
        let done = Plaintap::run(&args).done();
        assert!(parts.iter().all(|part| done.stderr.contains(part)), "{}", done.stderr);
        assert_eq!((done.code, done.stderr.lines().count()), (Some(code), 1), "{}", done.stderr);
    }
}

fn read_pb(path: impl AsRef<Path>) -> Vec<LogEntry> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut entries) = (&bytes[..], vec![]);
    while !rest.is_empty() {
        entries.push(LogEntry::decode_length_delimited(&mut rest).unwrap());
    }
    entries
}

fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
}

//! `plaintap inspect`, `record` and `replay` from outside: the real program against a server or a client that the test
//! plays.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use harness::{Plaintap, Server, Session, event, heartbeat, log};
use plaintap_proto::{Direction, LogEntry, json, log_entry::Payload};
use prost::Message as _;
use serde_json::Value;
use tempfile::TempDir;
use tungstenite::{Message, protocol::frame::coding::CloseCode};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/vectors");
const ENDINGS: [&str; 4] = ["pb", "jsonl", "pcapng", "har"];
/// The room for a file, of 512 bytes each.
const BLOCKS: usize = 600;

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
    Session::connect(address)
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
fn with_force_a_file_is_replaced_when_something_came_and_not_before() {
    for ending in ENDINGS {
        let folder = tempfile::tempdir().unwrap();
        let file = name(&folder, &format!("a.{ending}"));
        fs::write(&file, "precious").unwrap();
        let done =
            Plaintap::run(&["record", "-o", &file, "--force", "--no-reconnect", "ws://127.0.0.1:1/"]).done();
        assert!(done.stderr.contains(&format!("{file} is as it was")), "{}", done.stderr);
        assert_eq!((done.code, content(&folder)), (Some(1), vec![format!("a.{ending}")]));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

        // Something comes, and does not fit.
        let server = Server::new();
        let record = Plaintap::run_within(BLOCKS, &["record", "-o", &file, "--force", &server.url()]);
        let mut session = server.accept();
        exchange(&mut session, 1, BLOCKS * 512);
        let done = record.done();
        assert!(done.stderr.contains(&format!("{file} is as it was")), "{}", done.stderr);
        assert_eq!((done.code, content(&folder)), (Some(1), vec![format!("a.{ending}")]));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

        let (record, mut session) = client(&["record", "-o", &file, "--force", "--count=2"]);
        exchange(&mut session, 1, 10);
        let done = record.done();
        assert_eq!((done.code, content(&folder)), (Some(0), vec![format!("a.{ending}")]), "{}", done.stderr);
        assert!(!fs::read_to_string(&file).is_ok_and(|text| text == "precious"));
        assert_eq!(mode(&file), 0o600);
    }
}

#[test]
fn where_nothing_came_no_file_is_left() {
    for ending in ENDINGS {
        let folder = tempfile::tempdir().unwrap();
        let file = name(&folder, &format!("a.{ending}"));
        let server = Server::new();
        let refused = Plaintap::run(&["record", "-o", &file, "--no-reconnect", &server.url()]);
        drop(server.refuse("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"));
        let nobody = Plaintap::run(&[
            "record",
            "-o",
            &name(&folder, &format!("b.{ending}")),
            "--rotate-size=1M",
            "--no-reconnect",
            "ws://127.0.0.1:1/",
        ]);
        let interrupted =
            Plaintap::run(&["record", "-o", &name(&folder, &format!("c.{ending}")), "ws://127.0.0.1:1/"]);
        interrupted.notes("trying again");
        interrupted.signal("INT");
        for (record, code) in [(refused, 1), (nobody, 1), (interrupted, 0)] {
            let done = record.done();
            assert!(done.stderr.contains(" is not kept"), "{}", done.stderr);
            assert_eq!(done.code, Some(code), "{}", done.stderr);
        }
        assert_eq!(content(&folder), [""; 0]);

        // A heartbeat is something: the connection stood.
        let (record, mut session) = client(&["record", "-o", &file, "--no-reconnect"]);
        session.send(&heartbeat("a", 0));
        session.close(CloseCode::Normal);
        assert_eq!((record.done().code, content(&folder)), (Some(0), vec![format!("a.{ending}")]));
    }
}

#[test]
fn a_har_on_stdout_is_json_if_nothing_came_too() {
    let done =
        Plaintap::run(&["record", "-o", "-", "--format=har", "--no-reconnect", "ws://127.0.0.1:1/"]).done();
    assert!(serde_json::from_str::<Value>(&done.stdout).is_ok(), "{}", done.stdout);
    assert_eq!(done.code, Some(1));
}

#[test]
fn a_file_that_can_not_be_made_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--force"], &["--rotate-size=1M"]] {
        let file = name(&folder, "none/a.pb");
        let done = Plaintap::run(&[&["record", "-o", &file, "ws://127.0.0.1:1/"], more].concat()).done();
        assert!(done.stderr.contains(&format!("can't begin {file}: ")), "{}", done.stderr);
        assert_eq!((done.code, done.stderr.lines().count()), (Some(1), 1), "{}", done.stderr);
    }
}

#[test]
fn where_there_is_no_room_for_more_all_that_fits_is_whole_and_counted() {
    // Pieces that come to the system one by one, and many at once.
    for size in [120_000, 1000] {
        let exchanges = 1_200_000 / size as u64;
        for ending in ENDINGS {
            let folder = tempfile::tempdir().unwrap();
            let file = name(&folder, &format!("a.{ending}"));
            let server = Server::new();
            let record = Plaintap::run_within(BLOCKS, &["record", "-o", &file, &server.url()]);
            let mut session = server.accept();
            let sent: Vec<[LogEntry; 2]> =
                (1..=exchanges).map(|number| exchange(&mut session, number, size)).collect();
            let done = record.done();
            assert_eq!(done.code, Some(1), "{}", done.stderr);
            assert!(
                done.stderr.contains(&format!("can't write to {file}: File too large")),
                "{}",
                done.stderr
            );
            let (count, things) = match ending {
                "har" => (whole_har(&file), "exchanges"),
                "pcapng" => (whole_pcapng(&file), "events"),
                ending => (whole_messages(&file, ending, &sent.concat()), "events"),
            };
            assert!(count > 1, "{count}");
            assert!(
                done.stderr.contains(&format!("{count} {things} in {file}\n")),
                "{count}: {}",
                done.stderr
            );
            let length = fs::metadata(&file).unwrap().len() as usize;
            assert!(length <= BLOCKS * 512 && BLOCKS * 512 - length < 2 * size + 2000, "{length}");
        }
    }
}

#[test]
fn of_what_is_written_at_the_end_as_much_stays_as_fits() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "a.har");
    let server = Server::new();
    let record = Plaintap::run_within(BLOCKS, &["record", "-o", &file, "--no-reconnect", &server.url()]);
    let mut session = server.accept();
    for number in 1..=3 {
        let body = "x".repeat(120_000);
        let request = format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 120000\r\n\r\n{body}");
        let mut entry = event(number, &request);
        if let Some(Payload::EventPayload(event)) = &mut entry.payload {
            (event.connection_id, event.direction) = (number, Direction::Written.into());
        }
        session.send(&entry);
    }
    session.close(CloseCode::Normal);
    let done = record.done();
    assert!(done.stderr.contains(&format!("2 exchanges in {file}\n")), "{}", done.stderr);
    let har: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!((har["log"]["entries"].as_array().unwrap().len(), done.code), (2, Some(1)));
}

#[test]
fn a_file_of_several_that_has_no_room_for_anything_goes_and_the_others_stay() {
    for ending in ENDINGS {
        let folder = tempfile::tempdir().unwrap();
        let file = name(&folder, &format!("a.{ending}"));
        let server = Server::new();
        let args = ["record", "-o", &file, "--rotate-size=150k", &server.url()];
        let record = Plaintap::run_within(BLOCKS, &args);
        let mut session = server.accept();
        let what = if ending == "har" {
            exchange(&mut session, 1, 160_000);
            "1 exchange"
        } else {
            session.send(&event(1, &"x".repeat(160_000)));
            "1 event"
        };
        exchange(&mut session, 2, 2 * BLOCKS * 512);
        let done = record.done();
        assert!(done.stderr.contains(&format!("a-0002.{ending}: File too large")), "{}", done.stderr);
        let first = format!("a-0001.{ending}");
        assert!(done.stderr.contains(&format!("{what} in {}\n", name(&folder, &first))), "{}", done.stderr);
        assert_eq!((done.code, content(&folder)), (Some(1), vec![first]));
    }
}

#[test]
fn a_device_that_is_full_is_told_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = name(&folder, "full.jsonl");
    symlink("/dev/full", &file).unwrap();
    let (record, mut session) = client(&["record", "-o", &file]);
    session.send(&event(1, "x"));
    let done = record.done();
    for part in [format!("can't write to {file}: No space left"), format!("0 events in {file}\n")] {
        assert!(done.stderr.contains(&part), "{}", done.stderr);
    }
    assert_eq!((done.code, content(&folder)), (Some(1), vec!["full.jsonl".to_owned()]));
}

#[test]
fn a_flag_that_does_nothing_without_another_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    for (args, parts) in [
        (&[&*name(&folder, "a.pb"), "--keep=3"][..], ["--keep", "--rotate-size"]),
        (&["-", "--format=jsonl", "--force"], ["--force", "-o -"]),
        (&["-", "--format=jsonl", "--keep=3"], ["--keep", "-o -"]),
        (&["-", "--format=jsonl", "--rotate-time=1h"], ["--rotate-time", "-o -"]),
    ] {
        let done =
            Plaintap::run(&[&["record", "ws://127.0.0.1:1/", "--no-reconnect", "-o"], args].concat()).done();
        assert!(parts.iter().all(|part| done.stderr.contains(part)), "{}", done.stderr);
        assert_eq!((done.code, done.stderr.lines().count()), (Some(2), 1), "{}", done.stderr);
    }
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
    let done = record.done();
    assert!(done.stderr.contains("4 events in 2 files, the last of them a-0005.pb\n"), "{}", done.stderr);
    assert_eq!(done.code, Some(0));
    let files = content(&folder);
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
        assert!(began.elapsed() < Duration::from_secs(120), "no second file");
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

/// A request with so long a body, and its response. It may be that nobody takes them any more.
fn exchange(session: &mut Session, number: u64, size: usize) -> [LogEntry; 2] {
    let body = "x".repeat(size);
    let request = format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n{body}");
    let mut both = [
        event(2 * number - 1, &request),
        event(2 * number, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ];
    for (entry, direction) in both.iter_mut().zip([Direction::Written, Direction::Read]) {
        if let Some(Payload::EventPayload(event)) = &mut entry.payload {
            (event.connection_id, event.direction) = (number, direction.into());
        }
        let _ = session.0.send(Message::binary(entry.encode_to_vec()));
    }
    both
}

/// How many of these messages the file holds, which has to be all that fit.
fn whole_messages(file: &str, ending: &str, sent: &[LogEntry]) -> usize {
    let pieces: Vec<Vec<u8>> = sent
        .iter()
        .map(|entry| match ending {
            "pb" => entry.encode_length_delimited_to_vec(),
            _ => (json::line(entry) + "\n").into_bytes(),
        })
        .collect();
    let mut length = 0;
    let fit = pieces.iter().take_while(|piece| {
        length += piece.len();
        length <= BLOCKS * 512
    });
    let fit = fit.count();
    assert!(fs::read(file).unwrap() == pieces[..fit].concat(), "it is not the first {fit} messages");
    fit
}

fn whole_har(file: &str) -> usize {
    let har: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let entries = har["log"]["entries"].as_array().unwrap();
    for (number, entry) in (1..).zip(entries) {
        assert_eq!(entry["request"]["url"], format!("https://h/{number}"));
        assert_eq!(entry["response"]["content"]["text"], "ok");
    }
    entries.len()
}

/// How many ends of events' payloads there are in blocks that are all whole.
fn whole_pcapng(file: &str) -> usize {
    let bytes = fs::read(file).unwrap();
    let (mut rest, mut last, mut events) = (&bytes[..], 0, 0);
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let length = word(4);
        assert_eq!(word(length - 4), length);
        // An event's segments are full but for its last one.
        if word(0) == 6 {
            let tcp = &rest[28 + 14 + 20..28 + word(20)];
            last = tcp.len() - usize::from(tcp[12] >> 4) * 4;
            events += usize::from((1..32 << 10).contains(&last));
        }
        rest = &rest[length..];
    }
    assert!(last < 32 << 10, "an event is cut");
    events
}

/// The names in a folder.
fn content(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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

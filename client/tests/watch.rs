//! `plaintap watch` from outside: the real program against a server that the test plays.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod harness;

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
};

use harness::{Plaintap, Server, Session, event, heartbeat, log, read_request};
use plaintap_proto::{Direction, log_entry::Payload};
use tungstenite::{Message, protocol::frame::coding::CloseCode};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/vectors");

#[test]
fn an_event_is_shown_as_text() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--raw"]);
    let mut session = server.accept();
    session.send(&event(1, "GET /hello HTTP/1.1\r\n\r\n"));
    // The server goes on, so this also holds that what is shown does not stay in a buffer.
    watch.shows("curl[7]");
    watch.shows("  GET /hello HTTP/1.1");
}

#[test]
fn http_is_put_together_and_filtered() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--count=4", "--filter", "host=h and not path=/b"]);
    let mut session = server.accept();
    for (seq, text) in [
        "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /c HTTP/1.1\r\nHost: h\r\nX: ",
        "cut in two\r\n\r\n",
    ]
    .iter()
    .enumerate()
    {
        session.send(&event(seq as u64 + 1, text));
    }
    let done = watch.done();
    assert_eq!(done.code, Some(0));
    assert!(done.stdout.contains("GET https://h/a (no response seen)"), "{}", done.stdout);
    assert!(done.stdout.contains("  > X: cut in two\n") && !done.stdout.contains("/b"), "{}", done.stdout);
}

#[test]
fn a_program_that_is_named_late_is_filtered_by_and_shown_with_its_exchange() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--filter", "process=/usr/bin/curl"]);
    let mut session = server.accept();
    let request = event(1, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut response =
        event(2, "HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=iso-8859-1\r\n\r\n<p>ok</p>");
    let Some(Payload::EventPayload(answer)) = &mut response.payload else { panic!() };
    (answer.app, answer.direction) = ("/usr/bin/curl".to_owned(), Direction::Read.into());
    // Its end is its connection's, so it is shown at a heartbeat.
    let mut beat = heartbeat("a", 2);
    let Some(Payload::HeartbeatPayload(at)) = &mut beat.payload else { panic!() };
    at.timestamp = 10;
    for entry in [request, response, beat] {
        session.send(&entry);
    }
    watch.shows("GET https://h/a 200 in 0.000 ms, /usr/bin/curl");
    watch.shows("  < <p>ok</p>");
}

#[test]
fn what_was_begun_is_shown_when_the_person_has_seen_enough() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url()]);
    let mut session = server.accept();
    session.send(&event(1, "GET /whole HTTP/1.1\r\nHost: h\r\n\r\n"));
    session.send(&event(2, "POST /begun HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\npart"));
    session.send(&log("a line"));
    watch.notes("connected to");
    // A ping that is answered comes behind all that was sent before.
    session.0.send(Message::Ping("there?".into())).unwrap();
    while !matches!(session.0.read(), Ok(Message::Pong(_))) {}
    watch.signal("INT");
    let done = watch.done();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for shown in ["GET https://h/whole (no response seen)", "POST https://h/begun", "  > part\n"] {
        assert!(done.stdout.contains(shown), "{shown}: {}", done.stdout);
    }
}

#[test]
fn a_wrong_filter_is_a_usage_error_that_says_where() {
    let done = Plaintap::watch(&["--filter", "hots=a"]).done();
    assert_eq!((done.stderr.lines().count(), done.code), (1, Some(2)), "{}", done.stderr);
    assert!(done.stderr.contains("\"hots\" is no field") && done.stderr.contains("character 1"));
}

#[test]
fn nothing_of_a_vector_reaches_the_terminal_raw() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--no-reconnect", "--logs", "--heartbeats"]);
    let mut session = server.accept();
    for (bytes, _) in vectors() {
        session.0.send(Message::binary(bytes)).unwrap();
    }
    session.send(&log("\u{1b}[31mlog\u{202e}"));
    session.close(CloseCode::Normal);
    let done = watch.done();
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{202a}'..='\u{202e}');
    assert!(!done.stdout.contains(obeyed) && !done.stderr.contains(obeyed), "{:?}", done.stdout);
    assert!(done.stdout.contains(r"\x1b[31mlog\u{202e}"), "{}", done.stdout);
    assert_eq!(done.code, Some(0));
}

#[test]
fn json_is_that_of_the_vectors() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--no-reconnect", "--json", "--logs", "--heartbeats"]);
    let mut session = server.accept();
    for (bytes, _) in vectors() {
        session.0.send(Message::binary(bytes)).unwrap();
    }
    session.close(CloseCode::Away);
    let done = watch.done();
    let expected: String = vectors().into_iter().map(|(_, json)| json.trim_end().to_owned() + "\n").collect();
    assert_eq!(done.stdout, expected);
    assert_eq!(done.code, Some(0));
}

#[test]
fn logs_and_heartbeats_are_left_out_unless_asked_for_and_count_ends_it() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--count=2", "--json"]);
    let mut session = server.accept();
    for entry in [log("line"), heartbeat("a", 0), event(1, "one"), event(2, "two")] {
        session.send(&entry);
    }
    let done = watch.done();
    assert_eq!((done.stdout.lines().count(), done.code), (2, Some(0)), "{}", done.stdout);
}

#[test]
fn it_reconnects_and_says_what_it_missed() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url()]);
    let mut first = server.accept();
    first.send(&heartbeat("a", 5));
    first.send(&event(6, "before"));
    watch.shows("before");
    drop(first);
    watch.notes("trying again");

    let mut second = server.accept();
    second.send(&heartbeat("a", 16));
    watch.notes("missed 10 messages while away");
    second.send(&event(17, "after"));
    watch.shows("after");
    drop(second);

    server.accept().send(&heartbeat("b", 3));
    watch.notes("the agent was restarted");
}

#[test]
fn it_asks_to_go_on_where_it_was_and_copes_with_a_server_that_can_not() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&format!("{}x?backlog=all&pid=7", server.url())]);
    let mut first = server.accept();
    first.send(&heartbeat("a", 5));
    first.send(&event(6, "before"));
    watch.shows("before");
    drop(first);

    let mut refused = server.accept_tcp();
    let request = read_request(&mut refused);
    assert!(request.starts_with("get /x?after=6&run=a&pid=7 http/1.1\r\n"), "{request}");
    refused.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nno such key\r\n").unwrap();
    drop(refused);
    let mut again = server.accept_tcp();
    let request = read_request(&mut again);
    assert!(request.starts_with("get /x?backlog=all&pid=7 http/1.1\r\n"), "{request}");
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url()]);
    // As `adb forward` does while no agent runs.
    drop(server.accept_tcp());
    watch.notes("trying again");
    server.refuse("HTTP/1.1 503 Service Unavailable\r\n\r\ntoo many clients");
    watch.notes("503 Service Unavailable: too many clients");
    server.accept().send(&event(1, "at last"));
    watch.notes("connected to");
    watch.shows("at last");
}

#[test]
fn a_refusal_is_shown_and_final() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url()]);
    // Kept open: there is no end of the body to wait for.
    let _open = server.refuse("HTTP/1.1 403 Forbidden\r\n\r\nnot from \x1b[31mhere\r\n");
    let done = watch.done();
    assert!(done.stderr.contains(r"403 Forbidden: not from \x1b[31mhere"), "{}", done.stderr);
    assert_eq!((done.stderr.lines().count(), done.code), (1, Some(1)), "{}", done.stderr);
}

#[test]
fn without_reconnecting_a_cut_connection_and_a_full_server_are_failures() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--no-reconnect"]);
    drop(server.accept());
    assert_eq!(watch.done().code, Some(1));

    let watch = Plaintap::watch(&[&server.url(), "--no-reconnect"]);
    drop(server.refuse("HTTP/1.1 503 Service Unavailable\r\n\r\n"));
    assert_eq!(watch.done().code, Some(1));
}

#[test]
fn a_wrong_url_is_a_usage_error_that_names_it_and_a_right_one() {
    let done = Plaintap::watch(&["http://127.0.0.1:1/"]).done();
    assert_eq!((done.stderr.lines().count(), done.code), (1, Some(2)), "{}", done.stderr);
    assert!(done.stderr.contains("http://127.0.0.1:1/") && done.stderr.contains("ws://127.0.0.1:28257/"));
}

#[test]
fn garbage_is_noted_and_survived() {
    let server = Server::new();
    let watch = Plaintap::watch(&[&server.url(), "--max-payload", "2"]);
    let mut session = server.accept();
    session.0.send(Message::binary(vec![0xff; 40])).unwrap();
    watch.notes("a message was not understood (1 so far)");
    session.0.send(Message::text("{}")).unwrap();
    watch.notes("it is text");
    session.0.send(Message::Ping("alive?".into())).unwrap();
    session.send(&event(1, "still there"));
    watch.shows("9 bytes more not shown");
    assert!(matches!(session.0.read(), Ok(Message::Pong(_))));

    // It may be gone before it has got all of it.
    let _ = session.0.send(Message::binary(vec![0; (1 << 20) + 1]));
    watch.notes("the server sent what it must not");
    server.accept().send(&event(2, "back"));
    watch.shows("ba");
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    let server = Server::new();
    // Whether more comes or not.
    for events in [0, 1] {
        let (watch, stdout) = Plaintap::watch_unread(&[&server.url()]);
        let mut session = server.accept();
        watch.notes("connected to");
        drop(stdout);
        (0..events).for_each(|seq| session.send(&event(seq, "into the void")));
        let done = watch.done();
        assert_eq!((done.stderr.as_str(), done.code), ("", Some(0)));
    }
}

#[test]
fn the_request_is_one_that_servers_let_in() {
    let server = Server::new();
    let _watch = Plaintap::watch(&[&format!("{}x?y=z", server.url())]);
    let mut stream = server.accept_tcp();
    let request = read_request(&mut stream);
    let host = format!("\r\nhost: {}\r\n", server.address);
    for part in ["get /x?y=z http/1.1\r\n", "\r\norigin: http://localhost/\r\n", &host] {
        assert!(request.contains(part), "{part:?} is not in {request:?}");
    }
    stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it says no more");
}

#[test]
fn what_stands_still_amid_a_handshake_goes_on_with_it() {
    let server = Server::new();
    let watch = Plaintap::watch(&["--count=1", "--raw", "--no-reconnect", &server.url()]);
    let stream = server.accept_tcp();
    watch.stands_still();
    let mut session = Session(tungstenite::accept(stream).unwrap());
    session.send(&event(1, "after all"));
    let done = watch.done();
    assert!(done.stdout.contains("after all") && done.code == Some(0), "{}{}", done.stdout, done.stderr);
}

/// Each vector's message and its JSON.
fn vectors() -> Vec<(Vec<u8>, String)> {
    let mut files: Vec<PathBuf> = fs::read_dir(VECTORS)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "bin"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
        .iter()
        .map(|bin| (fs::read(bin).unwrap(), fs::read_to_string(bin.with_extension("json")).unwrap()))
        .collect()
}

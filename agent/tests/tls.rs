//! `wss://` places, with OpenSSL's own client: `cargo test -p plaintapd --features tls --test tls`, as root.
#![expect(clippy::expect_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PATIENCE: Duration = Duration::from_secs(60);
const REQUEST: &str = "GET /?logs=0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes of `read`, line by line.
fn lines(read: impl Read + Send + 'static) -> Receiver<String> {
    let (found, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(read).split(b'\n').map_while(Result::ok);
        // Messages of the stream are no text.
        let mut lines = lines.filter_map(|line| String::from_utf8(line).ok());
        lines.try_for_each(|line| found.send(line))
    });
    lines
}

/// The next of `lines` that `done` takes, within `patience`; none if they end without.
fn line(lines: &Receiver<String>, patience: Duration, done: impl Fn(&str) -> bool) -> Option<String> {
    let until = Instant::now() + patience;
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) if done(&line) => return Some(line),
            Ok(_) => {}
            Err(end) => {
                assert_eq!(end, RecvTimeoutError::Disconnected, "neither the line nor an end, in time");
                return None;
            }
        }
    }
}

/// A certificate for localhost and its key, `NAME.pem` and `NAME.key`.
fn certificate(folder: &Path, name: &str) {
    let made = Command::new("openssl")
        .current_dir(folder)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        // Whom it is for, not who signs.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
        .output()
        .expect("openssl, from Debian's package openssl");
    assert!(made.status.success(), "{made:?}");
}

/// An agent that serves TLS, its port, and the lines of its log that follow.
fn agent(folder: &Path, arguments: &[&str]) -> (Running, u16, Receiver<String>) {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_plaintapd"))
        .current_dir(folder)
        .args([
            "--no-scan",
            "--ecaptureq",
            "wss://127.0.0.1:0/",
            "--tls-cert",
            "server.pem",
            "--tls-key",
            "server.key",
        ])
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent");
    let log = lines(agent.stderr.take().expect("a pipe"));
    let agent = Running(agent);
    let listening = line(&log, PATIENCE, |line| line.contains(" listening url=wss://127.0.0.1:"))
        .expect("root, and a TLS library");
    let port = listening.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
    (agent, port.expect("a port"), log)
}

/// OpenSSL's client with these arguments.
fn client(folder: &Path, port: u16, arguments: &[&str]) -> Running {
    let client = Command::new("openssl")
        .current_dir(folder)
        .args([
            "s_client",
            "-quiet",
            "-verify_return_error",
            "-CAfile",
            "server.pem",
            "-servername",
            "localhost",
        ])
        .args(["-connect", &format!("127.0.0.1:{port}")])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl");
    Running(client)
}

/// The first line of the answer that OpenSSL's client gets with these arguments.
fn answer(folder: &Path, port: u16, arguments: &[&str]) -> Option<String> {
    let mut client = client(folder, port, arguments);
    let mut input = client.0.stdin.take().expect("a pipe");
    let output = client.0.stdout.take().expect("a pipe");
    let _ = input.write_all(REQUEST.as_bytes());
    line(&lines(output), PATIENCE, |line| line.starts_with("HTTP/"))
}

#[test]
fn clients_speak_tls_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "server");
    let (_agent, port, _log) = agent(folder.path(), &[]);
    assert_eq!(answer(folder.path(), port, &[]).as_deref(), Some("HTTP/1.1 101 Switching Protocols\r"));
    assert!(answer(folder.path(), port, &["-tls1_2"]).is_some());
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(REQUEST.as_bytes()).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP/"), "{said:?}");
}

#[test]
fn clients_need_a_certificate_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["server", "client", "stranger"] {
        certificate(folder.path(), name);
    }
    let (_agent, port, _log) = agent(folder.path(), &["--tls-client-ca", "client.pem"]);
    assert!(answer(folder.path(), port, &["-cert", "client.pem", "-key", "client.key"]).is_some());
    assert_eq!(answer(folder.path(), port, &[]), None);
    assert_eq!(answer(folder.path(), port, &["-cert", "stranger.pem", "-key", "stranger.key"]), None);
}

#[test]
fn who_accepts_nothing_leaves_nothing_open() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "server");
    let (agent, port, log) = agent(folder.path(), &[]);
    let pid = agent.0.id();
    let serving = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let open_files = || fs::read_dir(format!("/proc/{}/fd", serving.trim())).unwrap().count();
    let before = open_files();

    let mut stuck = client(folder.path(), port, &[]);
    let mut output = BufReader::new(stuck.0.stdout.take().unwrap());
    stuck.0.stdin.as_mut().unwrap().write_all(REQUEST.as_bytes()).unwrap();
    let mut status = Vec::new();
    output.read_until(b'\n', &mut status).unwrap();
    assert!(status.starts_with(b"HTTP/1.1 101"), "{status:?}");
    kill(Pid::from_raw(stuck.0.id() as i32), Signal::SIGSTOP).unwrap();
    assert!(open_files() > before);

    // More than both ends' sockets hold.
    let mut server = Command::new("openssl")
        .current_dir(folder.path())
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "server.key"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .unwrap();
    let mut said = BufReader::new(server.0.stdout.take().unwrap());
    let port = loop {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it says where it listens");
        if let Some(place) = line.strip_prefix("ACCEPT ") {
            break place.trim().rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
        }
    };
    let reading = thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let mut load = client(folder.path(), port, &[]);
    load.0.stdin.take().unwrap().write_all(&vec![b'x'; 32 << 20]).unwrap();

    // After 30 s, found out after 10 more at the latest.
    line(&log, PATIENCE * 2, |line| line.contains("it accepted nothing for 30 s and was reset"))
        .expect("it was stuck");
    let since = Instant::now();
    while open_files() > before {
        assert!(since.elapsed() < PATIENCE, "{} files, {before} before", open_files());
        thread::sleep(Duration::from_millis(100));
    }
    drop((load, server));
    reading.join().unwrap().unwrap();
}

#[test]
fn files_that_are_of_no_use_are_refused_with_2() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), "server");
    fs::write(folder.path().join("empty"), "").unwrap();
    for arguments in [
        &[][..],
        &["--tls-cert", "server.pem"],
        &["--tls-cert", "server.pem", "--tls-key", "/nonexistent"],
        &["--tls-cert", "empty", "--tls-key", "server.key"],
        &["--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "empty"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_plaintapd"))
            .current_dir(folder.path())
            .args(["--ecaptureq", "wss://127.0.0.1:0/"])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

//! A server that the test plays, and the real program. Every wait is bounded.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use plaintap::waits::Restarting;
use plaintap_proto::{Event, Heartbeat, LogEntry, LogType, log_entry::Payload};
use prost::Message as _;
use tungstenite::{
    Message, WebSocket,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A listener whose connections wait to be accepted.
pub struct Server {
    pub address: SocketAddr,
    streams: Receiver<TcpStream>,
}

impl Server {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel();
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).try_for_each(|stream| sender.send(stream))
        });
        Self { address, streams }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// A connection on which nothing was said yet.
    pub fn accept_tcp(&self) -> Restarting {
        let stream = self.streams.recv_timeout(PATIENCE).expect("nobody connects");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Restarting(stream)
    }

    pub fn accept(&self) -> Session {
        Session(tungstenite::accept(self.accept_tcp()).unwrap())
    }

    /// Answers a connection in HTTP and returns it, so that it can be kept open.
    pub fn refuse(&self, answer: &str) -> Restarting {
        let mut stream = self.accept_tcp();
        read_request(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
        stream
    }
}

/// All of a request's head, in lower case.
pub fn read_request(stream: &mut impl Read) -> String {
    let mut request = vec![];
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    String::from_utf8(request).unwrap().to_lowercase()
}

/// One connection, seen from the server. To drop it is to cut it.
pub struct Session(pub WebSocket<Restarting>);

impl Session {
    /// Connects to a server, as its client.
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(tungstenite::client(format!("ws://{address}/"), Restarting(stream)).unwrap().0)
    }

    pub fn send(&mut self, entry: &LogEntry) {
        self.0.send(Message::binary(entry.encode_to_vec())).unwrap();
    }

    pub fn close(mut self, code: CloseCode) {
        self.0.send(Message::Close(Some(CloseFrame { code, reason: "bye".into() }))).unwrap();
        // The client's answer, if it is not gone already.
        let _ = self.0.read();
    }
}

pub fn event(seq: u64, payload: &str) -> LogEntry {
    let event = Event {
        pid: 7,
        pname: "curl".to_owned(),
        src_ip: "10.0.0.2".to_owned(),
        src_port: 1,
        dst_ip: "10.0.0.3".to_owned(),
        dst_port: 443,
        payload: payload.as_bytes().to_vec().into(),
        ..Event::default()
    };
    LogEntry { log_type: LogType::Event.into(), seq, payload: Some(Payload::EventPayload(event)) }
}

pub fn heartbeat(run_id: &str, last_seq: u64) -> LogEntry {
    let message = "heartbeat:0".to_owned();
    let heartbeat = Heartbeat { run_id: run_id.to_owned(), last_seq, message, ..Heartbeat::default() };
    LogEntry { payload: Some(Payload::HeartbeatPayload(heartbeat)), ..LogEntry::default() }
}

pub fn log(line: &str) -> LogEntry {
    let payload = Some(Payload::RunLog(line.to_owned()));
    LogEntry { log_type: LogType::ProcessLog.into(), payload, ..LogEntry::default() }
}

/// The program, killed if the test ends first.
pub struct Plaintap {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

/// What it printed that was not yet read, and how it ended.
pub struct Done {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Plaintap {
    pub fn watch(args: &[&str]) -> Self {
        Self::run(&[&["watch"], args].concat())
    }

    /// The program with any subcommand.
    pub fn run(args: &[&str]) -> Self {
        let (mut plaintap, stdout) = Self::run_unread(args);
        plaintap.stdout = lines(stdout);
        plaintap
    }

    /// The program and its stdout, for the caller to close.
    pub fn watch_unread(args: &[&str]) -> (Self, ChildStdout) {
        Self::run_unread(&[&["watch"], args].concat())
    }

    /// The program where no file can be larger than so many blocks of 512 bytes, as on a full disk.
    pub fn run_within(blocks: usize, args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        // Without the trap the system would kill who writes more.
        command.args(["-c", &format!("trap '' XFSZ && ulimit -f {blocks} && exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_plaintap")).args(args);
        let (mut plaintap, stdout) = Self::spawn(command);
        plaintap.stdout = lines(stdout);
        plaintap
    }

    fn run_unread(args: &[&str]) -> (Self, ChildStdout) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plaintap"));
        command.args(args);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> (Self, ChildStdout) {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let stderr = lines(child.stderr.take().unwrap());
        (Self { child, stdout: lines(io::empty()), stderr }, stdout)
    }

    /// Waits for a line on stdout that contains `text`.
    pub fn shows(&self, text: &str) {
        until(&self.stdout, text);
    }

    /// Waits for a line on stderr that contains `text`, and returns it.
    pub fn notes(&self, text: &str) -> String {
        until(&self.stderr, text)
    }

    /// As Ctrl-C, or a crash.
    pub fn signal(&self, name: &str) {
        let signal = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(signal.success());
    }

    /// Stops all of it and lets it go on, when it had time to wait for what comes next.
    pub fn stands_still(&self) {
        thread::sleep(Duration::from_millis(100));
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.child.id());
        let deadline = Instant::now() + PATIENCE;
        while !fs::read_to_string(&stat).unwrap().contains(") T ") {
            assert!(Instant::now() < deadline, "it does not stop");
            thread::sleep(Duration::from_millis(5));
        }
        self.signal("CONT");
    }

    /// Waits for it to end.
    pub fn done(mut self) -> Done {
        let (stdout, stderr) = (rest(&self.stdout), rest(&self.stderr));
        // It has closed both, so it is about to end.
        Done { stdout, stderr, code: self.child.wait().unwrap().code() }
    }
}

impl Drop for Plaintap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

fn until(lines: &Receiver<String>, text: &str) -> String {
    let mut seen = vec![];
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(text) => return line,
            Ok(line) => seen.push(line),
            Err(why) => panic!("no {text:?} ({why}), only {seen:#?}"),
        }
    }
}

fn rest(lines: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => text += &(line + "\n"),
            Err(RecvTimeoutError::Disconnected) => return text,
            Err(RecvTimeoutError::Timeout) => panic!("it does not end; it printed {text:?}"),
        }
    }
}

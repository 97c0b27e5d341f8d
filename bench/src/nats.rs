//! A nats-server of our own with JetStream, and the little of its protocol that asks it and reads a stream.
//! Source: docs.nats.io, "NATS Client Protocol" and "NATS API Reference".

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::Running;

/// For an answer, and for the rest of what has begun to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a reader's messages are delivered.
const DELIVERED: &str = "bench.reader";

/// A running server; ended when dropped.
pub struct Nats {
    process: Running,
    port: u16,
}

/// What came for one of our subscriptions.
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// Its headers, a line each.
    pub headers: String,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Nats {
    /// Starts `nats-server` on a free port and waits until it listens; the stream is in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir"]).arg(folder);
        let mut process = Running::start(command.stderr(Stdio::piped()))?;
        let mut log = BufReader::new(process.stderr()?);
        let mut line = String::new();
        let port = loop {
            let said = std::mem::take(&mut line);
            ensure!(log.read_line(&mut line)? > 0, "nats-server ended: {said}");
            if let Some((_, port)) = line.split_once("client connections on 127.0.0.1:") {
                break port.trim().parse()?;
            }
        };
        // Its log must go somewhere.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self { process, port })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client.
    pub fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).context("connecting to nats-server")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let inbox = format!("bench.answers.{}", stream.local_addr()?.port());
        let mut connection = Connection { stream: BufReader::with_capacity(256 << 10, stream), inbox };
        connection.send(&format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true}}\r\nSUB {} 1\r\n",
            connection.inbox
        ))?;
        Ok(connection)
    }

    /// A client that gets all of a stream, from its first message on, once it is stored.
    pub fn reader(&self, stream: &str) -> Result<Connection> {
        let mut reader = self.connect()?;
        reader.send(&format!("SUB {DELIVERED} 2\r\n"))?;
        // When it answers, it knows of the subscription.
        reader.request("$JS.API.INFO", "")?;
        let consumer = json!({
            "stream_name": stream,
            "config": {"deliver_subject": DELIVERED, "deliver_policy": "all", "ack_policy": "none"},
        });
        self.connect()?.request(&format!("$JS.API.CONSUMER.CREATE.{stream}"), &consumer.to_string())?;
        Ok(reader)
    }
}

/// A client's connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// Where answers come.
    inbox: String,
}

impl Connection {
    fn send(&mut self, text: &str) -> Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).context("telling nats-server")
    }

    /// Asks the server's API.
    pub fn request(&mut self, subject: &str, body: &str) -> Result<Value> {
        self.send(&format!("PUB {subject} {} {}\r\n{body}\r\n", self.inbox, body.len()))?;
        let answer = self.message(PATIENCE)?.with_context(|| format!("{subject}: no answer"))?;
        let answer: Value = serde_json::from_slice(&answer.body)?;
        ensure!(answer.get("error").is_none(), "{subject}: {answer}");
        Ok(answer)
    }

    /// The next message; none if nothing comes for `patience`.
    pub fn message(&mut self, patience: Duration) -> Result<Option<Message>> {
        loop {
            if self.stream.buffer().is_empty() && !self.waited(patience)? {
                return Ok(None);
            }
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "nats-server hung up");
            let words: Vec<&str> = line.split_whitespace().collect();
            // HMSG SUBJECT SID [REPLY] HEADERS ALL, and MSG without HEADERS: bytes.
            let (headers, all) = match words[..] {
                ["HMSG", .., headers, all] => (headers.parse()?, all.parse()?),
                ["MSG", .., all] => (0, all.parse()?),
                ["PING"] => {
                    self.send("PONG\r\n")?;
                    continue;
                }
                ["-ERR", ..] => bail!("nats-server says {line}"),
                _ => continue,
            };
            let mut bytes = vec![0; all + 2];
            self.stream.read_exact(&mut bytes).context("a message's rest")?;
            bytes.truncate(all);
            ensure!(headers <= all, "headers longer than their message: {line}");
            let body = bytes.split_off(headers);
            return Ok(Some(Message {
                subject: words[1].to_owned(),
                headers: String::from_utf8(bytes)?,
                body,
            }));
        }
    }

    /// Waits until something comes, and says whether it did.
    fn waited(&mut self, patience: Duration) -> Result<bool> {
        self.stream.get_ref().set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let came = loop {
            match self.stream.fill_buf().map(<[u8]>::len) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                came => break came,
            }
        };
        self.stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        match came {
            Ok(length) => {
                ensure!(length > 0, "nats-server hung up");
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

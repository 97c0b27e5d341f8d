//! A nats-server with JetStream in a folder of its own, and the little of its protocol that shows what it has stored.
//! Source: docs.nats.io, "NATS Client Protocol" and "NATS API Reference".

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::signal::Signal;
use plaintap_tests::process::Process;
use plaintap_tests::{PATIENCE, need, net, until};
use serde_json::Value;
use tempfile::TempDir;

/// A running server.
pub struct Nats {
    process: Process,
    flags: Vec<String>,
    /// Where it listens, without a user.
    pub url: String,
    /// Whom it takes us for where it asks: a name and a password.
    pub user: (&'static str, &'static str),
    port: u16,
    folder: TempDir,
}

/// A message of the stream.
#[derive(Debug)]
pub struct Stored {
    pub subject: String,
    pub headers: String,
    pub body: Vec<u8>,
    /// Its number in its run; 0: it has none.
    pub seq: u64,
}

impl Stored {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    }
}

impl Nats {
    pub fn start(flags: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("plaintap-nats-")?;
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut attempts = 0..5;
        loop {
            // Another test may take the port first.
            let port = net::free_port()?;
            match run(port, &folder, &flags) {
                Ok(process) => {
                    return Ok(Self {
                        process,
                        flags,
                        url: format!("nats://127.0.0.1:{port}"),
                        user: ("", ""),
                        port,
                        folder,
                    });
                }
                Err(error) if attempts.next().is_none() => return Err(error),
                Err(_) => {}
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait().map(drop)
    }

    pub fn start_again(&mut self) -> Result<()> {
        self.process = run(self.port, &self.folder, &self.flags)?;
        Ok(())
    }

    /// Writes a file that goes with the server; its path.
    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Asks JetStream's API.
    pub fn api(&self, what: &str, body: &str) -> Result<Value> {
        let answer = Connection::open(self)?.request(&format!("$JS.API.{what}"), body)?;
        ensure!(answer.get("error").is_none(), "{what}: {answer}");
        Ok(answer)
    }

    /// Has the stream store a message: its headers, each with its line's end, and its body.
    pub fn publish(&self, subject: &str, headers: &str, body: &[u8]) -> Result<()> {
        let mut connection = Connection::open(self)?;
        let head = format!("NATS/1.0\r\n{headers}\r\n");
        let message = [head.as_bytes(), body].concat();
        connection.ask(&format!("HPUB {subject}"), &format!("{} {}", head.len(), message.len()), &message)?;
        Ok(())
    }

    /// Waits until the stream has so many messages more than now.
    pub fn stores_more(&self, messages: u64) -> Result<()> {
        let count = || -> Result<u64> {
            // Before its first relay there may be no stream.
            let info = Connection::open(self)?.request("$JS.API.STREAM.INFO.PLAINTAP", "")?;
            Ok(info["state"]["messages"].as_u64().unwrap_or(0))
        };
        let before = count()?;
        until("messages to be stored", || Ok((count()? >= before + messages).then_some(())))
    }

    /// All messages of the stream, oldest first.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let mut connection = Connection::open(self)?;
        let info = connection.request("$JS.API.STREAM.INFO.PLAINTAP", "")?;
        let state = |name: &str| info["state"][name].as_u64().with_context(|| format!("no {name} in {info}"));
        let mut all = Vec::new();
        if state("messages")? == 0 {
            return Ok(all);
        }
        for seq in state("first_seq")?..=state("last_seq")? {
            let answer =
                connection.request("$JS.API.STREAM.MSG.GET.PLAINTAP", &format!("{{\"seq\":{seq}}}"))?;
            let text = |name: &str| answer["message"][name].as_str();
            let decoded = |name: &str| {
                STANDARD.decode(text(name).unwrap_or_default()).map_err(|error| anyhow!("{name}: {error}"))
            };
            let mut message = Stored {
                subject: text("subject").with_context(|| format!("message {seq}: {answer}"))?.to_owned(),
                headers: String::from_utf8(decoded("hdrs")?)?,
                body: decoded("data")?,
                seq: 0,
            };
            message.seq = message.header("Plaintap-Seq").context("no Plaintap-Seq")?.parse()?;
            all.push(message);
        }
        Ok(all)
    }
}

fn run(port: u16, folder: &TempDir, flags: &[String]) -> Result<Process> {
    let mut command = Command::new(need::program("nats-server", "nats-server")?);
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"]);
    let mut process = Process::start(command.arg(folder.path()).args(flags))?;
    until("nats-server to listen", || {
        ensure!(process.ended()?.is_none(), "nats-server ended: {:?}", process.stderr.all().last());
        Ok(net::listens(port)?.then_some(()))
    })?;
    Ok(process)
}

/// A client.
struct Connection {
    stream: BufReader<TcpStream>,
    requests: u32,
}

impl Connection {
    fn open(server: &Nats) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", server.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self { stream: BufReader::new(stream), requests: 0 };
        this.line("INFO ")?;
        let (user, password) = server.user;
        this.send(&format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"user\":{user:?},\"pass\":{password:?}}}\r\n\
             SUB _INBOX.tests.* 1\r\n"
        ))?;
        Ok(this)
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).context("telling nats-server")
    }

    /// The next line that starts with `word`.
    fn line(&mut self, word: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "nats-server hung up");
            if line.starts_with("PING") {
                self.send("PONG\r\n")?;
            } else if line.starts_with("-ERR") {
                bail!("nats-server says {}", line.trim_end());
            } else if line.starts_with(word) {
                return Ok(line.trim_end().to_owned());
            }
        }
    }

    fn request(&mut self, subject: &str, body: &str) -> Result<Value> {
        self.ask(&format!("PUB {subject}"), &body.len().to_string(), body.as_bytes())
    }

    /// Sends a message by `verb` with an inbox and its `sizes`; what is answered there.
    fn ask(&mut self, verb: &str, sizes: &str, message: &[u8]) -> Result<Value> {
        self.requests += 1;
        let inbox = format!("_INBOX.tests.{}", self.requests);
        let head = format!("{verb} {inbox} {sizes}\r\n");
        self.stream.get_mut().write_all(&[head.as_bytes(), message, b"\r\n"].concat())?;
        // MSG SUBJECT SID SIZE
        let head = self.line(&format!("MSG {inbox} "))?;
        let size =
            head.rsplit(' ').next().unwrap_or_default().parse::<usize>().with_context(|| head.clone())?;
        let mut answer = vec![0; size];
        self.stream.read_exact(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

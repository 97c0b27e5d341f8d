//! A plaintapd that watches the load, and its clients: one that reads all and discards it, or others.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::{Heartbeat, LogEntry, log_entry::Payload};
use prost::Message;

/// A running agent; ended when dropped.
pub struct Agent {
    child: Child,
    port: u16,
    client: Option<(TcpStream, JoinHandle<()>)>,
}

impl Agent {
    /// Starts `plaintapd` for the process `pid` and waits until it listens; then connects the client.
    pub fn start(plaintapd: &Path, pid: u32, library: &str) -> Result<Self> {
        let mut agent = Self::without_client(plaintapd, pid, library, &[])?;
        let mut stream = agent.connect("/")?;
        let client = stream.try_clone()?;
        let reader = thread::spawn(move || {
            let mut sink = vec![0; 256 << 10];
            while stream.read(&mut sink).is_ok_and(|count| count > 0) {}
        });
        agent.client = Some((client, reader));
        Ok(agent)
    }

    /// Starts `plaintapd` for the process `pid`, with more flags, and waits until it listens.
    pub fn without_client(plaintapd: &Path, pid: u32, library: &str, flags: &[&str]) -> Result<Self> {
        let pid = pid.to_string();
        Self::with(plaintapd, &[&["--library", library, "--pid", &pid], flags].concat())
    }

    /// Starts `plaintapd` with these flags, and waits until it listens.
    pub fn with(plaintapd: &Path, flags: &[&str]) -> Result<Self> {
        let child = Command::new(plaintapd)
            .args(["--ecaptureq", "ws://127.0.0.1:0/", "--log-level", "info"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", plaintapd.display()))?;
        let mut agent = Self { child, port: 0, client: None };
        let mut log = BufReader::new(agent.child.stderr.take().context("no stderr")?);
        let mut line = String::new();
        while agent.port == 0 {
            let said = std::mem::take(&mut line);
            ensure!(log.read_line(&mut line)? > 0, "plaintapd ended: {said}");
            if let Some((_, rest)) = line.split_once("listening url=ws://127.0.0.1:") {
                agent.port = rest.trim_end().trim_end_matches('/').parse()?;
            }
        }
        // Its log must go somewhere.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(agent)
    }

    /// Connects one client more.
    pub fn connect(&self, target: &str) -> Result<TcpStream> {
        connect(self.port, target)
    }

    /// The process that serves the clients.
    pub fn serving(&self) -> Result<u32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children.trim().parse().context("plaintapd has not exactly one child")
    }

    /// Both processes.
    pub fn pids(&self) -> Result<[u32; 2]> {
        Ok([self.child.id(), self.serving()?])
    }

    /// The run's totals so far: a new client is greeted with them.
    pub fn totals(&self) -> Result<Heartbeat> {
        let mut stream = BufReader::new(self.connect("/")?);
        loop {
            let message = message(&mut stream)?;
            if let Some(Payload::HeartbeatPayload(heartbeat)) = LogEntry::decode(&message[..])?.payload {
                return Ok(heartbeat);
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some((stream, reader)) = self.client.take() {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = reader.join();
        }
        // Killed: its other half and the kernel's probes go with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A WebSocket connection past its handshake. Source: RFC 6455, section 4.
fn connect(port: u16, target: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connecting to plaintapd")?;
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("the handshake's answer")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "refused: {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// The next binary message: an unmasked frame. Source: RFC 6455, section 5.2.
pub fn message(stream: &mut impl Read) -> Result<Vec<u8>> {
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let length = match head[1] {
            126 => {
                let mut more = [0; 2];
                stream.read_exact(&mut more)?;
                u16::from_be_bytes(more).into()
            }
            127 => {
                let mut more = [0; 8];
                stream.read_exact(&mut more)?;
                usize::try_from(u64::from_be_bytes(more))?
            }
            length @ 0..126 => length.into(),
            _ => bail!("a masked frame from a server"),
        };
        ensure!(length <= 1 << 20, "a message of {length} bytes");
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes)?;
        if head[0] == 0x82 {
            return Ok(bytes);
        }
    }
}

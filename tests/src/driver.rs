//! The TLS driver (`driver/driver.c`): both ends of real TLS connections, over the library that a test names.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{PATIENCE, need};

/// Which end of a connection acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that connected: the thread `drv-client`.
    Client,
    /// The end that accepted: the thread `drv-server`.
    Server,
}

impl Side {
    /// The driver's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The name of its thread.
    pub fn comm(self) -> &'static str {
        match self {
            Self::Client => "drv-client",
            Self::Server => "drv-server",
        }
    }

    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What the driver says of a connection that it opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// What [`Driver::use_connection`] calls it.
    pub number: u32,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub server_port: u16,
}

/// A running driver.
pub struct Driver {
    process: Process,
    answered: usize,
    client_tid: u32,
    server_tid: u32,
    /// The connection that it opened first.
    pub connection: Connection,
    _certificate: TempDir,
}

impl Driver {
    /// Starts a driver over `library`, with one connection over 127.0.0.1 open.
    pub fn start(library: &str) -> Result<Self> {
        Self::start_at(library, "127.0.0.1")
    }

    /// Starts a driver over `library`, with one connection over the loopback `address` open.
    pub fn start_at(library: &str, address: &str) -> Result<Self> {
        Self::start_with(library, &["--address", address])
    }

    /// Starts a driver over `library` that runs as the user `uid`.
    pub fn start_as(library: &str, uid: u32) -> Result<Self> {
        Self::start_with(library, &["--uid", &uid.to_string()])
    }

    /// Starts a driver in a mount namespace of its own, where alone `folder` holds a copy of `library`; over that copy,
    /// which is called `name`.
    pub fn start_apart(library: &str, folder: &Path, name: &str) -> Result<Self> {
        let apart = "mount -t tmpfs none \"$0\" && cp \"$1\" \"$2\" && shift 2 && exec \"$@\"";
        let copy = folder.join(name);
        let mut command = process::in_mount_namespace(apart)?;
        command.arg(folder).arg(need::library(library)?).arg(&copy).arg(env!("PLAINTAP_TLS_DRIVER"));
        command.arg("--lib").arg(&copy);
        Self::start_command(command)
    }

    /// Starts a driver over the library that is called `name` in the folder `lower`, as an overlay shows it; the overlay is
    /// below `folder`, in a mount namespace of the driver's own.
    pub fn start_overlaid(lower: &Path, name: &str, folder: &Path) -> Result<Self> {
        let overlaid = "mount -t tmpfs none \"$1\" && mkdir \"$1/u\" \"$1/w\" \"$1/m\" && mount -t overlay none \
            -o \"lowerdir=$0,upperdir=$1/u,workdir=$1/w\" \"$1/m\" && shift && exec \"$@\"";
        let mut command = process::in_mount_namespace(overlaid)?;
        command.arg(lower).arg(folder).arg(env!("PLAINTAP_TLS_DRIVER"));
        command.arg("--lib").arg(folder.join("m").join(name));
        Self::start_command(command)
    }

    fn start_with(library: &str, arguments: &[&str]) -> Result<Self> {
        need::library(library)?;
        let mut command = Command::new(env!("PLAINTAP_TLS_DRIVER"));
        command.args(["--lib", library]).args(arguments);
        Self::start_command(command)
    }

    fn start_command(mut command: Command) -> Result<Self> {
        let certificate = certificate()?;
        command.arg("--cert").arg(certificate.path().join("cert.pem"));
        command.arg("--key").arg(certificate.path().join("key.pem"));
        let process = Process::start(&mut command)?;
        let line = answer(&process, 0)?;
        Ok(Self {
            connection: connection(&line)?,
            client_tid: fact(&line, "client_tid")?,
            server_tid: fact(&line, "server_tid")?,
            process,
            answered: 1,
            _certificate: certificate,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The id of the thread at `side`.
    pub fn tid(&self, side: Side) -> u32 {
        match side {
            Side::Client => self.client_tid,
            Side::Server => self.server_tid,
        }
    }

    /// Gives one command and waits for its answer.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.process.write(format!("{command}\n").as_bytes())?;
        self.answered += 1;
        let line = answer(&self.process, self.answered - 1).with_context(|| command.to_owned())?;
        let word = command.split(' ').next().unwrap_or_default();
        ensure!(line.starts_with(word) || word == "new", "to {command:?} the driver said {line:?}");
        Ok(line)
    }

    /// `side` writes `size` bytes of the pattern `seed` in one call; the other side reads and compares them.
    pub fn write(&mut self, side: Side, size: u32, seed: u32) -> Result<()> {
        self.command(&format!("write {} {size} {seed}", side.word())).map(drop)
    }

    /// `side` writes `bytes` in one call; the other side reads and compares them.
    pub fn write_bytes(&mut self, side: Side, bytes: &[u8]) -> Result<()> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("hex {} {text}", side.word())).map(drop)
    }

    /// Opens one connection more, which the commands that follow use.
    pub fn open(&mut self) -> Result<Connection> {
        connection(&self.command("new")?)
    }

    /// Goes back to an earlier connection.
    pub fn use_connection(&mut self, connection: &Connection) -> Result<()> {
        self.command(&format!("use {}", connection.number)).map(drop)
    }

    /// Closes every connection and ends; an error if anything went wrong.
    pub fn quit(mut self) -> Result<()> {
        self.process.write(b"quit\n")?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the driver ended with {status}: {}", self.process.stderr.all().join("\n"));
        Ok(())
    }
}

/// The driver's line number `number`, or why it ended.
fn answer(process: &Process, number: usize) -> Result<String> {
    match process.stdout.wait_for(number, "an answer", |_| true) {
        Ok((_, line)) => Ok(line),
        Err(error) => {
            // It has ended, or is stuck: what it said last may be on its way.
            let said = process.stderr.to_the_end().unwrap_or_else(|_| process.stderr.all());
            Err(error.context(format!("the TLS driver said (within {PATIENCE:?}): {}", said.join("; "))))
        }
    }
}

/// A self-signed certificate and its key, as `cert.pem` and `key.pem` in a folder of their own.
pub fn certificate() -> Result<TempDir> {
    let openssl = need::program("openssl", "openssl")?;
    let folder = TempDir::with_prefix("plaintap-tests-")?;
    let output = Command::new(openssl)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"])
        .current_dir(folder.path())
        .output()
        .context("running openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl could not make a certificate: {said}");
    Ok(folder)
}

pub(crate) fn connection(line: &str) -> Result<Connection> {
    Ok(Connection {
        number: fact(line, "number")?,
        client_port: fact(line, "client_port")?,
        server_port: fact(line, "server_port")?,
    })
}

/// The value of `name=value` in `line`.
pub fn fact<T: FromStr>(line: &str, name: &str) -> Result<T> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BORINGSSL, OPENSSL, net};

    #[test]
    fn every_command_works_over_either_library() {
        for (library, address) in
            [(BORINGSSL, "127.0.0.1"), (OPENSSL, "127.0.0.1"), (BORINGSSL, "::1"), (OPENSSL, "::1")]
        {
            let mut driver = Driver::start_at(library, address).unwrap();
            assert!(
                net::clients_of(driver.connection.server_port)
                    .unwrap()
                    .contains(&driver.connection.client_port)
            );
            for side in [Side::Client, Side::Server] {
                for size in [0, 1, 16_385, 1_000_000] {
                    driver.write(side, size, 3).unwrap();
                }
                driver.write_bytes(side, b"GET / HTTP/1.1\r\n\r\n").unwrap();
                let (word, other) = (side.word(), side.other().word());
                driver.command(&format!("send {word} 300 4")).unwrap();
                driver.command(&format!("peek {other} 300 4")).unwrap();
                driver.command(&format!("read {other} 300 4")).unwrap();
                assert_eq!(
                    driver.command(&format!("zero {word}")).unwrap(),
                    format!("zero {word} result=0 calls=1")
                );
                assert_eq!(
                    driver.command(&format!("idle {word}")).unwrap(),
                    format!("idle {word} result=-1 calls=1")
                );
            }
            let first = driver.connection.clone();
            let second = driver.open().unwrap();
            assert_ne!(first.client_port, second.client_port);
            driver.write(Side::Client, 256, 5).unwrap();
            driver.use_connection(&first).unwrap();
            driver.write(Side::Server, 257, 6).unwrap();
            driver.quit().unwrap();
        }
    }

    #[test]
    fn what_fails_is_named() {
        let mut driver = Driver::start(BORINGSSL).unwrap();
        driver.command("send client 10 1").unwrap();
        let error = format!("{:#}", driver.command("read server 10 2").unwrap_err());
        assert!(error.contains("SSL_read of the server: byte 0 is"), "{error}");
    }
}

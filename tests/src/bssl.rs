//! BoringSSL's own tool, `bssl-tool`: an HTTP server of one conversation, and a client.
//!
//! Its server reads the first 4 bytes of a request only, answers with a page about the connection, and ends.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;
use crate::{need, net, until};

/// The name of the tool's threads.
pub const COMM: &str = "bssl-tool";

/// What the server reads of a request.
pub const READ_BY_SERVER: &[u8] = b"GET ";

/// A server that waits for its one client.
pub struct Server {
    process: Process,
    /// Where it listens.
    pub port: u16,
}

/// A conversation that has taken place.
pub struct Fetched {
    /// The client's process id.
    pub client_pid: u32,
    /// The client's port.
    pub client_port: u16,
    /// What the client printed: all that it received.
    pub printed: String,
}

impl Server {
    /// Starts a server on a free port.
    pub fn start() -> Result<Self> {
        let tool = need::program(COMM, "android-boringssl")?;
        // Somebody may take the port between our look and the tool's.
        for _ in 0..5 {
            let port = net::free_port()?;
            let mut process =
                Process::start(Command::new(&tool).args(["server", "-www", "-accept", &port.to_string()]))?;
            let listening = until("bssl-tool to listen", || match process.ended()? {
                Some(_) => Ok(Some(false)),
                None => Ok(net::listens(port)?.then_some(true)),
            })?;
            if listening {
                return Ok(Self { process, port });
            }
        }
        bail!("bssl-tool found no free port in five attempts")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets a client send `request` to it, and waits until both have ended.
    pub fn serve(mut self, request: &[u8]) -> Result<Fetched> {
        let tool = need::program(COMM, "android-boringssl")?;
        let address = format!("localhost:{}", self.port);
        let mut client = Process::start(Command::new(tool).args(["client", "-connect", &address]))?;
        let client_port = until("bssl-tool's connection", || Ok(net::clients_of(self.port)?.pop()))
            .with_context(|| format!("the client said {:?}", client.stderr.all()))?;
        client.write(request)?;
        let status = client.wait()?;
        ensure!(status.success(), "bssl-tool client ended with {status}: {:?}", client.stderr.all());
        self.process.wait()?;
        let printed = client.stdout.to_the_end()?.into_iter().map(|line| line + "\n").collect();
        Ok(Fetched { client_pid: client.pid(), client_port, printed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_takes_place() {
        let fetched = Server::start().unwrap().serve(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(fetched.printed.starts_with("HTTP/1.0 200 OK\r\n"), "{:?}", fetched.printed);
    }
}

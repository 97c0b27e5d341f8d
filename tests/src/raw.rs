//! Bytes of one's own choice on the agent's port: for requests that no well-behaved client makes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::PATIENCE;
use crate::waits::restarted;

/// A WebSocket key, as every handshake needs one. Source: RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What a server said to a request, as text.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code; 0 when the server closed without a word.
    pub status: u16,
    /// All of it: status line, headers, body.
    pub text: String,
}

/// Connects to `port`; reading and writing have a bound.
pub fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `request` and reads the answer: to its end, or to the end of the head of a handshake that succeeded.
pub fn ask(port: u16, request: &[u8]) -> Result<Answer> {
    let mut stream = connect(port)?;
    // A server that refuses early may be gone before all is sent; its answer may be there all the same.
    let _ = stream.write_all(request);
    read_answer(&mut stream)
}

/// Reads an answer as [`ask`] does.
pub fn read_answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let deadline = Instant::now() + PATIENCE;
    loop {
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for the end of {}", bytes.escape_ascii());
        match restarted(PATIENCE, || stream.read(&mut buffer)) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => {
                return Err(error).context(format!("waiting for the end of {}", bytes.escape_ascii()));
            }
        }
        if bytes.starts_with(b"HTTP/1.1 101") && bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = match text.split(' ').nth(1) {
        Some(status) => status.parse().with_context(|| format!("no status in {text:?}"))?,
        None => 0,
    };
    Ok(Answer { status, text })
}

/// A handshake with these headers and those that every one has. A later `Host` replaces the usual one.
pub fn handshake(path: &str, port: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let host = format!("127.0.0.1:{port}");
    let mut all = vec![("Connection", "Upgrade"), ("Upgrade", "websocket")];
    all.extend([("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", KEY)]);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        all.push(("Host", &host));
    }
    let all = all.iter().chain(headers).map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("GET {path} HTTP/1.1\r\n{}\r\n", all.collect::<String>()).into_bytes()
}

/// Waits until the other end has closed, whatever it says before; sends nothing.
pub fn wait_for_end(mut stream: TcpStream) -> Result<()> {
    let mut buffer = [0; 4096];
    // Heartbeats may come for ever.
    let deadline = Instant::now() + PATIENCE;
    loop {
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for the connection's end, but it goes on");
        match restarted(PATIENCE, || stream.read(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => bail!("waited {PATIENCE:?} for the connection's end: {error}"),
        }
    }
}

/// Sends `bytes` and nothing more, ever.
pub fn last_words(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write).context("ending what we send")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_end_is_an_end_whatever_came_before_it() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = connect(listener.local_addr().unwrap().port()).unwrap();
        listener.accept().unwrap().0.write_all(b"bye").unwrap();
        wait_for_end(stream).unwrap();
    }

    #[test]
    fn an_answer_is_read_to_its_end_and_its_status_known() {
        for (said, status) in
            [("HTTP/1.1 403 Forbidden\r\n\r\nno", 403), ("HTTP/1.1 101 X\r\n\r\n", 101), ("", 0)]
        {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                let mut request = [0; 4];
                stream.read_exact(&mut request).unwrap();
                stream.write_all(said.as_bytes()).unwrap();
            });
            let answer = ask(port, b"GET ").unwrap();
            assert_eq!((answer.status, answer.text.as_str()), (status, said));
            server.join().unwrap();
        }
    }
}

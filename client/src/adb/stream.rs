//! The words on a connection to the adb server. Source: AOSP, packages/modules/adb, OVERVIEW.TXT, SERVICES.TXT and
//! SYNC.TXT.
//!
//! What comes is bounded: a length is four hex digits, or is checked before anything is allocated for it.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{Error, said};
use crate::{
    text,
    waits::{is_timeout, restarted},
};

/// How long the server may think about a request; the device's own answers have deadlines of their own.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
pub struct Stream {
    socket: TcpStream,
}

impl Stream {
    /// Talks on a connection that stands.
    pub fn new(socket: TcpStream) -> Result<Self, Error> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Sends a request, and reads whether it is granted.
    pub fn ask(&mut self, request: &str) -> Result<(), Error> {
        // A longer request has no length: it would take a fifth digit.
        let length = u16::try_from(request.len()).map_err(|_| Error::Refused {
            request: known_by(request),
            answer: "it is longer than 65,535 bytes".to_owned(),
        })?;
        self.socket.write_all(format!("{length:04x}{request}").as_bytes())?;
        self.granted(request)
    }

    /// Reads whether the last request is granted.
    pub fn granted(&mut self, request: &str) -> Result<(), Error> {
        let mut answer = [0; 4];
        self.socket.read_exact(&mut answer)?;
        match &answer {
            b"OKAY" => Ok(()),
            b"FAIL" => Err(Error::Refused { request: known_by(request), answer: said(&self.text()?) }),
            other => Err(Error::Wrong(format!("it says {:?}", String::from_utf8_lossy(other)))),
        }
    }

    /// A text behind its length in four hex digits.
    pub fn text(&mut self) -> Result<String, Error> {
        let mut digits = [0; 4];
        self.socket.read_exact(&mut digits)?;
        let wrong = || Error::Wrong(format!("{:?} is no length", String::from_utf8_lossy(&digits)));
        // from_str_radix would take a sign.
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
        let mut text = vec![0; usize::from(u16::from_str_radix(digits, 16).map_err(|_| wrong())?)];
        self.socket.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Fills `bytes` with what comes next. What has begun comes whole and soon, however it is dealt out: else it is an error.
    pub fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let (deadline, mut filled) = (Instant::now() + PATIENCE, 0);
        while filled < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait(left)? {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            match restarted(left, || self.socket.read(&mut bytes[filled..]))? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                more => filled += more,
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, be it the end; `false`: nothing came for so long.
    pub fn wait(&mut self, patience: Duration) -> Result<bool, Error> {
        self.socket.set_read_timeout(Some(patience))?;
        let came = match restarted(patience, || self.socket.peek(&mut [0])) {
            Ok(_) => true,
            Err(error) if is_timeout(&error) => false,
            Err(error) => return Err(error.into()),
        };
        self.socket.set_read_timeout(Some(PATIENCE))?;
        Ok(came)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// The connection itself, whose next bytes are the service's that was asked for.
    pub fn into_inner(self) -> TcpStream {
        self.socket
    }
}

/// Enough of a request to know it by.
fn known_by(request: &str) -> String {
    text::abridged(request, 60)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn silence_is_told_from_words_and_from_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = Stream::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert!(!stream.wait(Duration::from_millis(20)).unwrap());
        server.write_all(b"0002ab").unwrap();
        assert!(stream.wait(PATIENCE).unwrap());
        assert_eq!(stream.text().unwrap(), "ab");
        drop(server);
        assert!(stream.wait(PATIENCE).unwrap());
        assert!(matches!(stream.text(), Err(Error::Broken(_))));
    }

    /// What a stream makes of an answer to "host:version".
    fn told(answer: &'static [u8]) -> Result<String, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            socket.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"000chost:version");
            socket.write_all(answer).unwrap();
        });
        let mut stream = Stream::new(TcpStream::connect(address).unwrap()).unwrap();
        let told = stream.ask("host:version").and_then(|()| stream.text());
        server.join().unwrap();
        told
    }

    #[test]
    fn a_text_comes_behind_its_length() {
        assert_eq!(told(b"OKAY00040029").unwrap(), "0029");
        assert_eq!(told(b"OKAY0000").unwrap(), "");
    }

    #[test]
    fn a_refusal_says_why() {
        let error = told(b"FAIL0006no way").unwrap_err();
        assert!(matches!(&error, Error::Refused { answer, .. } if answer == "no way"), "{error}");
    }

    #[test]
    fn what_is_no_adb_server_is_told_as_that() {
        for answer in [&b"HTTP/1.1 400"[..], b"OKAY+123", b"OKAY\xff\xff\xff\xff", b"OKAY 12 "] {
            assert!(matches!(told(answer), Err(Error::Wrong(_))), "{answer:?}");
        }
        for answer in [&b"OK"[..], b"OKAYffffx", b"FAIL"] {
            assert!(matches!(told(answer), Err(Error::Broken(_))), "{answer:?}");
        }
    }
}

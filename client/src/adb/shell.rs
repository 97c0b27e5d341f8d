//! Commands on the device, by the shell protocol. Source: AOSP, packages/modules/adb, shell_protocol.h.

use std::time::{Duration, Instant};

use super::{Error, said, stream::Stream};

/// Of a command's output so many bytes are kept: what comes from a device is bounded.
const MOST: usize = 256 << 10;
/// adb's packets hold less than this.
const LARGEST_PACKET: usize = 4 << 20;

/// A packet's first byte.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// A command that runs.
pub struct Shell {
    stream: Stream,
}

/// What comes from it.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// To its standard output.
    Out(Vec<u8>),
    /// To its standard error.
    Err(Vec<u8>),
    /// It has ended with this code.
    Exit(u8),
    /// Nothing came before the deadline.
    Nothing,
}

/// What a command has left.
#[derive(Debug, Default)]
pub struct Output {
    /// Its exit code.
    pub code: u8,
    /// Standard output, without blanks at its ends.
    pub out: String,
    /// Standard error, likewise.
    pub err: String,
}

impl Output {
    /// What it said, for an error's sentence: its last line.
    pub fn last_words(&self) -> String {
        let mut lines =
            self.err.lines().chain(self.out.lines()).map(str::trim).filter(|line| !line.is_empty());
        lines.next_back().map_or_else(|| format!("exit code {}", self.code), said)
    }
}

/// The name of the service that runs `command`, without a terminal.
pub fn service(command: &str) -> String {
    format!("shell,v2,raw:{command}")
}

impl Shell {
    /// On a connection to a shell service.
    pub fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// What comes next, before the deadline.
    pub fn next(&mut self, deadline: Instant) -> Result<Piece, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.stream.wait(left)? {
                return Ok(Piece::Nothing);
            }
            let mut head = [0; 5];
            self.stream.fill(&mut head)?;
            let [kind, length @ ..] = head;
            let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            if length > LARGEST_PACKET {
                return Err(Error::Wrong(format!("a packet of {length} bytes")));
            }
            let mut data = vec![0; length];
            self.stream.fill(&mut data)?;
            match kind {
                STDOUT => return Ok(Piece::Out(data)),
                STDERR => return Ok(Piece::Err(data)),
                EXIT => return Ok(Piece::Exit(data.first().copied().unwrap_or(255))),
                // Newer packets that we did not ask for.
                _ => {}
            }
        }
    }

    /// All that a command says, until it ends; `None`: it did not before the deadline.
    pub fn output(mut self, deadline: Instant) -> Result<Option<Output>, Error> {
        let (mut out, mut err) = (vec![], vec![]);
        let keep = |all: &mut Vec<u8>, data: &[u8]| {
            let room = MOST.saturating_sub(all.len()).min(data.len());
            all.extend(&data[..room]);
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        loop {
            match self.next(deadline)? {
                Piece::Out(data) => keep(&mut out, &data),
                Piece::Err(data) => keep(&mut err, &data),
                Piece::Exit(code) => return Ok(Some(Output { code, out: text(out), err: text(err) })),
                Piece::Nothing => return Ok(None),
            }
        }
    }
}

/// A deadline so many seconds from now.
pub fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// A word that a shell takes as it is.
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;

    /// A shell whose device says this and ends.
    fn shell(says: &[u8]) -> Shell {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        theirs.write_all(says).unwrap();
        Shell::new(Stream::new(ours).unwrap())
    }

    #[test]
    fn output_comes_apart_and_ends_with_the_exit_code() {
        let said = b"\x01\x03\0\0\0ab\n\x02\x02\0\0\0no\x07\x01\0\0\0x\x01\x01\0\0\0c\x03\x01\0\0\0\x05";
        let output = shell(said).output(within(60)).unwrap().unwrap();
        assert_eq!((output.code, output.out.as_str(), output.err.as_str()), (5, "ab\nc", "no"));
        assert_eq!(output.last_words(), "c");
    }

    #[test]
    fn who_looks_often_and_not_long_is_told_nothing_and_then_the_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let mut shell = Shell::new(Stream::new(ours).unwrap());
        let mut look = || shell.next(Instant::now() + Duration::from_millis(3));
        for _ in 0..100 {
            assert!(matches!(look(), Ok(Piece::Nothing)));
        }
        let slow = thread::spawn(move || {
            for byte in b"\x01\x02\0\0\0ab" {
                theirs.write_all(&[*byte]).unwrap();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let piece = loop {
            match look().unwrap() {
                Piece::Nothing => {}
                piece => break piece,
            }
        };
        assert!(matches!(piece, Piece::Out(data) if data == b"ab"));
        slow.join().unwrap();
    }

    #[test]
    fn a_device_that_goes_or_talks_nonsense_is_an_error() {
        for said in [&b""[..], b"\x01", b"\x01\x05\0\0\0ab"] {
            assert!(matches!(shell(said).output(within(60)), Err(Error::Broken(_))), "{said:?}");
        }
        assert!(matches!(shell(b"\x01\xff\xff\xff\xff").output(within(60)), Err(Error::Wrong(_))));
    }

    #[test]
    fn a_quoted_word_is_one_word() {
        for (word, expected) in [
            ("/data/local/tmp/x", "/data/local/tmp/x"),
            ("", "''"),
            ("!curl", "'!curl'"),
            ("a'b c", r"'a'\''b c'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}

//! `plaintap replay`: a recorded `.pb` served as an eCaptureQ server would.
//!
//! Each client has a thread and reads the file by itself, so that nothing but the message at hand is in memory.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use plaintap_proto::{Heartbeat, LogEntry, log_entry::Payload};
use prost::Message as _;
use tungstenite::{
    Error as WsError, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    commands::{ReplayArgs, Speed},
    consume::{self, Interrupt},
    note::{self, note},
    server::{self, Server},
};

/// As large as the client takes.
const MAX_MESSAGE: u64 = 1 << 20;
/// Clients give a server up that is silent for 45 seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Clients at a time, each of which has a thread.
const MAX_CLIENTS: usize = 64;

/// Why a recording is not played.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("can't read {0}")]
    Open(PathBuf, #[source] io::Error),
    /// The file is no recording.
    #[error("{0} is no recording of plaintap record -o FILE.pb")]
    Wrong(PathBuf, #[source] Wrong),
    /// No client can come.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// Ctrl-C could not be prepared for.
    #[error(transparent)]
    Interrupt(#[from] consume::Error),
}

/// What is wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// It can't be read.
    #[error("at byte {0}")]
    Io(u64, #[source] io::Error),
    /// Its last message is not whole.
    #[error("it ends within a message that begins at byte {0}")]
    Cut(u64),
    /// No message is that long.
    #[error("at byte {0} a message of {1} bytes should begin")]
    Length(u64, u64),
    /// It is none of ours.
    #[error("the message at byte {0} does not decode")]
    Decode(u64, #[source] prost::DecodeError),
}

/// Serves until Ctrl-C, or with `--once` until one client has all.
pub fn run(args: ReplayArgs) -> Result<(), Error> {
    // There is nothing to finish, but it is no failure.
    let _ends_well = Interrupt::new()?;
    // Better now than at the first client.
    match Messages::open(&args.file)?.next() {
        Some(Err(wrong)) => return Err(Error::Wrong(args.file, wrong)),
        None => note(&format!("{} holds no message", args.file.display())),
        Some(Ok(_)) => {}
    }
    let server = Server::bind(args.listen.0)?;
    note(&format!("listening on {}", server.url()));
    let (clients, args) = (Arc::new(()), Arc::new(args));
    for stream in server.incoming() {
        let (client, args) = (clients.clone(), args.clone());
        if Arc::strong_count(&client) > MAX_CLIENTS + 1 {
            note(&format!("a client was turned away: there are {MAX_CLIENTS}"));
            continue;
        }
        if args.once {
            if let Some(socket) = admitted(stream) {
                let played = play(socket, &args);
                told(&played);
                return match played {
                    Err(Ended::Recording(wrong)) => Err(Error::Wrong(args.file.clone(), wrong)),
                    _ => Ok(()),
                };
            }
            continue;
        }
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(move || {
            if let Some(socket) = admitted(stream) {
                told(&play(socket, &args));
            }
            drop(client);
        });
        if let Err(error) = spawned {
            note(&format!("a client was turned away: {error}"));
        }
    }
    Ok(())
}

fn admitted(stream: TcpStream) -> Option<server::Client> {
    match server::admit(stream) {
        Ok(socket) => Some(socket),
        Err(why) => {
            note(&format!("a client was turned away: {why}"));
            None
        }
    }
}

/// Why a client gets no more.
enum Ended {
    Client(Box<WsError>),
    Recording(Wrong),
}

impl From<WsError> for Ended {
    fn from(error: WsError) -> Self {
        Self::Client(Box::new(error))
    }
}

fn told(played: &Result<(), Ended>) {
    match played {
        Ok(()) => note("played to the end"),
        Err(Ended::Client(error)) => match **error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => note("a client left"),
            _ => note(&format!("a client is gone: {}", note::chain(error))),
        },
        Err(Ended::Recording(wrong)) => note(&note::chain(wrong)),
    }
}

fn play(mut socket: server::Client, args: &ReplayArgs) -> Result<(), Ended> {
    note("a client came");
    let messages = match Messages::open(&args.file) {
        Ok(messages) => messages,
        Err(error) => {
            note(&note::chain(&error));
            return Ok(());
        }
    };
    let mut pace = Pace::new(args.speed);
    for message in messages {
        match message {
            Ok((mut bytes, mut entry)) => {
                let pause = pace.before(&entry);
                if !pause.is_zero() {
                    server::wait(&mut socket, pause)?;
                }
                if args.now && happens(&mut entry, server::now_ns()) {
                    bytes = entry.encode_to_vec();
                }
                socket.write(Message::binary(bytes))?;
            }
            // As after a crash; what there is was played.
            Err(wrong @ Wrong::Cut(_)) => {
                note(&note::chain(&wrong));
                break;
            }
            Err(wrong) => {
                socket.flush()?;
                return Err(Ended::Recording(wrong));
            }
        }
    }
    socket.flush()?;
    if args.once {
        return Ok(server::close(
            socket,
            CloseFrame { code: CloseCode::Normal, reason: "the recording ends".into() },
        )?);
    }
    note("a client has all of the recording");
    for count in 1.. {
        server::wait(&mut socket, HEARTBEAT)?;
        let heartbeat = Heartbeat {
            timestamp: server::now_s(),
            count,
            message: format!("heartbeat:{count}"),
            ..Heartbeat::default()
        };
        let payload = Some(Payload::HeartbeatPayload(heartbeat));
        socket.write(Message::binary(LogEntry { payload, ..LogEntry::default() }.encode_to_vec()))?;
    }
    Ok(())
}

/// Gives an entry another time, in ns since 1970, and says whether it has one.
fn happens(entry: &mut LogEntry, at: i64) -> bool {
    match &mut entry.payload {
        Some(Payload::EventPayload(event)) => event.timestamp = at,
        Some(Payload::HeartbeatPayload(heartbeat)) => heartbeat.timestamp = at / 1_000_000_000,
        _ => return false,
    }
    true
}

/// How long to wait before each message.
struct Pace {
    speed: Speed,
    /// The recording's time in ns that was reached, and when it was.
    at: Option<(i64, Instant)>,
}

impl Pace {
    fn new(speed: Speed) -> Self {
        Self { speed, at: None }
    }

    /// Measured from the last message that was waited for, so that sending takes no time of its own. Log lines have no
    /// time, and what seems to come from the past is not waited for.
    fn before(&mut self, entry: &LogEntry) -> Duration {
        let Speed::Times(times) = self.speed else { return Duration::ZERO };
        let timestamp = match &entry.payload {
            Some(Payload::EventPayload(event)) => event.timestamp,
            Some(Payload::HeartbeatPayload(heartbeat)) => heartbeat.timestamp.saturating_mul(1_000_000_000),
            _ => return Duration::ZERO,
        };
        let now = Instant::now();
        let Some((reached, then)) = self.at else {
            self.at = Some((timestamp, now));
            return Duration::ZERO;
        };
        let later = u64::try_from(timestamp.saturating_sub(reached)).unwrap_or(0);
        if later == 0 {
            return Duration::ZERO;
        }
        let later = Duration::from_nanos(later).as_secs_f64() / times;
        let due = then + Duration::from_secs_f64(later.min(LONGEST_PAUSE.as_secs_f64()));
        // What was slow is not made good by haste: a client that held us up goes on at the recording's own speed.
        self.at = Some((timestamp, due.max(now)));
        due.saturating_duration_since(now)
    }
}

/// The messages of a recording, each as it came and decoded; ends after the first that is wrong.
struct Messages<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    done: bool,
}

impl Messages<BufReader<File>> {
    fn open(path: &Path) -> Result<Self, Error> {
        let open = |error| Error::Open(path.to_owned(), error);
        let file = File::open(path).map_err(open)?;
        if file.metadata().map_err(open)?.is_dir() {
            return Err(open(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self::new(BufReader::with_capacity(64 << 10, file)))
    }
}

impl<R: Read> Messages<R> {
    fn new(from: R) -> Self {
        Self { from, at: 0, done: false }
    }

    fn read(&mut self) -> Result<Option<(Vec<u8>, LogEntry)>, Wrong> {
        let began = self.at;
        let mut length = 0u64;
        for index in 0.. {
            let mut byte = [0];
            match self.from.read_exact(&mut byte) {
                Ok(()) => self.at += 1,
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(Wrong::Io(self.at, error));
                }
                Err(_) if index == 0 => return Ok(None),
                Err(_) => return Err(Wrong::Cut(began)),
            }
            length |= u64::from(byte[0] & 0x7f) << (7 * index).min(63);
            if length > MAX_MESSAGE || index > 3 {
                return Err(Wrong::Length(began, length));
            }
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut bytes = Vec::new();
        let read = (&mut self.from).take(length).read_to_end(&mut bytes);
        self.at += read.map_err(|error| Wrong::Io(began, error))? as u64;
        if (bytes.len() as u64) < length {
            return Err(Wrong::Cut(began));
        }
        let entry = LogEntry::decode(&bytes[..]).map_err(|error| Wrong::Decode(began, error))?;
        Ok(Some((bytes, entry)))
    }
}

impl<R: Read> Iterator for Messages<R> {
    type Item = Result<(Vec<u8>, LogEntry), Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let read = self.read().transpose();
        self.done = !matches!(read, Some(Ok(_)));
        read
    }
}

#[cfg(test)]
mod tests {
    use plaintap_proto::Event;
    use proptest::prelude::*;

    use super::*;

    fn at(timestamp: i64) -> LogEntry {
        let payload = Some(Payload::EventPayload(Event { timestamp, ..Event::default() }));
        LogEntry { payload, ..LogEntry::default() }
    }

    #[test]
    fn pauses_are_the_recordings_divided_by_the_speed_and_bounded() {
        let (mut pace, began) = (Pace::new(Speed::Times(2.0)), Instant::now());
        assert_eq!(pace.before(&at(1_000_000_000)), Duration::ZERO);
        let pause = pace.before(&at(11_000_000_000));
        assert!(
            pause + began.elapsed() >= Duration::from_secs(5) && pause <= Duration::from_secs(5),
            "{pause:?}"
        );
        assert_eq!(pace.before(&at(0)), Duration::ZERO, "not back in time");
        assert_eq!(pace.before(&LogEntry::default()), Duration::ZERO);
        assert!(pace.before(&at(i64::MAX)) <= Duration::from_secs(5) + LONGEST_PAUSE);
        assert_eq!(pace.before(&at(i64::MIN)), Duration::ZERO);
        assert_eq!(Pace::new(Speed::Max).before(&at(i64::MAX)), Duration::ZERO);
    }

    #[test]
    fn what_happens_now_has_its_time_in_its_own_unit() {
        let now = 1_700_000_001_100_000_000;
        let mut event = at(7);
        assert!(happens(&mut event, now));
        assert_eq!(event, at(now));
        let payload = Some(Payload::HeartbeatPayload(Heartbeat { timestamp: 7, ..Heartbeat::default() }));
        let mut heartbeat = LogEntry { payload, ..LogEntry::default() };
        assert!(happens(&mut heartbeat, now));
        let Some(Payload::HeartbeatPayload(heartbeat)) = heartbeat.payload else { panic!() };
        assert_eq!(heartbeat.timestamp, 1_700_000_001);
        assert!(!happens(&mut LogEntry::default(), now), "log lines have no time");
    }

    #[test]
    fn a_recording_that_was_cut_gives_what_it_has_and_says_where_it_ends() {
        let mut file = vec![];
        at(7).encode_length_delimited(&mut file).unwrap();
        let whole = file.len();
        at(8).encode_length_delimited(&mut file).unwrap();
        for end in whole + 1..file.len() {
            let read: Vec<_> = Messages::new(&file[..end]).collect();
            assert_eq!(read.len(), 2);
            assert_eq!(read[0].as_ref().unwrap().1, at(7));
            assert!(matches!(read[1], Err(Wrong::Cut(at)) if at == whole as u64));
        }
        assert_eq!(Messages::new(&file[..]).filter(Result::is_ok).count(), 2);
    }

    proptest! {
        #[test]
        fn any_file_is_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages::new(&bytes[..]).count() <= bytes.len() + 1);
        }
    }
}

//! How the two halves speak to each other: fixed-size records over a socketpair.
//!
//! All that the serving half ever says is which program it wants looked up, or which connection's addresses, that
//! addresses are missing, whether there is anybody to capture for, and that it is alive. The end of either process is the end of the link, which the other takes as its own.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
        socketpair,
    },
};

use crate::{
    log::MAX_LINE,
    process::{MAX_APP, Process, Program},
    sockets::Look,
};

/// Bytes of a record: kind, a spare byte, length of the text in two bytes, a process id or level in four, two times or a
/// connection id in eight each, text.
const RECORD: usize = 1024;
const TEXT: usize = 24;

const _: () = assert!(TEXT + MAX_LINE <= RECORD && MAX_APP <= MAX_LINE);

/// What one half says to the other.
#[derive(Debug)]
pub enum Message {
    /// A line of the attaching half's log.
    Log(String),
    /// The probes are in place. What they fill comes along.
    Ready {
        /// The ring's map.
        ring: OwnedFd,
        /// The counters' map.
        counters: OwnedFd,
        /// The tails' map.
        tails: OwnedFd,
        /// Whether a hook tells connections' addresses; else they are to be asked for.
        hooked: bool,
    },
    /// How much to log from now on, as `log::LevelFilter` numbers it.
    LogLevel(u32),
    /// Take leave of the clients, and end.
    Stop,
    /// The serving half says that a connection's address is not known: its SSL object may be over memory.
    NoAddress,
    /// The serving half asks which program a process is.
    Who(Program),
    /// The answer.
    Process(Program, Process),
    /// The serving half asks for the addresses of a program's connection.
    Where(Program, u64),
    /// The answer, if there is one: the connection, and what its process had.
    Socket(u64, Look),
    /// The serving half says whether there is anybody to capture for.
    Wanted(bool),
    /// The serving half gives a sign of life.
    Alive,
    /// Nothing more is captured: the ring holds the last of it. Said again when no call can be under way any more.
    Paused,
    /// The serving half has forgotten what was captured before so many [`Paused`](Self::Paused).
    Forgotten(u32),
}

const LOG: u8 = 1;
const READY: u8 = 2;
const STOP: u8 = 3;
const LOG_LEVEL: u8 = 4;
const WHO: u8 = 5;
const PROCESS: u8 = 6;
const NO_ADDRESS: u8 = 7;
const WHERE: u8 = 8;
const SOCKET: u8 = 9;
const WANTED: u8 = 10;
const PAUSED: u8 = 11;
const ALIVE: u8 = 12;
const FORGOTTEN: u8 = 13;

/// A record's fields besides its kind.
#[derive(Default)]
struct Fields<'a> {
    number: u32,
    times: [u64; 2],
    text: &'a str,
    fds: &'a [RawFd],
}

/// Why the link failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("the link between them failed")]
    System(#[from] Errno),
    /// The record is none of ours.
    #[error("a record between them makes no sense")]
    Malformed,
}

/// One end of the link.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// Both ends.
    pub fn pair() -> Result<(Self, Self), Error> {
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Sends a line of the log; never waits: a line that finds no room is in stderr at least.
    pub fn log(&self, line: &str) {
        let _ = self.send(LOG, Fields { text: line, ..Fields::default() }, MsgFlags::MSG_DONTWAIT);
    }

    /// Says that the probes are in place, and hands over what they fill; `hooked` as in [`Message::Ready`].
    pub fn ready(
        &self,
        hooked: bool,
        ring: BorrowedFd<'_>,
        counters: BorrowedFd<'_>,
        tails: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let fds = &[ring.as_raw_fd(), counters.as_raw_fd(), tails.as_raw_fd()];
        self.send(READY, Fields { number: hooked.into(), fds, ..Fields::default() }, MsgFlags::empty())
    }

    /// Says how much to log.
    pub fn log_level(&self, level: u32) -> Result<(), Error> {
        self.send(LOG_LEVEL, Fields { number: level, ..Fields::default() }, MsgFlags::MSG_DONTWAIT)
    }

    /// Asks the other half to end.
    pub fn stop(&self) -> Result<(), Error> {
        self.send(STOP, Fields::default(), MsgFlags::MSG_DONTWAIT)
    }

    /// Asks for what can be known of `program`; never waits: what finds no room is asked again.
    pub fn who(&self, program: Program) {
        let fields = Fields { number: program.pid, times: [program.life, 0], ..Fields::default() };
        let _ = self.send(WHO, fields, MsgFlags::MSG_DONTWAIT);
    }

    /// Asks where a connection of `program` leads; never waits: what finds no room is asked again.
    pub fn whither(&self, program: Program, connection_id: u64) {
        let times = [program.life, connection_id];
        let _ = self.send(
            WHERE,
            Fields { number: program.pid, times, ..Fields::default() },
            MsgFlags::MSG_DONTWAIT,
        );
    }

    /// Answers where a connection leads; never waits.
    pub fn socket(&self, connection_id: u64, look: Look) {
        let times = [connection_id, look.time_ns];
        let fields = Fields { times, text: &look.ends.to_string(), ..Fields::default() };
        let _ = self.send(SOCKET, fields, MsgFlags::MSG_DONTWAIT);
    }

    /// Says whether there is anybody to capture for.
    pub fn wanted(&self, wanted: bool) -> Result<(), Error> {
        self.send(WANTED, Fields { number: wanted.into(), ..Fields::default() }, MsgFlags::empty())
    }

    /// Gives a sign of life; never waits.
    pub fn alive(&self) {
        let _ = self.send(ALIVE, Fields::default(), MsgFlags::MSG_DONTWAIT);
    }

    /// Says that nothing more is captured.
    pub fn paused(&self) -> Result<(), Error> {
        self.send(PAUSED, Fields::default(), MsgFlags::empty())
    }

    /// Answers so many [`Message::Paused`]. If the other half is gone, that is said where its messages are read.
    pub fn forgotten(&self, pauses: u32) -> Result<(), Error> {
        match self.send(FORGOTTEN, Fields { number: pauses, ..Fields::default() }, MsgFlags::empty()) {
            Err(Error::System(Errno::EPIPE | Errno::ECONNRESET)) => Ok(()),
            sent => sent,
        }
    }

    /// Says that a connection's address is not known; never waits, and tells whether it was said.
    pub fn no_address(&self) -> bool {
        self.send(NO_ADDRESS, Fields::default(), MsgFlags::MSG_DONTWAIT).is_ok()
    }

    /// Answers what `program` is; never waits.
    pub fn process(&self, program: Program, process: &Process) {
        let times = [program.life, process.start_ns];
        let fields = Fields { number: program.pid, times, text: &process.app, fds: &[] };
        let _ = self.send(PROCESS, fields, MsgFlags::MSG_DONTWAIT);
    }

    fn send(&self, kind: u8, fields: Fields<'_>, flags: MsgFlags) -> Result<(), Error> {
        let mut record = [0; RECORD];
        let Fields { number, times, text, fds } = fields;
        let text = text.get(..text.floor_char_boundary_at(MAX_LINE)).unwrap_or_default();
        record[0] = kind;
        record[2..4].copy_from_slice(&(text.len() as u16).to_ne_bytes());
        record[4..8].copy_from_slice(&number.to_ne_bytes());
        record[8..TEXT].copy_from_slice(bytemuck::bytes_of(&times));
        record[TEXT..TEXT + text.len()].copy_from_slice(text.as_bytes());
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&record)], rights, flags, None)?;
        Ok(())
    }

    /// Waits for the next message; `None` once the other half is gone.
    pub fn receive(&self) -> Result<Option<Message>, Error> {
        self.receive_with(MsgFlags::empty())
    }

    /// The next message if there is one now: `Err(EAGAIN)` if not.
    pub fn try_receive(&self) -> Result<Option<Message>, Error> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with(&self, flags: MsgFlags) -> Result<Option<Message>, Error> {
        let mut record = [0; RECORD];
        let mut control = nix::cmsg_space!([RawFd; 3]);
        let mut parts = [IoSliceMut::new(&mut record)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        let mut fds = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = message {
                // SAFETY: the kernel made these for us just now; nobody else knows them.
                #[expect(unsafe_code, reason = "file descriptors from a message")]
                fds.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = received.bytes;
        match length {
            0 => return Ok(None),
            RECORD => {}
            _ => return Err(Error::Malformed),
        }
        let text_length = usize::from(u16::from_ne_bytes([record[2], record[3]]));
        let text = record.get(TEXT..TEXT + text_length).ok_or(Error::Malformed)?;
        let text = String::from_utf8_lossy(text).into_owned();
        let number = u32::from_ne_bytes([record[4], record[5], record[6], record[7]]);
        let [first, second]: [u64; 2] = bytemuck::pod_read_unaligned(&record[8..TEXT]);
        let program = Program { pid: number, life: first };
        match record[0] {
            LOG => Ok(Some(Message::Log(text))),
            READY => match <[OwnedFd; 3]>::try_from(fds) {
                Ok([ring, counters, tails]) => {
                    Ok(Some(Message::Ready { ring, counters, tails, hooked: number != 0 }))
                }
                Err(_) => Err(Error::Malformed),
            },
            STOP => Ok(Some(Message::Stop)),
            LOG_LEVEL => Ok(Some(Message::LogLevel(number))),
            NO_ADDRESS => Ok(Some(Message::NoAddress)),
            WHO => Ok(Some(Message::Who(program))),
            PROCESS => {
                let process = Process { app: text, start_ns: second };
                Ok(Some(Message::Process(program, process)))
            }
            WANTED => Ok(Some(Message::Wanted(number != 0))),
            PAUSED => Ok(Some(Message::Paused)),
            FORGOTTEN => Ok(Some(Message::Forgotten(number))),
            ALIVE => Ok(Some(Message::Alive)),
            WHERE => Ok(Some(Message::Where(program, second))),
            SOCKET => {
                let ends = text.parse().map_err(|()| Error::Malformed)?;
                Ok(Some(Message::Socket(first, Look { ends, time_ns: second })))
            }
            _ => Err(Error::Malformed),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `str::floor_char_boundary`, which our oldest Rust lacks.
trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, most: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, most: usize) -> usize {
        (0..=most.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_order_and_whole_up_to_the_longest() {
        let (here, there) = Link::pair().unwrap();
        here.log("one");
        here.log(&"é".repeat(MAX_LINE));
        here.stop().unwrap();
        assert!(matches!(there.receive(), Ok(Some(Message::Log(line))) if line == "one"));
        assert!(matches!(there.receive(), Ok(Some(Message::Log(line))) if line == "é".repeat(MAX_LINE / 2)));
        assert!(matches!(there.receive(), Ok(Some(Message::Stop))));
        assert!(matches!(there.try_receive(), Err(Error::System(Errno::EAGAIN))));
    }

    #[test]
    fn descriptors_come_along_with_ready() {
        let (here, there) = Link::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        here.ready(true, file.as_fd(), file.as_fd(), file.as_fd()).unwrap();
        assert!(matches!(there.receive(), Ok(Some(Message::Ready { hooked: true, .. }))));
    }

    #[test]
    fn a_question_gets_its_answer() {
        let (attaching, serving) = Link::pair().unwrap();
        let program = Program { pid: 7, life: 1 << 50 };
        assert!(serving.no_address());
        assert!(matches!(attaching.receive(), Ok(Some(Message::NoAddress))));
        serving.forgotten(2).unwrap();
        assert!(matches!(attaching.receive(), Ok(Some(Message::Forgotten(2)))));
        serving.who(program);
        assert!(matches!(attaching.receive(), Ok(Some(Message::Who(asked))) if asked == program));
        let process = Process { app: "/bin/x".into(), start_ns: 1 << 40 };
        attaching.process(program, &process);
        let answer = serving.receive();
        assert!(
            matches!(answer, Ok(Some(Message::Process(of, answer))) if (of, &answer) == (program, &process))
        );
        serving.whither(program, 1 << 60);
        let asked = attaching.receive();
        assert!(matches!(asked, Ok(Some(Message::Where(of, id))) if (of, id) == (program, 1 << 60)));
        let look = Look { ends: "[::1]:1 1.2.3.4:2".parse().unwrap(), time_ns: 1 << 50 };
        attaching.socket(1 << 60, look);
        let answer = serving.receive();
        assert!(matches!(answer, Ok(Some(Message::Socket(id, answer))) if (id, answer) == (1 << 60, look)));
    }

    #[test]
    fn the_end_of_one_half_ends_the_link() {
        let (here, there) = Link::pair().unwrap();
        drop(here);
        assert!(there.forgotten(1).is_ok());
        assert!(matches!(there.receive(), Ok(None)));
        there.log("nobody hears this, and nothing comes of it");
    }
}

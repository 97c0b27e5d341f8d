//! Standard error, written to without ever waiting for who reads it, or does not: capture must not wait for that.
//!
//! Owns a way to it that is this process's alone. O_NONBLOCK belongs to an open file, which others share: the shell, and our
//! own other half. And to ask first whether there is room is not enough: a terminal says so while a line does not fit, and
//! whoever writes in between takes a pipe's last room.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{MsgFlags, send},
        stat::{SFlag, fstat},
    },
    unistd::write,
};

/// How long a program's last words wait for room, and between two looks.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub struct Stderr {
    way: Way,
    missed: Mutex<Missed>,
}

#[derive(Debug)]
enum Way {
    /// Opened anew, so as not to wait.
    Own(OwnedFd),
    /// A socket can't be opened, but each call can say that it won't wait.
    Socket(OwnedFd),
    /// A file, which keeps nobody waiting, and whose place all must share who write to it; or what can't be opened anew.
    Shared(OwnedFd),
}

impl Way {
    fn to(fd: OwnedFd) -> Self {
        let kind =
            fstat(&fd).map_or(SFlag::S_IFREG, |stat| SFlag::S_IFMT & SFlag::from_bits_truncate(stat.st_mode));
        match kind {
            SFlag::S_IFSOCK => Self::Socket(fd),
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let flags = OFlag::O_NONBLOCK | OFlag::O_APPEND | OFlag::O_NOCTTY;
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
                opened.map_or(Self::Shared(fd), |file| Self::Own(file.into()))
            }
            _ => Self::Shared(fd),
        }
    }

    /// Writes what there is room for now.
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Own(fd) => write(fd, bytes),
            Self::Socket(fd) => send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
            Self::Shared(fd) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::ZERO) {
                    Ok(ready) if ready > 0 => write(fd, bytes),
                    _ => Err(Errno::EAGAIN),
                }
            }
        }
    }
}

/// What did not get there.
#[derive(Debug, Default)]
struct Missed {
    lines: u64,
    /// What got there last is not a whole line.
    torn: bool,
}

impl Stderr {
    /// This process's standard error.
    pub fn open() -> io::Result<Self> {
        Ok(Self::to(io::stderr().as_fd().try_clone_to_owned()?))
    }

    fn to(fd: OwnedFd) -> Self {
        Self { way: Way::to(fd), missed: Mutex::default() }
    }

    /// Writes a line if there is room for it now; one that found none is counted, and the next one says how many did.
    pub fn put(&self, line: &str) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_whole = self.try_to(line, &mut missed);
        missed.lines += u64::from(!is_whole);
    }

    /// Writes the last line of all, for which there may be room in a moment.
    pub fn last_words(&self, line: &str) {
        self.put_within(PATIENCE, line);
    }

    fn put_within(&self, patience: Duration, line: &str) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        while !self.try_to(line, &mut missed) && since.elapsed() < patience {
            thread::sleep(PAUSE);
        }
    }

    /// Writes what there is room for, of what was `missed` and the line; says whether all of it is there.
    fn try_to(&self, line: &str, missed: &mut Missed) -> bool {
        let mut text = if missed.torn { "…\n" } else { "" }.to_owned();
        if missed.lines > 0 {
            text += &format!("{} lines are left out here, as nobody read them\n", missed.lines);
        }
        let before = text.len();
        text += line;
        text.push('\n');
        // Where it fails for good, nobody is left to read it.
        let written = self.way.write(text.as_bytes()).unwrap_or(0);
        if let Some(last) = written.checked_sub(1) {
            missed.torn = text.as_bytes().get(last) != Some(&b'\n');
        }
        if written >= before {
            missed.lines = 0;
        }
        written == text.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::unix::net::UnixStream};

    use nix::{
        fcntl::{FcntlArg, fcntl},
        pty::openpty,
        unistd::pipe,
    };

    use super::*;

    /// What is read of what was put while nobody read, and behind it, once there was room again.
    fn told(stderr: Stderr, mut reader: File) -> Vec<String> {
        while stderr.missed.lock().unwrap().lines < 3 {
            stderr.put(&"x".repeat(900));
        }
        let reading = thread::spawn(move || {
            let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
            // A terminal ends with an error.
            while let Ok(length @ 1..) = reader.read(&mut chunk) {
                said.extend_from_slice(&chunk[..length]);
            }
            String::from_utf8(said).unwrap()
        });
        // Whoever reads may be held up for longer than last words wait.
        stderr.put_within(60 * PATIENCE, "after");
        drop(stderr);
        reading.join().unwrap().lines().map(str::to_owned).collect()
    }

    fn is_told_what_is_left_out(mut lines: Vec<String>) {
        let end = lines.split_off(lines.len() - 2);
        assert_eq!(end, ["3 lines are left out here, as nobody read them", "after"]);
        let torn = lines.pop_if(|line| line.ends_with('…'));
        assert!(torn.is_none_or(|line| line.trim_end_matches('…').len() <= 900));
        assert!(lines.len() > 3 && lines.iter().all(|line| *line == "x".repeat(900)), "{lines:?}");
    }

    #[test]
    fn who_reads_no_pipe_keeps_nobody_waiting_and_is_told_what_is_left_out() {
        let (reader, writer) = pipe().unwrap();
        let stderr = Stderr::to(writer.try_clone().unwrap());
        assert!(matches!(stderr.way, Way::Own(_)));
        assert!(
            !OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
        );
        drop(writer);
        is_told_what_is_left_out(told(stderr, reader.into()));
    }

    #[test]
    fn nor_does_who_reads_no_terminal_where_a_line_may_find_half_its_room() {
        let ends = openpty(None, None).unwrap();
        let stderr = Stderr::to(ends.slave);
        assert!(matches!(stderr.way, Way::Own(_)));
        is_told_what_is_left_out(told(stderr, ends.master.into()));
    }

    #[test]
    fn nor_does_who_reads_no_socket_or_a_pipe_that_can_be_opened_no_more() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let stderr = Stderr::to(writer.into());
        assert!(matches!(stderr.way, Way::Socket(_)));
        is_told_what_is_left_out(told(stderr, OwnedFd::from(reader).into()));
        let (reader, writer) = pipe().unwrap();
        let stderr = Stderr { way: Way::Shared(writer), missed: Mutex::default() };
        is_told_what_is_left_out(told(stderr, reader.into()));
    }

    #[test]
    fn in_a_file_all_who_share_it_write_one_behind_the_other() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let stderr = Stderr::to(file.as_file().try_clone().unwrap().into());
        stderr.put("one");
        io::Write::write_all(&mut file, b"two\n").unwrap();
        stderr.put("three");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "one\ntwo\nthree\n");
    }
}

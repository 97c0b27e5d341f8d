//! Addresses of connections where no hook on sockets tells them: from the open files of the connection's process.
//!
//! `look_up` borrows them, in the attaching half. `Search` is what the serving half knows of one connection's: it asks,
//! goes on, and takes the answer once the connection has proved that it holds.
//!
//! Wrong addresses never: a process says nothing unless it has one TCP connection, and that one is taken for the SSL object's
//! only when the object was used both before the look and after it, so that its socket was among those looked at.

use std::{
    collections::HashSet,
    ffi::c_int,
    fmt, fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt},
    time::{ClockId, clock_gettime},
};

use crate::capture::listeners;

/// Open files that are looked at; of a process with more, nothing is said.
const MAX_FILES: usize = 4096;
/// Before the second question about a connection; each further one waits twice as long, up to `MAX_PATIENCE`.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_PATIENCE: Duration = Duration::from_secs(64);

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Of the side that opened it.
    pub opener: SocketAddr,
    /// Of the side that accepted it.
    pub acceptor: SocketAddr,
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.opener, self.acceptor)
    }
}

impl FromStr for Ends {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (opener, acceptor) = text.split_once(' ').ok_or(())?;
        Ok(Self { opener: opener.parse().map_err(|_| ())?, acceptor: acceptor.parse().map_err(|_| ())? })
    }
}

/// The one TCP connection that a process had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Where it leads.
    pub ends: Ends,
    /// When it had been found: nanoseconds since boot.
    pub time_ns: u64,
}

/// What is known of one connection's addresses.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// When to ask again, and how long to wait after that.
    again: Option<(Instant, Duration)>,
    look: Option<Look>,
    proved: bool,
}

impl Search {
    /// Whether to ask now; takes note that this was done.
    pub fn asks(&mut self, now: Instant) -> bool {
        let (due, patience) = self.again.unwrap_or((now, PATIENCE));
        let asks = !self.proved && now >= due;
        if asks {
            self.again = Some((now + patience, (patience * 2).min(MAX_PATIENCE)));
        }
        asks
    }

    /// Takes in the answer to a question.
    pub fn answer(&mut self, look: Look) {
        if !self.proved {
            self.look = Some(look);
        }
    }

    /// The addresses, at an event of `time_ns` since boot.
    pub fn ends(&mut self, time_ns: u64) -> Option<Ends> {
        let look = self.look.as_ref()?;
        self.proved |= time_ns > look.time_ns;
        self.proved.then_some(look.ends)
    }
}

/// The TCP connection of process `pid`, if it has exactly one.
pub fn look_up(proc: &Path, pid: u32) -> Option<Look> {
    let folder = proc.join(pid.to_string());
    let process = open_process(pid).ok()?;
    let mut seen = HashSet::new();
    let mut found = None;
    for (count, entry) in fs::read_dir(folder.join("fd")).ok()?.enumerate() {
        let entry = entry.ok().filter(|_| count < MAX_FILES)?;
        // It may have been closed since.
        let Ok(name) = fs::read_link(entry.path()) else { continue };
        if !name.as_os_str().as_encoded_bytes().starts_with(b"socket:") || !seen.insert(name) {
            continue;
        }
        let number = entry.file_name().to_str()?.parse().ok()?;
        match connection(&process, number) {
            Ok(None) => {}
            Ok(Some(ends)) if found.is_none() => found = Some(ends),
            // Several; or one that is not connected now, and may have been.
            Ok(Some(_)) | Err(_) => return None,
        }
    }
    let (local, remote) = found?;
    // The socket that accepted it may be another process's by now.
    let accepted = listeners::in_namespace(&folder).contains(&local.port());
    let (opener, acceptor) = if accepted { (remote, local) } else { (local, remote) };
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let time_ns = u64::try_from(now.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(now.tv_nsec()).ok()?;
    Some(Look { ends: Ends { opener, acceptor }, time_ns })
}

/// The local and the remote end of another process's file `number`; none if it is no TCP connection.
fn connection(process: &OwnedFd, number: c_int) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let socket = match borrow(process, number) {
        Ok(socket) => socket,
        Err(Errno::EBADF) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd())?.family();
    let is_stream = getsockopt(&socket, sockopt::SockType)? == SockType::Stream;
    let is_inet = matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6));
    if !is_stream || !is_inet || getsockopt(&socket, sockopt::AcceptConn)? {
        return Ok(None);
    }
    let socket = TcpStream::from(socket);
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    Ok(Some((canonical(socket.local_addr()?), canonical(socket.peer_addr()?))))
}

/// A descriptor of process `pid`. Source: pidfd_open(2), since Linux 5.3.
#[expect(unsafe_code, reason = "a system call that has no safe name")]
fn open_process(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers in, a number out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the kernel made it for us just now.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Our own descriptor of another process's open file; what we do with it must not change it. Source: pidfd_getfd(2), since
/// Linux 5.6.
#[expect(unsafe_code, reason = "a system call that has no safe name")]
fn borrow(process: &OwnedFd, number: c_int) -> nix::Result<OwnedFd> {
    // SAFETY: numbers in, a number out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    // SAFETY: the kernel made it for us just now.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        process::{Child, Command, Stdio},
    };

    use super::*;

    fn look(number: u16, time_ns: u64) -> Look {
        let end = |port| SocketAddr::from(([10, 0, 0, 1], port));
        Look { ends: Ends { opener: end(number), acceptor: end(443) }, time_ns }
    }

    /// A shell, which has the connections that its `script` opens.
    struct Shell(Child);

    impl Shell {
        fn start(script: &str) -> Self {
            let script = format!("{script}\necho ready; read line");
            let mut command = Command::new("bash");
            let pipes = command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = pipes.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            Self(child)
        }

        fn looked_up(&self) -> Option<Look> {
            look_up(Path::new("/proc"), self.0.id())
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.stdin.take().unwrap().write_all(b"\n");
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_with_one_connection_tells_its_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let open = format!("exec 5<>/dev/tcp/127.0.0.1/{}", server.port());
        let shell = Shell::start(&format!("{open}; exec 6<&5 7</dev/null"));
        let (accepted, client) = listener.accept().unwrap();
        assert_eq!(shell.looked_up().unwrap().ends, Ends { opener: client, acceptor: server });
        drop(accepted);
        assert_eq!(Shell::start("").looked_up(), None);
        let two = Shell::start(&format!("{open}; {}", open.replace("exec 5", "exec 8")));
        assert_eq!(two.looked_up(), None);
    }

    #[test]
    fn who_listens_on_the_port_has_accepted() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().unwrap().0;
        let mut command = Command::new("sleep");
        let mut child = command.arg("60").stdin(OwnedFd::from(accepted)).spawn().unwrap();
        let looked = look_up(Path::new("/proc"), child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let ends = Ends { opener: client.local_addr().unwrap(), acceptor: client.peer_addr().unwrap() };
        assert_eq!(looked.unwrap().ends, ends);
    }

    #[test]
    fn an_answer_holds_from_an_event_after_the_look() {
        let mut search = Search::default();
        assert_eq!(search.ends(5), None);
        search.answer(look(1, 10));
        assert_eq!((search.ends(10), search.ends(9)), (None, None));
        search.answer(look(2, 20));
        assert_eq!(search.ends(21), Some(look(2, 20).ends));
        search.answer(look(3, 30));
        assert_eq!(search.ends(40), Some(look(2, 20).ends));
        assert!(!search.asks(Instant::now()));
    }

    #[test]
    fn questions_become_rarer() {
        let mut search = Search::default();
        let start = Instant::now();
        let asked: Vec<u64> =
            (0..300).filter(|second| search.asks(start + Duration::from_secs(*second))).collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 191, 255]);
    }

    #[test]
    fn ends_survive_the_link() {
        for text in ["1.2.3.4:5 [::1]:6", "[fe80::1]:7 10.0.0.1:8"] {
            assert_eq!(text.parse::<Ends>().unwrap().to_string(), text);
        }
        for text in ["", " ", "1.2.3.4:5", "1.2.3.4:5 x"] {
            assert_eq!(text.parse::<Ends>(), Err(()), "{text}");
        }
    }
}

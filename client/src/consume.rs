//! A stream's messages handed to whoever keeps or shows them, until there are enough, the stream ends, or the person has
//! seen enough (Ctrl-C), which is no failure: what was begun is finished first.
//!
//! The consumer is shared with the thread that a signal wakes. It is locked for one message at a time and never while the
//! network is waited for, so that Ctrl-C works at once.

use std::{
    io, mem,
    process::exit,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use plaintap_proto::LogEntry;
use prost::{DecodeError, Message as _, bytes::Bytes};
use tungstenite::Message;

use crate::{
    address::Address,
    follow::{self, Follow, Incoming},
    note::{self, note},
    seen::Seen,
};

/// How long Ctrl-C waits for a consumer that is stuck, as in a pipe that nobody reads.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who keeps or shows messages.
pub trait Consumer: Send + 'static {
    /// A message, as it came and as far as it decodes.
    fn message(&mut self, bytes: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()>;

    /// A text message, which no eCaptureQ server sends.
    fn text(&mut self, text: &str) -> io::Result<()>;

    /// Nothing more has come yet.
    fn idle(&mut self) -> io::Result<()>;

    /// No more is wanted.
    fn enough(&self) -> bool;

    /// There is no more. Called once.
    fn finish(&mut self) -> io::Result<()>;

    /// Where it puts what it gets, for an error's sentence.
    fn place(&self) -> String;

    /// It writes to stdout, so that there is no use in it once nobody reads that.
    fn is_for_stdout(&self) -> bool;
}

/// A consumer that is finished once, whoever comes first to it.
struct Once<C> {
    consumer: C,
    finished: bool,
}

impl<C: Consumer> Once<C> {
    fn finish(&mut self) -> io::Result<()> {
        if mem::replace(&mut self.finished, true) { Ok(()) } else { self.consumer.finish() }
    }
}

/// Why it ended before it was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not go on.
    #[error(transparent)]
    Stream(#[from] follow::Error),
    /// What came can't be put where it belongs.
    #[error("can't write to {0}")]
    Output(String, #[source] io::Error),
    /// Ctrl-C could not be prepared for.
    #[error("can't wait for Ctrl-C")]
    Signals(#[source] ctrlc::Error),
}

/// What is to be done on SIGINT, SIGTERM or SIGHUP before the process ends.
#[derive(Clone)]
pub struct Interrupt(Arc<Mutex<Vec<Ending>>>);

/// Says whether it worked.
type Ending = Box<dyn FnOnce() -> bool + Send>;

impl Interrupt {
    /// From now on the process ends on these signals after what [`first`](Self::first) was given: with 0, or 1 where it did
    /// not work. Once in a process.
    pub fn new() -> Result<Self, Error> {
        let interrupt = Self(Arc::default());
        let handler = interrupt.clone();
        ctrlc::set_handler(move || handler.end()).map_err(Error::Signals)?;
        Ok(interrupt)
    }

    /// Does this before all that was given so far.
    pub fn first(&self, ending: impl FnOnce() -> bool + Send + 'static) {
        lock(&self.0).push(Box::new(ending));
    }

    fn end(&self) -> ! {
        // Held to the end: in a pipeline, Ctrl-C and the reader's end come as one.
        let mut endings = lock(&self.0);
        let mut worked = true;
        while let Some(ending) = endings.pop() {
            worked &= ending();
        }
        exit(i32::from(!worked))
    }

    /// Ends the process, as on a signal, once nobody reads stdout; a write would tell, but there may be nothing to write for
    /// hours.
    #[cfg(unix)]
    fn when_nobody_reads_stdout(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;

        let interrupt = self.clone();
        thread::spawn(move || {
            let stdout = io::stdout();
            loop {
                let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
                match poll(&mut fds, PollTimeout::NONE) {
                    Err(nix::errno::Errno::EINTR) => {}
                    Ok(_)
                        if fds[0]
                            .revents()
                            .is_some_and(|is| is.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)) =>
                    {
                        interrupt.end()
                    }
                    // Not something that can be waited for.
                    _ => return,
                }
            }
        });
    }

    #[cfg(not(unix))]
    fn when_nobody_reads_stdout(&self) {}
}

/// Runs until the consumer has enough, or the stream ends and is not to go on, or nobody reads what the consumer writes.
/// On SIGINT, SIGTERM and SIGHUP the consumer finishes and the process ends: 0, or 1 if it could not.
pub fn run(consumer: impl Consumer, address: &Address, reconnect: bool) -> Result<(), Error> {
    run_until(&Interrupt::new()?, consumer, address, reconnect)
}

/// As [`run`], where more is to be done on these signals.
pub fn run_until(
    interrupt: &Interrupt,
    consumer: impl Consumer,
    address: &Address,
    reconnect: bool,
) -> Result<(), Error> {
    let is_for_stdout = consumer.is_for_stdout();
    let consumer = Arc::new(Mutex::new(Once { consumer, finished: false }));
    let interrupted = consumer.clone();
    interrupt.first(move || finished(&interrupted));
    if is_for_stdout {
        interrupt.when_nobody_reads_stdout();
    }
    let mut follow = Follow::new(address.clone(), reconnect);
    let streamed = stream(&consumer, &mut follow, address);
    let mut consumer = lock(&consumer);
    let finished = match streamed {
        Err(Error::Output(..)) => {
            let _ = consumer.finish();
            streamed
        }
        streamed => match consumer.finish() {
            Err(error) => Err(Error::Output(consumer.consumer.place(), error)),
            Ok(()) => streamed,
        },
    };
    match finished {
        Err(Error::Stream(follow::Error::Ended(ended))) if ended.in_good_order() => Ok(()),
        // As `head` does when it has enough.
        Err(Error::Output(_, error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        finished => finished,
    }
}

fn stream<C: Consumer>(
    consumer: &Mutex<Once<C>>,
    follow: &mut Follow,
    address: &Address,
) -> Result<(), Error> {
    let mut seen = Seen::default();
    while !lock(consumer).consumer.enough() {
        let incoming = follow.receive()?;
        let consumer = &mut lock(consumer).consumer;
        let done = match incoming {
            Incoming::Message(Message::Binary(bytes)) => {
                let entry = LogEntry::decode(bytes.clone());
                let notes: Vec<String> = entry.iter().flat_map(|entry| seen.entry(entry)).collect();
                // They belong between what was shown so far and what comes.
                let shown = if notes.is_empty() { Ok(()) } else { consumer.idle() };
                notes.iter().for_each(|what| note(what));
                shown.and_then(|()| consumer.message(&bytes, entry.as_ref()))
            }
            Incoming::Message(message) => consumer.text(message.to_text().unwrap_or_default()),
            Incoming::Idle | Incoming::StillDown(_) => consumer.idle(),
            Incoming::Down(why, delay) => {
                follow.resume_after(seen.place());
                let shown = consumer.idle();
                note(&format!("{why}; trying again in {:.1} s", delay.as_secs_f32()));
                shown
            }
            Incoming::Connected { again, kept } => {
                if again {
                    note("connected again");
                } else {
                    note(&format!("connected to {address}"));
                }
                match kept {
                    Some(told) => {
                        seen.is_kept();
                        told.iter().for_each(|what| note(what));
                    }
                    None if again => seen.reconnected(),
                    None => {}
                }
                Ok(())
            }
        };
        done.map_err(|error| Error::Output(consumer.place(), error))?;
    }
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the consumer finish, whatever the thread that feeds it does; says whether that worked.
fn finished<C: Consumer>(consumer: &Mutex<Once<C>>) -> bool {
    let began = Instant::now();
    while began.elapsed() <= PATIENCE {
        let Ok(mut consumer) = consumer.try_lock() else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let worked = match consumer.finish() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                note(&note::chain(&Error::Output(consumer.consumer.place(), error)));
                false
            }
            _ => true,
        };
        // There is nothing behind the end.
        mem::forget(consumer);
        return worked;
    }
    note("what was begun could not be finished: nobody reads it");
    false
}

//! A thread that keeps a [`Finder`] up to date for as long as the program runs, and hands on what it finds.
//!
//! It sleeps until the kernel says that a process mapped a file to run, and looks after the targets from time to time; where
//! the kernel does not say, it looks at all processes from time to time. Of a [`Finder`] that is restricted to some files it looks
//! after these alone. Whatever it does may take long and be paged in
//! from a slow disk: it is nobody's way that it stands in, and it runs at a low priority.

use std::{
    collections::HashSet,
    io::{self, PipeReader, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::memory;

use super::{
    events::Events,
    finder::{Change, Finder},
};

/// From the first record to looking at it: those of a program's start come together.
const SETTLE: Duration = Duration::from_millis(50);
/// How often targets are looked after that processes have mapped.
const CHECK: Duration = Duration::from_secs(5);
/// How often those in the usual places are.
const CHECK_PLACES: Duration = Duration::from_secs(60);
/// How often all processes are looked at where the kernel does not tell what they map; and how often the files are that a person
/// named.
const SLOW_SCAN: Duration = Duration::from_secs(10);
/// Changes on their way; the thread waits when there are more.
const QUEUE: usize = 16;
/// Priority of the thread: the lowest but for some.
const NICE: libc::c_int = 10;

/// What the thread finds.
#[derive(Debug)]
pub struct Changes {
    queue: Receiver<Change>,
    bell: PipeReader,
}

impl Changes {
    /// The next change; waits for it unless there is something to read.
    pub fn take(&mut self) -> Option<Change> {
        // There is a byte for each, written after it was queued.
        let _ = self.bell.read(&mut [0]);
        self.queue.try_recv().ok()
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Starts the thread.
pub fn start(finder: Finder) -> io::Result<Changes> {
    let (bell, ring) = io::pipe()?;
    let (sender, queue) = sync_channel(QUEUE);
    thread::Builder::new().name("plaintapd-scan".into()).spawn(move || {
        lower_priority();
        Watch { finder, sender, ring }.run();
    })?;
    Ok(Changes { queue, bell })
}

struct Watch {
    finder: Finder,
    sender: SyncSender<Change>,
    ring: io::PipeWriter,
}

impl Watch {
    /// Until nobody wants to know any more.
    fn run(mut self) {
        // Who said what to watch is told of nothing else.
        let is_restricted = self.finder.is_restricted();
        let mut events = if is_restricted { None } else { open() };
        if !is_restricted {
            self.find(Finder::scan);
        }
        let mut checked = Instant::now();
        loop {
            let pause = match &events {
                Some(_) if self.finder.is_watchful() => CHECK,
                Some(_) => CHECK_PLACES,
                None => SLOW_SCAN,
            };
            let left = pause.saturating_sub(checked.elapsed());
            match (wait(events.as_ref(), &self.ring, left), &mut events) {
                (Woken::Unwanted, _) => return,
                (Woken::Records, Some(watched)) => {
                    thread::sleep(SETTLE);
                    self.take(watched);
                }
                _ => {}
            }
            if checked.elapsed() < pause {
                continue;
            }
            match &events {
                // CPUs come and go, and their events with them.
                Some(watched) if watched.outdated() => {
                    drop(events.take());
                    events = open();
                    self.find(Finder::scan);
                }
                None if !is_restricted => self.find(Finder::scan),
                _ => {}
            }
            self.find(Finder::check);
            checked = Instant::now();
        }
    }

    /// Looks at what was mapped.
    fn take(&mut self, events: &mut Events) {
        let mut mapped = Vec::new();
        if events.drain(|event| mapped.push(event)) {
            log::debug!("the kernel lost word of mapped files; looking at all processes");
            return self.find(Finder::scan);
        }
        let (mut done, mut gone) = (HashSet::new(), Vec::new());
        for event in mapped {
            if done.contains(&event.file) {
                continue;
            }
            let mut known = Ok(());
            self.find(|finder, sink| known = finder.mapped(event.pid, event.start, event.end, sink));
            if known.is_ok() {
                done.insert(event.file);
            } else {
                gone.push(event);
            }
        }
        // Of processes that were too short for us, the files.
        for event in gone {
            if done.insert(event.file) {
                self.find(|finder, sink| finder.unmapped(&event.path, event.file.2, sink));
            }
        }
    }

    fn find(&mut self, look: impl FnOnce(&mut Finder, &mut dyn FnMut(Change))) {
        let Self { finder, sender, ring } = self;
        look(finder, &mut |change| {
            // Both fail only when nobody wants to know any more.
            if sender.send(change).is_ok() {
                let _ = ring.write(&[0]);
            }
        });
        if finder.has_parsed() {
            memory::give_back();
        }
    }
}

fn open() -> Option<Events> {
    Events::open()
        .inspect_err(|error| {
            let seconds = SLOW_SCAN.as_secs();
            log::warn!("libraries that processes map from now on are found within {seconds} s, not at once: this kernel has no perf events for us: {error}");
        })
        .ok()
}

/// What ended a wait.
enum Woken {
    Records,
    Time,
    /// Nobody will read what is found.
    Unwanted,
}

/// Waits for records, where there are events, and at most for so long; `ring` tells when its reader is gone.
fn wait(events: Option<&Events>, ring: &io::PipeWriter, most: Duration) -> Woken {
    let records = events.into_iter().flat_map(Events::fds).map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let mut polled: Vec<PollFd<'_>> =
        [PollFd::new(ring.as_fd(), PollFlags::empty())].into_iter().chain(records).collect();
    // A millisecond more, so as not to wake just before it.
    let timeout = PollTimeout::try_from(most + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    if poll(&mut polled, timeout).is_err() {
        return Woken::Time;
    }
    let told = |fds: &[PollFd<'_>], flags: PollFlags| {
        fds.iter().any(|fd| fd.revents().is_some_and(|got| got.intersects(flags)))
    };
    let broken = PollFlags::POLLHUP | PollFlags::POLLERR;
    let (ring, events) = polled.split_at(1);
    if told(ring, broken) {
        return Woken::Unwanted;
    }
    if told(events, PollFlags::POLLIN) {
        return Woken::Records;
    }
    if told(events, broken) {
        // An event of a CPU that is gone is ready for ever.
        thread::sleep(most.min(Duration::from_secs(1)));
    }
    Woken::Time
}

/// On Linux, of the calling thread alone. Source: setpriority(2), notes.
fn lower_priority() {
    // SAFETY: it takes numbers only.
    #[expect(unsafe_code, reason = "setpriority")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS as _, 0, NICE);
    }
}

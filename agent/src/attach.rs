//! The attaching half: privileged, finds TLS libraries, holds the probes, and reads nothing from the network.
//!
//! Owns the loaded eBPF programs, and the wait for the signals that end the program. What takes long is done in steps
//! (`targets`) or in a thread of its own (`discover::watch`).

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    args::{self, Args, Parsed},
    capture::{Capture, SocketHook, filters::Filters},
    discover::{
        self,
        finder::{Change, Finder, Scope},
        watch::{self, Changes},
    },
    link::{self, Link, Message},
    memory::{self, Sizes},
    notify, process,
    run::{Error, arguments, chain},
    sockets,
    targets::Targets,
    wipe::Wipe,
};

/// How long the serving half may take to see its clients off.
const FAREWELL: Duration = Duration::from_secs(5);

/// Between two lines about probes that are still to be taken off.
const TELL: Duration = Duration::from_secs(2);

/// Runs until a signal of `signals`, which must be blocked, or until the serving half `child` ends.
pub fn run(link: Link, args: &Args, sizes: Sizes, signals: &SigSet, child: Pid) -> Result<(), Error> {
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(Error::system("wait for signals"))?;
    let link = std::sync::Arc::new(link);
    let sink = std::sync::Arc::clone(&link);
    crate::log::start(args.log_level.0, Box::new(move |line| sink.log(line)));
    let is_to_end = is_to_end()?;
    let (mut half, finder, hooked) = Half::start(args, sizes, &link, &is_to_end)?;
    // What has come to its end already serves nobody.
    if !is_to_end()? {
        half.changes = finder.map(watch::start).transpose().map_err(Error::system("start a thread"))?;
        link.ready(hooked, half.capture.ring()?, half.capture.counters()?, half.capture.tails()?)?;
        // Clients may connect: those that do so before the serving half is there are kept waiting by the kernel.
        notify::tell("READY=1");
    }
    let stopped_by_signal = loop {
        let mut fds = vec![signals.as_fd(), link.as_fd()];
        fds.extend(half.changes.as_ref().map(AsFd::as_fd));
        let ready = wait(&fds, half.due())?;
        if ready.get(2) == Some(&true)
            && let Some(change) = half.changes.as_mut().and_then(Changes::take)
        {
            half.targets.push(change);
        }
        if ready[0] {
            match signals.read_signal() {
                Ok(Some(signal)) if signal.ssi_signo == Signal::SIGHUP as u32 => half.reload(),
                Ok(Some(signal)) => {
                    log::info!("ending: {}", signal_name(signal.ssi_signo));
                    notify::tell("STOPPING=1");
                    break true;
                }
                // It is gone after all.
                Ok(None) | Err(_) => {}
            }
        }
        if ready[1] && !half.answer()? {
            break false;
        }
        half.targets.judge(&mut half.capture);
        let was_idle = half.targets.is_idle();
        if let Err(error) = half.targets.step(&mut half.capture) {
            log::warn!("not attached: {}", chain(&error));
        }
        if !was_idle && half.targets.is_idle() {
            memory::give_back();
        }
        half.wipe_some()?;
    };
    if stopped_by_signal {
        // Nothing more is captured, and what the ring holds still goes out. The probes go last, as that takes long.
        half.wanted = false;
        if let Err(error) = half.capture.pause() {
            log::debug!("{}", chain(&error));
        }
        if link.stop().is_ok() {
            let deadline = Instant::now() + FAREWELL;
            while Instant::now() < deadline
                && (!wait(&[link.as_fd()], Some(deadline))?[0] || half.answer()?)
            {}
        }
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        half.take_off();
        drop(half);
        log::info!("ended");
        return Ok(());
    }
    match waitpid(child, None).map_err(Error::system("wait for the serving half"))? {
        WaitStatus::Exited(_, code) => Err(Error::HalfGone(format!("exit status {code}"))),
        WaitStatus::Signaled(_, signal, _) => Err(Error::HalfGone(format!("killed by {signal}"))),
        status => Err(Error::HalfGone(format!("{status:?}"))),
    }
}

/// What tells whether one of the signals that end us, which must be blocked, has come. It is not taken.
fn is_to_end() -> Result<impl Fn() -> Result<bool, Error>, Error> {
    let ending = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    let ending =
        SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC).map_err(Error::system("wait for signals"))?;
    Ok(move || Ok(wait(&[ending.as_fd()], Some(Instant::now()))?[0]))
}

/// What this half keeps.
struct Half<'a> {
    args: &'a Args,
    link: &'a Link,
    capture: Capture,
    filters: Filters,
    targets: Targets,
    /// What finds more to attach to; none while nobody is to be captured for.
    changes: Option<Changes>,
    /// Whether there is anybody to capture for.
    wanted: bool,
    /// How often the serving half is still to forget what was captured. Until it has, nothing is captured, as that would be
    /// forgotten too.
    to_forget: u32,
    /// The ring's size, or more where the kernel allowed less.
    ring: u32,
    /// What the ring still holds is being overwritten.
    wipe: Option<Wipe>,
}

impl<'a> Half<'a> {
    /// Loads the programs and attaches them to all that is to be watched from the start. What will find more, unless nobody is to be
    /// captured for, comes along, and whether connections' addresses come with their events.
    ///
    /// Once `is_to_end` says so, nothing more is attached.
    fn start(
        args: &'a Args,
        sizes: Sizes,
        link: &'a Link,
        is_to_end: &impl Fn() -> Result<bool, Error>,
    ) -> Result<(Self, Option<Finder>, bool), Error> {
        let (found, finder) = find(args)?;
        let filters = Filters::new(args)?;
        let mut capture = Capture::load(sizes, &filters)?;
        // Not before: what can't start at all says so in one line.
        log::info!("plaintapd version={} pid={}", env!("CARGO_PKG_VERSION"), std::process::id());
        let hooked = hook(&mut capture);
        if let Some(reduced) = capture.reduced() {
            log::warn!("{reduced}");
        }
        let targets = Targets::default();
        let mut half = Self {
            args,
            link,
            capture,
            filters,
            targets,
            changes: None,
            wanted: !args.on_demand,
            to_forget: 0,
            ring: sizes.ring,
            wipe: None,
        };
        if args.on_demand {
            half.capture.pause()?;
            half.capture.unhook();
            log::info!("on demand: probes are put in place when a client connects");
            drop((found, finder));
            memory::give_back();
            return Ok((half, None, hooked));
        }
        found.into_iter().for_each(|change| half.targets.push(change));
        let mut failed = None;
        while !half.targets.is_idle() {
            if is_to_end()? {
                return Ok((half, None, hooked));
            }
            if let Err(error) = half.targets.step(&mut half.capture) {
                // What a person named must work; of what a scan found, whatever works is welcome.
                if !args.library.is_empty() {
                    return Err(error.into());
                }
                log::warn!("not attached: {}", chain(&error));
                failed = Some(error);
            }
        }
        if let Some(error) = failed.filter(|_| half.targets.attached() == 0) {
            return Err(error.into());
        }
        memory::give_back();
        Ok((half, Some(finder), hooked))
    }

    /// Reads the command line and its config file again, and takes over what may change while we run.
    fn reload(&mut self) {
        let mut changed = || {
            let Parsed::Run(args) = args::parse(arguments())? else { return Ok(()) };
            let filters = Filters::new(&args)?;
            if self.wanted && self.to_forget == 0 {
                self.capture.set_filters(&filters)?;
            }
            self.filters = filters;
            log::set_max_level(args.log_level.0);
            self.link.log_level(args.log_level.0 as u32)?;
            log::info!("filters, --snaplen and --log-level were read again");
            match &self.args.fixed_differences(&args)[..] {
                [] => {}
                flags => log::warn!("changed, and waits for a restart: {}", flags.join(" ")),
            }
            Ok::<(), Error>(())
        };
        // What was wrong changes nothing.
        if let Err(error) = changed() {
            log::error!("nothing was changed: {}", chain(&error));
        }
    }

    /// Answers what the serving half asks; tells whether it is still there.
    fn answer(&mut self) -> Result<bool, Error> {
        loop {
            match self.link.try_receive() {
                Ok(Some(Message::NoAddress)) => self.targets.want_engines(),
                Ok(Some(Message::Who(program))) => {
                    let process = process::look_up(Path::new("/proc"), program.pid);
                    // By now the process id may stand for another.
                    if let Some(process) = process.filter(|_| self.capture.lives(program)) {
                        self.link.process(program, &process);
                    }
                }
                Ok(Some(Message::Where(program, connection_id))) => {
                    let look = sockets::look_up(Path::new("/proc"), program.pid);
                    if let Some(look) = look.filter(|_| self.capture.lives(program)) {
                        self.link.socket(connection_id, look);
                    }
                }
                Ok(Some(Message::Wanted(true))) => {
                    self.wanted = true;
                    self.wipe = None;
                    self.begin_if_due();
                }
                Ok(Some(Message::Wanted(false))) => self.end()?,
                Ok(Some(Message::Forgotten(pauses))) => {
                    self.to_forget = self.to_forget.saturating_sub(pauses);
                    self.begin_if_due();
                }
                // So both halves are.
                Ok(Some(Message::Alive)) => notify::tell("WATCHDOG=1"),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(false),
                Err(link::Error::System(Errno::EAGAIN)) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// When something is to be done without being asked. What waits for nobody lets everybody else in between.
    fn due(&self) -> Option<Instant> {
        if !self.targets.is_idle() {
            return Some(Instant::now());
        }
        let wipe = self.wipe.as_ref().map(Wipe::due);
        [wipe, self.targets.due()].into_iter().flatten().min()
    }

    /// Overwrites a part of the ring, if it is to be, and nothing has a probe that could still write to it; then forgets, and
    /// has forgotten, what calls left that were under way when capturing stopped.
    fn wipe_some(&mut self) -> Result<(), Error> {
        let Some(wipe) = self.wipe.as_mut().filter(|_| self.targets.is_idle()) else { return Ok(()) };
        match wipe.step(|| self.capture.wipe()) {
            Ok(false) => return Ok(()),
            Ok(true) => log::debug!("the kernel's ring was overwritten"),
            Err(error) => {
                log::warn!("the kernel's ring keeps what went through it last: {}", chain(&error));
            }
        }
        self.wipe = None;
        if let Err(error) = self.capture.forget() {
            log::warn!("the kernel's tables keep connections' addresses: {}", chain(&error));
        }
        self.say_paused()
    }

    fn say_paused(&mut self) -> Result<(), Error> {
        self.to_forget += 1;
        Ok(self.link.paused()?)
    }

    /// Captures, if that is wanted, and what was captured before is forgotten.
    fn begin_if_due(&mut self) {
        if self.wanted
            && self.to_forget == 0
            && self.changes.is_none()
            && let Err(error) = self.begin()
        {
            log::error!("can't capture: {}", chain(&error));
        }
    }

    /// Captures, after a time without anybody to capture for. The probes are put in place in steps that follow.
    fn begin(&mut self) -> Result<(), Error> {
        // What is missing just now may be there soon.
        let (found, finder) = look(self.args);
        if self.args.no_scan && self.args.library.is_empty() && !found.iter().any(carries) {
            log::warn!("{}", discover::Error::Nothing);
        }
        self.capture.begin_anew()?;
        hook(&mut self.capture);
        self.capture.set_filters(&self.filters)?;
        found.into_iter().for_each(|change| self.targets.push(change));
        self.changes = Some(watch::start(finder).map_err(Error::system("start a thread"))?);
        Ok(())
    }

    /// Takes everything off, one probe a step, and says how far it is: it takes the kernel a tenth of a second for each probe, and
    /// many times that on a busy machine.
    fn take_off(&mut self) {
        self.targets.clear();
        let mut next_tell = Instant::now();
        while !self.targets.is_idle() {
            if Instant::now() >= next_tell {
                log::info!("taking probes off left={}", self.targets.probes_left());
                next_tell = Instant::now() + TELL;
            }
            // Of what is not to be attached any more, no step fails.
            let _ = self.targets.step(&mut self.capture);
        }
    }

    /// Captures nothing more, at once, takes everything off and overwrites the ring, in steps that follow. What was kept is
    /// forgotten now, and once more when no probe is left.
    fn end(&mut self) -> Result<(), Error> {
        self.wanted = false;
        self.changes = None;
        if let Err(error) = self.capture.pause() {
            log::error!("{}", chain(&error));
        }
        self.capture.unhook();
        self.targets.clear();
        self.wipe = Some(Wipe::new(self.ring));
        self.say_paused()
    }
}

/// What is there to be attached, and what will find more. An error: of what a person named something is not usable, or there is
/// nothing where nothing more will be found.
fn find(args: &Args) -> Result<(Vec<Change>, Finder), Error> {
    if !args.library.is_empty() {
        let named = discover::named(&args.library, &args.options())?;
        let mut finder = Finder::new(scope(args), args.options());
        named.iter().for_each(|target| finder.adopt(target));
        return Ok((named.into_iter().map(Change::Attach).collect(), finder));
    }
    let (found, finder) = look(args);
    if args.no_scan && !found.iter().any(carries) {
        return Err(discover::Error::Nothing.into());
    }
    Ok((found, finder))
}

/// What is there now to be attached, whatever else there should be, and what will find more.
fn look(args: &Args) -> (Vec<Change>, Finder) {
    let mut found = Vec::new();
    let mut finder = Finder::new(scope(args), args.options());
    finder.places(&mut |change| found.push(change));
    (found, finder)
}

fn scope(args: &Args) -> Scope {
    match (&args.library[..], args.no_scan) {
        ([], false) => Scope::Everything,
        ([], true) => Scope::Places,
        (paths, _) => Scope::Named(paths.into()),
    }
}

fn carries(change: &Change) -> bool {
    matches!(change, Change::Attach(target) if target.found.carries())
}

/// Puts the programs on what tells the ends of processes and the addresses of connections; whether those come with events.
fn hook(capture: &mut Capture) -> bool {
    if let Err(error) = capture.hook_ends() {
        log::warn!("a process id that is used again may be taken for its old process: {}", chain(&error));
    }
    let hook = capture.hook_sockets();
    match &hook {
        Ok(SocketHook::Kprobe) => log::info!("addresses hook=kprobe"),
        Ok(SocketHook::Tracepoint) => log::info!("addresses hook=tracepoint"),
        Err(error) => log::warn!(
            "only programs with one TCP connection will have addresses, from their second event on: {}",
            chain(error)
        ),
    }
    hook.is_ok()
}

/// Waits until one of `fds` can be read, or until `deadline`; says which.
fn wait(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Vec<bool>, Error> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = match deadline {
        Some(deadline) => {
            // A millisecond more, so as not to wake just before it.
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            let left = left.map_or(Duration::ZERO, |left| left + Duration::from_millis(1));
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(Error::system("wait for events")(error)),
    }
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

fn signal_name(number: u32) -> &'static str {
    i32::try_from(number)
        .ok()
        .and_then(|number| Signal::try_from(number).ok())
        .map_or("a signal", Signal::as_str)
}

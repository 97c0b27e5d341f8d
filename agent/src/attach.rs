//! The attaching half: privileged, finds TLS libraries, holds the probes, and reads nothing from the network.
//!
//! Owns the loaded eBPF programs, and the wait for the signals that end the program.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
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
    discover::{self, Function},
    link::{self, Link, Message},
    process,
    run::{Error, arguments, chain},
};

/// How long the serving half may take to see its clients off.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs until a signal of `signals`, which must be blocked, or until the serving half `child` ends.
pub fn run(link: Link, args: &Args, signals: &SigSet, child: Pid) -> Result<(), Error> {
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(Error::system("wait for signals"))?;
    let link = std::sync::Arc::new(link);
    let sink = std::sync::Arc::clone(&link);
    crate::log::start(args.log_level, Box::new(move |line| sink.log(line)));
    let (mut capture, mut spare) = start(args)?;
    link.ready(capture.ring()?, capture.counters()?, capture.tails()?)?;
    let stopped_by_signal = loop {
        let ready = wait(&[signals.as_fd(), link.as_fd()], None)?;
        if ready[0] {
            match signals.read_signal() {
                Ok(Some(signal)) if signal.ssi_signo == Signal::SIGHUP as u32 => reload(&mut capture, &link),
                Ok(Some(signal)) => {
                    log::info!("ending: {}", signal_name(signal.ssi_signo));
                    break true;
                }
                // It is gone after all.
                Ok(None) | Err(_) => {}
            }
        }
        if ready[1] && !answer(&mut capture, &mut spare, &link)? {
            break false;
        }
    };
    if stopped_by_signal {
        // Nothing more is captured, and what the ring holds still goes out. The probes go last, as that takes long.
        if let Err(error) = capture.pause() {
            log::debug!("{}", chain(&error));
        }
        if link.stop().is_ok() {
            let deadline = Instant::now() + FAREWELL;
            while Instant::now() < deadline
                && (!wait(&[link.as_fd()], Some(deadline))?[0] || answer(&mut capture, &mut spare, &link)?)
            {
            }
        }
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        return Ok(());
    }
    match waitpid(child, None).map_err(Error::system("wait for the serving half"))? {
        WaitStatus::Exited(_, code) => Err(Error::HalfGone(format!("exit status {code}"))),
        WaitStatus::Signaled(_, signal, _) => Err(Error::HalfGone(format!("killed by {signal}"))),
        status => Err(Error::HalfGone(format!("{status:?}"))),
    }
}

/// Where each target's `BIO_write` is that has no probe yet: a file and an offset in it. Each call of it costs the traced
/// program time, which only those with SSL objects over memory are to pay.
type Spare = Vec<(PathBuf, u64)>;

/// Loads the programs and attaches them to all that is to be watched.
fn start(args: &Args) -> Result<(Capture, Spare), Error> {
    let (targets, unusable) = if args.library.is_empty() {
        discover::scan()?
    } else {
        (discover::named(&args.library)?, Vec::new())
    };
    let mut capture = Capture::load(args.ring_size.0, &Filters::new(args)?)?;
    // Not before: what can't start at all says so in one line.
    log::info!("plaintapd version={} pid={}", env!("CARGO_PKG_VERSION"), std::process::id());
    for error in unusable {
        log::warn!("not attached: {}", chain(&error));
    }
    if let Err(error) = capture.hook_ends() {
        log::warn!("a process id that is used again may be taken for its old process: {}", chain(&error));
    }
    match capture.hook_sockets() {
        Ok(SocketHook::Kprobe) => log::info!("addresses hook=kprobe"),
        Ok(SocketHook::Tracepoint) => log::info!("addresses hook=tracepoint"),
        Err(error) => log::warn!("connections will have no addresses: {}", chain(&error)),
    }
    let mut spare = Spare::new();
    let mut has_engines = false;
    let mut failed = None;
    let mut attached = 0;
    for target in &targets {
        match capture.attach(target) {
            Ok(()) => {
                attached += 1;
                log::info!("attached {target}");
                let place = target.bio_write.as_ref().filter(|place| !spare.contains(place));
                spare.extend(place.cloned());
                has_engines |= target.has_engines();
            }
            // What a person named must work; of what a scan found, whatever works is welcome.
            Err(error) if !args.library.is_empty() => return Err(error.into()),
            Err(error) => {
                log::warn!("not attached: {}", chain(&error));
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if attached == 0 => Err(error.into()),
        _ => {
            if has_engines {
                attach_spare(&mut capture, &mut spare);
            }
            give_back_memory();
            Ok((capture, spare))
        }
    }
}

/// Puts the probes on the spare functions.
fn attach_spare(capture: &mut Capture, spare: &mut Spare) {
    for (path, offset) in std::mem::take(spare) {
        match capture.attach_bio_write(&path, offset) {
            Ok(()) => {
                log::info!("attached library={} functions={}", path.display(), Function::BioWrite.name())
            }
            Err(error) => log::warn!("TLS over memory will have no addresses: {}", chain(&error)),
        }
    }
}

/// Gives freed memory back to the system: aya holds all of the kernel's types for a moment, some 14 MiB, and glibc would
/// keep the room for good. musl and Android's C library give it back by themselves.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call it at any time.
    #[expect(unsafe_code, reason = "malloc_trim")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Reads the command line and its config file again, and takes over what may change while we run.
fn reload(capture: &mut Capture, link: &Link) {
    let mut changed = || {
        let Parsed::Run(args) = args::parse(arguments())? else { return Ok(()) };
        capture.set_filters(&Filters::new(&args)?)?;
        log::set_max_level(args.log_level);
        link.log_level(args.log_level as u32)?;
        Ok::<(), Error>(())
    };
    // What was wrong changes nothing.
    match changed() {
        Ok(()) => log::info!("filters and log level were read again"),
        Err(error) => log::error!("nothing was changed: {}", chain(&error)),
    }
}

/// Answers what the serving half asks; tells whether it is still there.
fn answer(capture: &mut Capture, spare: &mut Spare, link: &Link) -> Result<bool, Error> {
    loop {
        match link.try_receive() {
            Ok(Some(Message::NoAddress)) => attach_spare(capture, spare),
            Ok(Some(Message::Who(program))) => {
                let process = process::look_up(Path::new("/proc"), program.pid);
                // By now the process id may stand for another.
                if let Some(process) = process.filter(|_| capture.lives(program)) {
                    link.process(program, &process);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(link::Error::System(Errno::EAGAIN)) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until one of `fds` can be read, or until `deadline`; says which.
fn wait(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Vec<bool>, Error> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = match deadline {
        Some(deadline) => {
            // A millisecond more, so as not to wake just before it.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
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

//! The attaching half: privileged, finds TLS libraries, holds the probes, and reads nothing from the network.
//!
//! Owns the loaded eBPF programs, and the wait for the signals that end the program.

use std::{
    os::fd::{AsFd, BorrowedFd},
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
    args::Args,
    capture::{self, Capture, SocketHook},
    discover,
    link::Link,
    run::{Error, chain},
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
    let capture = start(args)?;
    link.ready(capture.ring()?, capture.counters()?)?;
    let stopped_by_signal = loop {
        match wait(&[signals.as_fd(), link.as_fd()], None)?[..] {
            [true, _] => {
                // A signal that is not there after all is one that somebody else of this process took: none does.
                if let Ok(Some(signal)) = signals.read_signal() {
                    log::info!("ending: {}", signal_name(signal.ssi_signo));
                    break true;
                }
            }
            [_, true] => break false,
            _ => {}
        }
    };
    if stopped_by_signal {
        // Nothing more is captured; what the ring holds still goes out.
        drop(capture);
        if link.stop().is_ok() {
            let deadline = Instant::now() + FAREWELL;
            while Instant::now() < deadline && !wait(&[link.as_fd()], Some(deadline))?[0] {}
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

/// Loads the programs and attaches them to all that is to be watched.
fn start(args: &Args) -> Result<Capture, Error> {
    let (targets, unusable) = if args.library.is_empty() {
        discover::scan()?
    } else {
        (discover::named(&args.library)?, Vec::new())
    };
    let options = capture::Options { pids: args.pid.clone(), ring_size: args.ring_size.0 };
    let mut capture = Capture::load(&options)?;
    // Not before: what can't start at all says so in one line.
    log::info!("plaintapd version={} pid={}", env!("CARGO_PKG_VERSION"), std::process::id());
    for error in unusable {
        log::warn!("not attached: {}", chain(&error));
    }
    match capture.hook_sockets() {
        Ok(SocketHook::Kprobe) => log::info!("addresses hook=kprobe"),
        Ok(SocketHook::Tracepoint) => log::info!("addresses hook=tracepoint"),
        Err(error) => log::warn!("connections will have no addresses: {}", chain(&error)),
    }
    let mut failed = None;
    let mut attached = 0;
    for target in &targets {
        match capture.attach(target) {
            Ok(()) => {
                attached += 1;
                log::info!("attached {target}");
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
        _ => Ok(capture),
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

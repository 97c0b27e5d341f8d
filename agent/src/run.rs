//! The program from start to exit code: command line, listener, and the split into two processes.
//!
//! The listener comes first, so that a second agent on the same port touches nothing; the fork comes before the first
//! use of async-io, which starts a thread, and before the eBPF loader, so that the serving half never has its memory.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    },
    unistd::{ForkResult, fork},
};

use crate::{
    args::{self, Args, Guards, Parsed},
    attach, capture, discover, doctor, link, list,
    listen::{self, Listener, Place},
    memory::{self, Sizes},
    privileges::{self, Account},
    report, serve,
    server::{self, Gate, Tls, Token},
    stderr::Stderr,
};

/// Why the program ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line makes no sense.
    #[error(transparent)]
    Usage(#[from] args::UsageError),
    /// Nothing listens where clients are to connect.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// The token's file is of no use.
    #[error(transparent)]
    Token(#[from] server::TokenError),
    /// Clients can't be served over TLS.
    #[error(transparent)]
    Tls(#[from] server::TlsError),
    /// Other devices could connect.
    #[error("{0} can be reached from other devices; give --token-file, or use ws://127.0.0.1:28257/")]
    NeedsToken(Place),
    /// The user to become is not known.
    #[error("{0}")]
    Account(String),
    /// The memory that is allowed can't be shared out.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// What to capture makes no sense here.
    #[error(transparent)]
    Filters(#[from] capture::filters::Error),
    /// No library can be probed.
    #[error(transparent)]
    Discover(#[from] discover::Error),
    /// The kernel won't have it.
    #[error(transparent)]
    Capture(#[from] capture::Error),
    /// The halves can't speak to each other.
    #[error("the two halves of plaintapd lost each other")]
    Link(#[from] link::Error),
    /// The serving half ended by itself.
    #[error("the serving half of plaintapd ended unexpectedly: {0}")]
    HalfGone(String),
    /// The doctor's report can't be kept.
    #[error("can't write {path:?}, which must be a new file")]
    Report {
        /// Where it was to go.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed that should not.
    #[error("can't {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The exit code that scripts can tell it by.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Tls(_) => 2,
            Self::Memory(_)
            | Self::Usage(_)
            | Self::Filters(_)
            | Self::Token(_)
            | Self::NeedsToken(_)
            | Self::Account(_) => 2,
            Self::Capture(capture::Error::NotPermitted { .. } | capture::Error::Memlock { .. }) => 3,
            // It may be there the next time.
            Self::Capture(capture::Error::Short { .. }) => 1,
            Self::Capture(_) => 4,
            Self::Listen(listen::Error::InUse(_)) => 5,
            Self::Discover(_) => 6,
            Self::Listen(listen::Error::System { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                3
            }
            Self::Listen(_)
            | Self::Link(_)
            | Self::HalfGone(_)
            | Self::Report { .. }
            | Self::System { .. } => 1,
        }
    }

    /// For `map_err`: a failed system call, and what it was for.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// The program.
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            if let Ok(stderr) = Stderr::open() {
                stderr.last_words(&format!("plaintapd: {}", chain(&error)));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// An error and its causes, in one line of bounded length.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some libraries repeat their source in their own message.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    abridged(&text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// An error and its causes as they are, each from a line of its own on: a verifier's log with all that it says, up to 256 KiB.
pub fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    shortened(&causes.map(ToString::to_string).collect::<Vec<_>>().join("\n"), 64 << 10, 192 << 10)
}

/// The start and the end of a long text: a verifier's log says at its end what is wrong.
fn abridged(text: &str) -> String {
    shortened(text, 240, 480)
}

fn shortened(text: &str, start: usize, end: usize) -> String {
    let chars = text.chars().count();
    if chars <= start + end {
        return text.to_owned();
    }
    let head = text.chars().take(start);
    head.chain(" … ".chars()).chain(text.chars().skip(chars - end)).collect()
}

fn run() -> Result<u8, Error> {
    let args = match args::parse(arguments())? {
        Parsed::Run(args) => args,
        Parsed::Print(text) => return print(&text),
        Parsed::List(args) => return print(&list::list(&args)),
        Parsed::Doctor(args) => {
            // Before it takes its time.
            let file = args.report.as_deref().map(report::create).transpose();
            let kept = |source| Error::Report { path: args.report.clone().unwrap_or_default(), source };
            let file = file.map_err(kept)?;
            let examined = doctor::examine(&args);
            print(&doctor::report(&examined.findings))?;
            if let Some(file) = file {
                report::write(file, &examined).map_err(kept)?;
            }
            return Ok(doctor::exit_code(&examined.findings));
        }
    };
    let sizes = Sizes::of(&args)?;
    let account = Account::find(args.user.as_deref()).map_err(Error::Account)?;
    let (listeners, (token, tls)) = listeners(&args)?;
    privileges::use_small_pages();
    privileges::hide().map_err(Error::system("keep others out of the memory"))?;
    // Both halves: the attaching one waits for these signals, and tells the serving one.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).map_err(Error::system("block signals"))?;
    allow_open_files();
    let (ours, theirs) = link::Link::pair()?;
    // SAFETY: no thread was started yet.
    #[expect(unsafe_code, reason = "fork")]
    match unsafe { fork() }.map_err(Error::system("start the serving half"))? {
        ForkResult::Child => {
            drop(ours);
            let gate = Gate::new(&args.allow_uid, token);
            serve::run(theirs, listeners, &args, sizes, gate, tls, account)?;
        }
        ForkResult::Parent { child } => {
            let bound = listeners.iter().filter(|listener| !listener.handed_over);
            let places: Vec<_> = bound.map(|listener| listener.place.clone()).collect();
            drop((theirs, listeners));
            let ended = attach::run(ours, &args, sizes, &signals, child);
            // The other half may not.
            places.iter().for_each(listen::remove);
            ended?;
        }
    }
    Ok(0)
}

/// Each client takes a file descriptor, each probe two, and a target has some 17 probes.
fn allow_open_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // What was allowed before is enough for a few of them.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Prints what was asked for; who closes the pipe has seen enough.
fn print(text: &str) -> Result<u8, Error> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::system("write to standard output")(error))
        }
        _ => Ok(0),
    }
}

/// What stands on the command line after the program's name.
pub fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned())
}

/// Listens where clients are to connect: where the command line and the service manager say. What keeps strangers out comes
/// along.
fn listeners(args: &Args) -> Result<(Vec<Listener>, Secrets), Error> {
    let mut listeners = listen::handed_over()?;
    let default = if listeners.is_empty() { vec![Place::default()] } else { Vec::new() };
    let places = if args.ecaptureq.is_empty() { &default } else { &args.ecaptureq };
    let all: Vec<&Place> = listeners.iter().map(|listener| &listener.place).chain(places).collect();
    let secrets = guarded(&all, args.guards())?;
    for place in places {
        listeners.push(listen::listen_at(place)?);
    }
    Ok((listeners, secrets))
}

/// What was read of the files that keep strangers out.
type Secrets = (Option<Token>, Option<Tls>);

/// Reads what is to keep strangers out of `places`; an error where that is not enough for one of them.
pub fn guarded(places: &[&Place], guards: Guards<'_>) -> Result<Secrets, Error> {
    let token = guards.token.map(Token::read).transpose()?;
    let has_tls = places.iter().any(|place| matches!(place, Place::Tls(_)));
    let tls = match has_tls {
        true => Some(Tls::load(guards.tls)?),
        false => guards.tls.unused().map(|()| None)?,
    };
    match places.iter().find(|place| !place.is_local() && token.is_none()) {
        Some(place) => Err(Error::NeedsToken((*place).clone())),
        None => Ok((token, tls)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::server::tls;

    #[test]
    fn an_error_is_one_line_with_its_causes_and_no_more_than_that() {
        let source = io::Error::other("a\n  verifier's log\n".repeat(1000));
        let text = chain(&Error::System { what: "do it", source });
        assert!(text.starts_with("can't do it: a verifier's log a"), "{text}");
        assert!(
            text.ends_with("verifier's log") && text.chars().count() < 800 && !text.contains('\n'),
            "{text}"
        );
    }

    #[test]
    fn files_for_tls_without_a_place_for_it_are_refused_with_2() {
        let file = Path::new("/no/such.pem");
        let none = tls::Files { certificate: None, key: None, client_ca: None };
        for (flag, tls) in [
            ("--tls-cert", tls::Files { certificate: Some(file), ..none }),
            ("--tls-key", tls::Files { key: Some(file), ..none }),
            ("--tls-client-ca", tls::Files { client_ca: Some(file), ..none }),
        ] {
            let error = guarded(&[&Place::default()], Guards { token: None, tls }).unwrap_err();
            let why = if cfg!(feature = "tls") { "wss://" } else { "--features tls" };
            assert!(error.to_string().contains(flag) && error.to_string().contains(why), "{error}");
            assert_eq!(error.exit_code(), 2);
            let wss = "wss://127.0.0.1:1/".parse().unwrap();
            assert!(guarded(&[&wss], Guards { token: None, tls }).is_err());
        }
        assert!(guarded(&[&Place::default()], Guards { token: None, tls: none }).is_ok());
    }

    #[test]
    fn a_report_has_an_errors_causes_as_they_are() {
        let log = "  3: (85) call unknown\n".repeat(1000);
        let error = Error::System { what: "load it", source: io::Error::other(log.clone()) };
        assert_eq!(causes(&error), format!("can't load it\n{log}"));
        let endless = Error::System { what: "load it", source: io::Error::other("x".repeat(1 << 20)) };
        assert_eq!(causes(&endless).chars().count(), (256 << 10) + 3);
    }
}

//! Sends the streams of many devices into NATS JetStream, and keeps nothing itself: where each goes on is read back from
//! the stream.
//!
//! Which sources there are is said from outside, anew whenever that changes; `fleet` has a thread and a task for each. `track`
//! knows what was sent and what is missing, `device` has it stored, `metrics` tells who asks how that goes.
//!
//! `read` is the way back: a device's messages out of the stream, for whoever shows or records them.
#![forbid(unsafe_code)]

pub mod connect;
pub mod device;
mod fleet;
pub mod metrics;
pub mod permission;
pub mod read;
pub mod subject;
pub mod track;
pub mod wanted;

use std::{
    borrow::Cow,
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    Event,
    jetstream::{
        context::CreateStreamErrorKind,
        stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream},
    },
};
use bytes::Bytes;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc;

use connect::{Connected, Server};
use device::chain;
use fleet::Fleet;
use metrics::Metrics;
use permission::{Failed, Refused};

/// A message sent twice within this time is stored once. NATS's own default.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// What comes next of a source.
#[derive(Debug)]
pub enum Incoming {
    /// A message, as its bytes.
    Message(Bytes),
    /// There is a connection.
    Connected,
    /// There is none, for this reason; it is tried again.
    Down(String),
    /// Nothing for now.
    Nothing,
}

/// Where a device's stream comes from. Its calls block.
pub trait Source: Send + 'static {
    /// Has the next connection go on behind this message: its number and its run.
    fn resume_after(&mut self, seq: u64, run: &str);
    /// What comes next; it returns now and then when there is nothing.
    fn receive(&mut self) -> Incoming;
}

/// A source, and what it is called.
pub struct Named {
    /// The device.
    pub name: String,
    /// Another name of it that the stream may know.
    pub other: Option<Other>,
    /// Where it is, secrets in it too: a source that has another place than before under its name is another one.
    pub place: String,
    /// Nothing is left out on purpose: each hole in its numbers is a loss.
    pub whole: bool,
    /// Begins it from all that the device still has.
    pub open: Arc<dyn Fn() -> Box<dyn Source> + Send + Sync>,
}

impl Named {
    /// What it was called before.
    fn before(&self) -> Option<&str> {
        match &self.other {
            Some(Other::Before(name)) => Some(name),
            _ => None,
        }
    }
}

/// A device's other name, from before it had to be told from another, or from since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Other {
    /// It was called so: while the stream knows it by no other name, it goes on behind what is stored there.
    Before(String),
    /// It is called so again, if the stream knows it by that.
    Again(String),
}

/// Says which sources there are: all of them, each time.
pub type Wanted = mpsc::UnboundedSender<Vec<Named>>;
/// What was said so.
pub type Sources = mpsc::UnboundedReceiver<Vec<Named>>;

/// A way to say which sources there are.
pub fn sources() -> (Wanted, Sources) {
    mpsc::unbounded_channel()
}

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub server: Server,
    /// The stream's name.
    pub stream: String,
    /// What a stream that is created keeps at most, in bytes.
    pub max_bytes: i64,
    /// And for how long.
    pub max_age: Duration,
}

/// Why nothing can be relayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime can't be had.
    #[error("can't start")]
    Start(#[source] io::Error),
    /// The server.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The server lets this user not make or look at the stream.
    #[error("can't use the stream {name}")]
    Refused {
        /// Its name.
        name: String,
        /// What is not permitted.
        source: Refused,
    },
    /// The server has no JetStream, or this user may not use it.
    #[error("{0} has no JetStream, or not for this user; start it with jetstream enabled (nats-server -js)")]
    NoJetStream(String),
    /// The stream can't be made.
    #[error("can't create the stream {name}: {why}")]
    Create {
        /// Its name.
        name: String,
        /// What the server said.
        why: String,
    },
    /// The stream is another one than is needed.
    #[error(
        "the stream {name} {why}; it is left alone: change it with `nats stream edit`, or name another with --stream"
    )]
    Unfit {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody can ask there how it goes.
    #[error("can't listen on {0} for --metrics")]
    Metrics(SocketAddr, #[source] io::Error),
}

/// A line for the person: when it is (UTC), and what happens, in `key=value`. What a device or a server says may be part of it, so
/// nothing in it reaches the terminal raw.
pub fn note(text: &str) {
    let text = printable(text);
    // A note that nobody can read is no reason to stop, as when stderr is a pipe that was closed.
    let now = OffsetDateTime::now_utc().truncate_to_second();
    let now = now.format(&Rfc3339).unwrap_or_default();
    let _ = writeln!(io::stderr(), "{now} plaintap relay: {text}");
}

/// A value for `key=value`, in quotes where it could be taken for something else.
pub fn value(text: &str) -> Cow<'_, str> {
    let is_plain =
        |char: char| !char.is_whitespace() && !char.is_control() && !matches!(char, '"' | '=' | '\\');
    if !text.is_empty() && text.chars().all(is_plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("{text:?}"))
    }
}

/// Characters that a terminal would obey, or that can't be seen, as `\u{1b}`.
fn printable(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' | '\\' => all.push(char),
            _ => all.extend(char.escape_debug()),
        }
    }
    all
}

/// Relays all of `sources` until SIGINT or SIGTERM; `hangup` is called on SIGHUP. What is not acknowledged then is sent again by
/// the next relay.
pub fn run(
    target: &Target,
    metrics_at: Option<SocketAddr>,
    mut sources: Sources,
    hangup: impl Fn(),
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new().map_err(Error::Start)?;
        let last = Mutex::new(String::new());
        // An outage is told once, and not at each attempt to end it.
        let told = move |event: Event| {
            // That is our own end, which has a line of its own; a server that is gone is tried for ever.
            if event == Event::Closed {
                return;
            }
            let news = event.to_string();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if *last != news {
                note(&format!("server news={news:?}"));
                *last = news;
            }
        };
        let mut begin = pin!(async {
            let connected = target.server.connect("plaintap relay", told).await?;
            let stream = stream(&connected, target).await?;
            Ok::<_, Error>((connected, stream))
        });
        let (Connected { context, refusals, shown }, stream) = loop {
            tokio::select! {
                begun = &mut begin => break begun?,
                // For the end nobody has to wait for a server.
                signal = signals.next() => match signal {
                    Signal::End(signal) => return ends(signal),
                    Signal::Hangup => hangup(),
                },
            }
        };
        note(&format!("connected to={shown} stream={}", value(&target.stream)));
        let metrics = Arc::new(Metrics::new(context.client()));
        if let Some(place) = metrics_at {
            metrics::serve(place, metrics.clone()).await.map_err(|error| Error::Metrics(place, error))?;
        }
        let mut fleet = Fleet::new(context, refusals, stream, metrics);
        loop {
            tokio::select! {
                Some(wanted) = sources.recv() => fleet.set(wanted),
                signal = signals.next() => match signal {
                    Signal::End(signal) => return ends(signal),
                    Signal::Hangup => hangup(),
                },
            }
        }
    });
    // Sources' threads wait for the network, and have nothing to finish.
    runtime.shutdown_background();
    ended
}

/// It was asked to: that is no failure.
fn ends(signal: &str) -> Result<(), Error> {
    note(&format!("ends signal={signal}"));
    Ok(())
}

/// What a signal asks for.
enum Signal {
    /// By this name.
    End(&'static str),
    Hangup,
}

/// The signals that mean something to a relay.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::End("SIGINT"),
            _ = self.terminate.recv() => Signal::End("SIGTERM"),
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }
}

/// Ctrl-C, where there is no more.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Signal {
        // Without a way to wait for it the process ends by it all the same.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::End("Ctrl-C")
    }
}

/// The stream, made if it is not there, and checked if it is: never changed.
async fn stream(connected: &Connected, target: &Target) -> Result<Stream, Error> {
    let Connected { context, refusals, shown } = connected;
    let refused = |source| Error::Refused { name: target.stream.clone(), source };
    let unfit = |why| Error::Unfit { name: target.stream.clone(), why };
    let name = &target.stream;
    // Nobody else uses the connection yet.
    let stream = match refusals.or(|_| true, context.get_stream(name)).await {
        Ok(stream) => stream,
        Err(Failed::Refused(why)) => return Err(refused(why)),
        Err(Failed::Other(_)) => {
            let config = Config {
                name: name.clone(),
                description: Some("Plaintext of TLS connections, by plaintap relay: secret".to_owned()),
                subjects: vec![format!("{}.>", subject::ROOT)],
                retention: RetentionPolicy::Limits,
                storage: StorageType::File,
                discard: DiscardPolicy::Old,
                max_bytes: target.max_bytes,
                max_age: target.max_age,
                duplicate_window: DUPLICATE_WINDOW.min(target.max_age),
                ..Config::default()
            };
            refusals.or(|_| true, context.create_stream(config)).await.map_err(|error| match error {
                Failed::Refused(why) => refused(why),
                Failed::Other(error) => match error.kind() {
                    CreateStreamErrorKind::JetStreamUnavailable | CreateStreamErrorKind::TimedOut => {
                        Error::NoJetStream(shown.clone())
                    }
                    _ => Error::Create { name: name.clone(), why: chain(&error) },
                },
            })?
        }
    };
    let config = &stream.cached_info().config;
    let all = format!("{}.>", subject::ROOT);
    if !config.subjects.iter().any(|subject| *subject == all || subject == ">") {
        return Err(unfit("does not take the subjects plaintap.>"));
    }
    if config.retention != RetentionPolicy::Limits {
        return Err(unfit(
            "does not keep messages by limits, so that readers would take them from each other",
        ));
    }
    if config.no_ack {
        return Err(unfit("acknowledges nothing"));
    }
    let risks = risks(config);
    if !risks.is_empty() {
        note(&format!("finds risks stream={} {}", value(name), risks.join(" ")));
    }
    Ok(stream)
}

/// What its owner may have wanted of a stream, and a relay's own is not.
fn risks(config: &Config) -> Vec<&'static str> {
    let all = [
        (config.storage == StorageType::Memory, "storage=memory"),
        (config.max_age.is_zero(), "max_age=none"),
        (config.max_bytes <= 0, "max_bytes=none"),
        (config.discard == DiscardPolicy::New, "discard=new"),
    ];
    all.into_iter().filter_map(|(is, risk)| is.then_some(risk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_risky_about_a_stream_is_named() {
        let safe = Config { max_age: Duration::from_secs(60), max_bytes: 1 << 20, ..Config::default() };
        assert!(risks(&safe).is_empty());
        let risky = Config {
            max_bytes: -1,
            storage: StorageType::Memory,
            discard: DiscardPolicy::New,
            ..Config::default()
        };
        assert_eq!(risks(&risky), ["storage=memory", "max_age=none", "max_bytes=none", "discard=new"]);
    }

    #[test]
    fn a_value_is_told_from_what_follows_it() {
        for plain in ["dev-1", "127.0.0.1:28257", "/run/p.sock", "0123@usb:1-1", "Gerät"] {
            assert_eq!(value(plain), plain);
        }
        for (text, quoted) in
            [("a b", r#""a b""#), ("a=b", r#""a=b""#), ("\"", r#""\"""#), ("", r#""""#), ("a\n", r#""a\n""#)]
        {
            assert_eq!(value(text), quoted);
        }
    }

    #[test]
    fn nothing_in_a_note_is_obeyed_by_a_terminal() {
        assert_eq!(printable("a \"b\" é \x1b[2J\r\n\u{202e}"), "a \"b\" é \\u{1b}[2J\\r\\n\\u{202e}");
    }
}

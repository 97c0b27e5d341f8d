//! The eCaptureQ server: accepts clients, admits them, and runs a session for each. One thread, one executor.
//!
//! Owns the stream and all that sessions share.

mod gate;
mod handshake;
mod listeners;
#[cfg(feature = "page")]
mod page;
mod peer;
mod places;
mod progress;
mod query;
mod session;
pub mod tls;

use std::{
    cell::{Cell, RefCell},
    io,
    net::TcpStream,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use async_tungstenite::WebSocketStream;
use event_listener::{Event, EventListener};
pub use gate::{Gate, Token, TokenError, is_android};
use handshake::Refusal;
use peer::Peer;
use places::Places;
use smol::{Async, Timer, future};
pub use tls::{Tls, TlsError};
use tungstenite::protocol::{Role, WebSocketConfig};

use crate::{
    args::{Args, SlowClient},
    capture::counters::{Counters, Losses},
    log::Limiter,
    stream::Stream,
};

/// Incoming messages are read and dropped; none needs to be larger.
const MAX_INCOMING: usize = 64 << 10;
/// Log lines that clients may cause at once, and a second.
const NOTES: u32 = 64;
const NOTES_PER_SECOND: u32 = 8;
/// How long a client may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why all clients are taken leave of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The program ends, as it was asked to.
    Ending,
    /// The half that captures is gone, and did not say that it would be.
    HalfGone,
}

/// The server's state.
pub struct Server {
    /// What clients are sent.
    pub stream: RefCell<Stream>,
    counters: Counters,
    changed: Event,
    /// Somebody came or left.
    crowd: Event,
    leaving: Cell<Option<Leave>>,
    clients: Cell<u32>,
    /// Connections that have not finished their handshake.
    handshakes: Places,
    /// Connections that are refused.
    refusals: Places,
    slow_client: SlowClient,
    gate: RefCell<Gate>,
    tls: Option<Tls>,
    max_clients: u32,
    limiter: RefCell<Limiter>,
}

/// One of something that is limited, for as long as it lives.
struct Place<'a>(&'a Cell<u32>);

impl<'a> Place<'a> {
    fn take(count: &'a Cell<u32>, most: u32) -> Option<Self> {
        (count.get() < most).then(|| {
            count.set(count.get() + 1);
            Self(count)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Server {
    /// A server for `stream` that tells of the losses in `counters`, to those whom `gate` lets in.
    pub fn new(stream: Stream, counters: Counters, gate: Gate, tls: Option<Tls>, args: &Args) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(stream),
            counters,
            changed: Event::new(),
            crowd: Event::new(),
            leaving: Cell::new(None),
            clients: Cell::new(0),
            handshakes: Places::default(),
            refusals: Places::default(),
            slow_client: args.slow_client,
            gate: RefCell::new(gate),
            tls,
            max_clients: args.max_clients.0,
            limiter: RefCell::new(Limiter::new(NOTES, NOTES_PER_SECOND, Instant::now())),
        })
    }

    /// Wakes the sessions, after something was added to the stream.
    pub fn wake(&self) {
        self.changed.notify(usize::MAX);
    }

    /// What was lost before the journal.
    pub fn losses(&self) -> Losses {
        self.counters.losses()
    }

    /// Takes leave of all clients, bounded in time, and tells them why.
    pub async fn stop(&self, why: Leave) {
        self.leaving.set(Some(why));
        let all_gone = async {
            while self.clients.get() > 0 {
                let listener = self.changed();
                self.wake();
                listener.await;
                future::yield_now().await;
            }
        };
        let late = async {
            Timer::after(FAREWELL * 3).await;
        };
        future::or(all_gone, late).await;
    }

    /// Waits until somebody is connected, or until nobody is.
    pub async fn has_clients(&self, wanted: bool) {
        loop {
            let listener = self.crowd.listen();
            if (self.clients.get() > 0) == wanted {
                return;
            }
            listener.await;
        }
    }

    fn changed(&self) -> EventListener {
        self.changed.listen()
    }

    /// Logs what a client caused, unless clients cause too much.
    fn note(&self, text: impl FnOnce() -> String) {
        match self.limiter.borrow_mut().pass(Instant::now()) {
            Some(0) => log::info!("{}", text()),
            Some(suppressed) => log::info!("{} suppressed_lines={suppressed}", text()),
            None => {}
        }
    }

    /// Tells a client why it does not come in, and waits for it only if there is a place for that.
    async fn refuse(&self, mut socket: Async<TcpStream>, peer: &Peer, refusal: &Refusal) {
        self.note(|| format!("refused client peer={peer}: {refusal}"));
        if handshake::tell(&mut socket, refusal)
            && let Some(_place) = self.refusals.take(peer)
        {
            handshake::hear_out(&mut socket).await;
        }
    }

    /// A connection whose client speaks TLS.
    async fn encrypted(&self, tls: &Tls, socket: Async<TcpStream>, peer: Peer) {
        // Whoever is to be refused must not be in the way of others until it can be told so.
        let is_refused = self.gate.borrow().excludes(&peer).is_some();
        let places = if is_refused { &self.refusals } else { &self.handshakes };
        let Some(handshake) = places.take(&peer) else {
            self.note(|| format!("refused client peer={peer}: {}", handshake::CROWDED));
            return;
        };
        let accepted = within(handshake::DEADLINE, tls.accept(socket)).await.and_then(|decrypted| {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            let [ours, theirs] = [ours, theirs].map(|socket| TcpStream::from(OwnedFd::from(socket)));
            Ok((decrypted, Async::new(ours)?, Async::new(theirs)?))
        });
        drop(handshake);
        match accepted {
            Ok((decrypted, ours, theirs)) => {
                let over = Event::new();
                let late = over.listen();
                let serve = async {
                    self.connection(ours, peer).await;
                    over.notify(1);
                };
                // Its last words are still on their way, which may lead nowhere.
                let late = async {
                    late.await;
                    Timer::after(handshake::DEADLINE).await;
                };
                future::zip(serve, future::or(decrypted.pump(theirs), late)).await;
            }
            Err(error) => self.note(|| format!("refused client peer={peer}: no TLS: {error}")),
        }
    }

    async fn connection(&self, mut socket: Async<TcpStream>, peer: Peer) {
        let lack = self.gate.borrow().excludes(&peer);
        if let Some(lack) = lack {
            return self.refuse(socket, &peer, &lack.into()).await;
        }
        let Some(handshake) = self.handshakes.take(&peer) else {
            return self.refuse(socket, &peer, &handshake::CROWDED).await;
        };
        let run_id = self.stream.borrow().run_id().to_owned();
        let full = || self.clients.get() >= self.max_clients;
        let (query, rest) = match handshake::admit(&mut socket, &run_id, &peer, &self.gate, full).await {
            Ok(admitted) => admitted,
            #[cfg(feature = "page")]
            Err(handshake::Error::Page) => return,
            Err(handshake::Error::Refused(refusal)) => {
                drop(handshake);
                return self.refuse(socket, &peer, &refusal).await;
            }
            Err(error) => {
                self.note(|| format!("refused client peer={peer}: {}", crate::run::chain(&error)));
                return;
            }
        };
        drop(handshake);
        let Some(place) = Place::take(&self.clients, self.max_clients) else { return };
        self.crowd.notify(usize::MAX);
        self.note(|| format!("client connected peer={peer} clients={}", self.clients.get()));
        progress::prepare(&socket);
        let written = Cell::new(0);
        let counted = progress::Counted::new(&socket, &written);
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(32 << 10)
            .max_write_buffer_size(256 << 10)
            .max_message_size(Some(MAX_INCOMING))
            .max_frame_size(Some(MAX_INCOMING));
        let client = WebSocketStream::from_partially_read(counted, rest, Role::Server, Some(config)).await;
        let end = session::run(self, &query, client, counted.stuck(progress::PATIENCE)).await;
        if matches!(end, session::End::Stuck) {
            progress::reset(socket);
        }
        drop(place);
        self.crowd.notify(usize::MAX);
        self.note(|| format!("client gone peer={peer} clients={}: {end}", self.clients.get()));
        self.wake();
    }
}

/// `work`, or an error when it takes longer than `limit`.
async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(limit).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(work, late).await
}

/// What reads bytes from outside, for the fuzzer.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    handshake::fuzz(data);
    peer::fuzz(data);
    if let Ok(target) = str::from_utf8(data) {
        let _ = (query::Query::parse(target), query::token(target));
    }
}

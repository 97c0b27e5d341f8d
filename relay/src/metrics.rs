//! How it goes, for who asks: metrics of each device in Prometheus's text form, and whether all is well.
//!
//! Names of devices are labels, nothing of what they say is. Numbers are set where a thing happens, and read only when they are
//! asked for.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{Client, connection::State};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{note, track::Outgoing};

/// From a round trip on one computer to a server that hardly answers, in seconds.
const LATENCIES: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Who asks has so long to say what, and then to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who asks at a time.
const MOST: usize = 16;
/// Between two attempts to accept.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    device: String,
}

type Seconds = Gauge<f64, AtomicU64>;
type OfEach<T> = Family<Label, T>;
type Latencies = Family<Label, Histogram, fn() -> Histogram>;

/// All that is told.
pub struct Metrics {
    registry: Registry,
    client: Client,
    connected: OfEach<Gauge>,
    last_seq: OfEach<Gauge<u64, AtomicU64>>,
    queued: OfEach<Gauge>,
    lag: OfEach<Seconds>,
    gaps: OfEach<Counter>,
    missed: OfEach<Counter>,
    messages: OfEach<Counter>,
    bytes: OfEach<Counter>,
    publish: Latencies,
    /// Devices whose next message can't be stored.
    waiting: Arc<AtomicUsize>,
    /// Devices that are left to another relay.
    back: Arc<AtomicUsize>,
}

impl Metrics {
    /// None of any device yet. `client` is asked whether it is connected.
    pub fn new(client: Client) -> Self {
        let latencies: fn() -> Histogram = || Histogram::new(LATENCIES);
        let mut this = Self {
            registry: Registry::with_prefix("plaintap_relay"),
            client,
            connected: OfEach::default(),
            last_seq: OfEach::default(),
            queued: OfEach::default(),
            lag: OfEach::default(),
            gaps: OfEach::default(),
            missed: OfEach::default(),
            messages: OfEach::default(),
            bytes: OfEach::default(),
            publish: Latencies::new_with_constructor(latencies),
            waiting: Arc::default(),
            back: Arc::default(),
        };
        let all = &mut this.registry;
        all.register("connected", "Whether the device's stream is there", this.connected.clone());
        all.register("last_seq", "Number of the message stored last", this.last_seq.clone());
        all.register("queued_messages", "Messages read and not yet stored", this.queued.clone());
        let lag = "From an event, by the device's clock, to its being stored: of the last one";
        all.register_with_unit("lag", lag, Unit::Seconds, this.lag.clone());
        all.register("gaps", "Times that messages were missing", this.gaps.clone());
        all.register("missed_messages", "Messages that were missing", this.missed.clone());
        all.register("stored_messages", "Messages stored", this.messages.clone());
        all.register_with_unit("stored", "Bodies of messages stored", Unit::Bytes, this.bytes.clone());
        let publish = "From a message's being sent to its acknowledgement";
        all.register_with_unit("publish", publish, Unit::Seconds, this.publish.clone());
        this
    }

    /// What is told of one device, from now on.
    pub fn device(&self, name: &str) -> Gauges {
        let label = Label { device: name.to_owned() };
        Gauges {
            connected: self.connected.get_or_create_owned(&label),
            last_seq: self.last_seq.get_or_create_owned(&label),
            queued: self.queued.get_or_create_owned(&label),
            lag: self.lag.get_or_create_owned(&label),
            gaps: self.gaps.get_or_create_owned(&label),
            missed: self.missed.get_or_create_owned(&label),
            messages: self.messages.get_or_create_owned(&label),
            bytes: self.bytes.get_or_create_owned(&label),
            publish: self.publish.get_or_create_owned(&label),
            waiting: self.waiting.clone(),
            back: self.back.clone(),
        }
    }

    /// Nothing is told of a device any more.
    pub fn remove(&self, name: &str) {
        let label = Label { device: name.to_owned() };
        self.connected.remove(&label);
        self.last_seq.remove(&label);
        self.queued.remove(&label);
        self.lag.remove(&label);
        self.gaps.remove(&label);
        self.missed.remove(&label);
        self.messages.remove(&label);
        self.bytes.remove(&label);
        self.publish.remove(&label);
    }

    /// All of it, as Prometheus reads it.
    fn text(&self) -> String {
        let mut text = String::new();
        // A String takes all that is written.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// What is not well.
    fn trouble(&self) -> Option<String> {
        if self.client.connection_state() != State::Connected {
            return Some("no connection to the NATS server".to_owned());
        }
        match (self.waiting.load(Ordering::Relaxed), self.back.load(Ordering::Relaxed)) {
            (0, 0) => None,
            (0, back) => Some(format!("devices that are left to another relay: {back}")),
            (waiting, _) => Some(format!("devices of which nothing can be stored: {waiting}")),
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", self.text())
            }
            (&Method::GET | &Method::HEAD, "/health") => match self.trouble() {
                None => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
                Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{trouble}\n")),
            },
            (&Method::GET | &Method::HEAD, _) => {
                (StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /health\n".to_owned())
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// One device's.
#[derive(Clone)]
pub struct Gauges {
    connected: Gauge,
    last_seq: Gauge<u64, AtomicU64>,
    queued: Gauge,
    lag: Seconds,
    gaps: Counter,
    missed: Counter,
    messages: Counter,
    bytes: Counter,
    publish: Histogram,
    waiting: Arc<AtomicUsize>,
    back: Arc<AtomicUsize>,
}

impl Gauges {
    /// Whether its stream is there.
    pub fn connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// Its stream goes on behind this number.
    pub fn begins(&self, seq: u64) {
        self.last_seq.set(seq);
    }

    /// One more of its messages was read, and waits to be stored.
    pub fn queued(&self) {
        self.queued.inc();
    }

    /// One waits no more.
    pub fn unqueued(&self) {
        self.queued.dec();
    }

    /// A message was stored, so long after it was sent.
    pub fn stored(&self, message: &Outgoing, after: Duration) {
        self.publish.observe(after.as_secs_f64());
        self.messages.inc();
        self.bytes.inc_by(message.body.len() as u64);
        if message.seq > 0 && message.gap == 0 {
            self.last_seq.set(message.seq);
        }
        if message.gap > 0 {
            self.gaps.inc();
            // A device may say that any number is missing, and a counter that goes down is read as one that began anew.
            self.missed.inc_by(message.gap.min(u64::MAX - self.missed.get()));
        }
        if let Some(about) = &message.about {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.lag.set(now.as_secs_f64() - about.timestamp as f64 / 1e9);
        }
    }

    /// Its next message can't be stored, for as long as this is there.
    pub fn waiting(&self) -> Waiting {
        Waiting::one_of(&self.waiting)
    }

    /// It is left to another relay, for as long as this is there.
    pub fn back(&self) -> Waiting {
        Waiting::one_of(&self.back)
    }
}

/// A device waits.
pub struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn one_of(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers at `place` from now on; where that is in fact, if its port is 0, is said on stderr.
pub async fn serve(place: SocketAddr, metrics: Arc<Metrics>) -> io::Result<()> {
    let listener = TcpListener::bind(place).await?;
    note(&format!("metrics at=http://{}/metrics", listener.local_addr()?));
    let places = Arc::new(Semaphore::new(MOST));
    tokio::spawn(async move {
        loop {
            // Who comes when all places are taken waits in the kernel's queue.
            let Ok(permit) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    drop(tokio::spawn(converse(TokioIo::new(stream), metrics.clone(), permit)))
                }
                // As when there are no descriptors left.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    Ok(())
}

async fn converse(
    stream: TokioIo<tokio::net::TcpStream>,
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
) {
    let service = service_fn(|request| {
        let answer = metrics.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    // Who goes away before the answer has no use for it, nor who does not read it.
    let _ = tokio::time::timeout(PATIENCE * 2, server.serve_connection(stream, service)).await;
}

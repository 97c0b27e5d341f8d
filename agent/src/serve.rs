//! The serving half: drains the ring, keeps the stream, and talks to clients. One thread, one executor.
//!
//! Owns the mapped ring. It ends when the attaching half says so, or is gone.

use std::{
    cell::{Cell, RefCell},
    io::Read,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, RingBuf};
use event_listener::Event;
use nix::{errno::Errno, unistd::geteuid};
use smol::{Async, LocalExecutor, Timer, channel, future};

use crate::{
    allocator,
    args::Args,
    capture::{
        counters::{Counters, Losses},
        ring::Record,
        tails::{Loss, Tails},
    },
    flow::{Clock, Flow, Outcome},
    link::{self, Link, Message},
    listen::Listener,
    memory::{self, Sizes},
    notify,
    privileges::{self, Account},
    run::Error,
    server::{Gate, Leave, Server, Tls},
    stream::Stream,
};

/// Records drained before other tasks get a turn: at most 4 MiB of payload.
const SLICE: usize = 256;
/// Lines of our own log on their way to the stream. More at once are in stderr only.
const LOG_LINES: usize = 256;

/// Runs until the attaching half ends, or asks for the end.
pub fn run(
    link: Link,
    listeners: Vec<Listener>,
    args: &Args,
    sizes: Sizes,
    gate: Gate,
    tls: Option<Tls>,
    account: Account,
) -> Result<(), Error> {
    allocator::clear_freed();
    let mut early = Vec::new();
    let (ring, counters, tails, hooked) = loop {
        match link.receive()? {
            Some(Message::Log(line)) => early.push(line),
            Some(Message::Ready { ring, counters, tails, hooked }) => break (ring, counters, tails, hooked),
            // It has said itself why it can't go on.
            Some(Message::Stop) | None => return Ok(()),
            Some(_) => {}
        }
    };
    let ring = map_ring(ring).map_err(Error::system("map the ring buffer"))?;
    let counters = Counters::new(counters).map_err(Error::system("map the counters"))?;
    let tails = Tails::new(tails).map_err(Error::system("map the tails"))?;
    let mut stream = Stream::new(run_id()?, sizes.journal);
    for line in early {
        stream.log(&line);
    }
    let (lines, new_lines) = channel::bounded(LOG_LINES);
    crate::log::start(
        args.log_level.0,
        Box::new(move |line| {
            let _ = lines.try_send(line.to_owned());
        }),
    );
    // What is to be mapped is mapped; before 5.12 that took a capability.
    privileges::drop_all(account).map_err(Error::system("give up privileges"))?;
    if geteuid().is_root() {
        log::warn!(
            "clients are served by root, as --user {} says: without a capability, but with all that root's files allow",
            args.user.as_deref().unwrap_or_default()
        );
    }
    let server = Server::new(stream, counters, gate, tls, args);
    let executor = Rc::new(LocalExecutor::new());
    let main = async {
        executor.spawn(keep_log(Rc::clone(&server), new_lines)).detach();
        let flow = RefCell::new(Flow::new(!hooked, sizes.table_entries));
        let forget = Forget::default();
        let mut drain = Drain {
            ready: readable(&ring).map_err(Error::system("watch the ring buffer"))?,
            ring,
            nap: nap(sizes.ring),
            tails,
            link: &link,
            flow: &flow,
            forget: &forget,
            // Where nothing watches sockets, there is no use in watching what engines write.
            told_no_address: !hooked,
            hooked,
            server: &server,
            clock: Clock::now(),
            told: Losses::default(),
            unsettled: false,
            next_tell: Instant::now(),
        };
        for listener in listeners {
            server.listen(&executor, listener).map_err(Error::system("listen"))?;
        }
        let demand = async {
            match args.on_demand {
                true => demand(&link, &server, args.linger()).await,
                false => future::pending().await,
            }
        };
        let alive = async {
            let Some(pause) = notify::watchdog() else { return future::pending().await };
            loop {
                link.alive();
                Timer::after(pause).await;
            }
        };
        let follow = future::or(follow(&link, &server, &flow, &forget), alive);
        let leave = future::or(drain.run(), future::or(follow, demand)).await?;
        if matches!(leave, Leave::HalfGone) {
            log::error!("the half of plaintapd that captures ended without a word: nothing more is captured");
            // Clients are to have that line too.
            future::yield_now().await;
        }
        // The probes are gone; this is the last of what they sent.
        while drain.slice() {}
        drain.tell_tails();
        while drain.unsettled {
            drain.tell_tails();
        }
        server.wake();
        server.stop(leave).await;
        Ok(())
    };
    let ended = smol::block_on(executor.run(main));
    // What accepts clients holds the server and the executor that holds it: neither would ever be dropped.
    server.stream.borrow_mut().forget();
    ended
}

fn map_ring(ring: OwnedFd) -> std::io::Result<RingBuf<MapData>> {
    let data = MapData::from_fd(ring).map_err(std::io::Error::other)?;
    RingBuf::try_from(Map::RingBuf(data)).map_err(std::io::Error::other)
}

/// 16 hexadecimal digits, another value each time.
fn run_id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::system("read /dev/urandom"))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// Puts our own log lines into the stream.
async fn keep_log(server: Rc<Server>, lines: channel::Receiver<String>) {
    while let Ok(line) = lines.recv().await {
        server.stream.borrow_mut().log(&line);
        server.wake();
    }
}

/// Takes in what the attaching half says, until it says stop or is gone; tells which.
async fn follow(link: &Link, server: &Server, flow: &RefCell<Flow>, forget: &Forget) -> Result<Leave, Error> {
    let ready = Async::new_nonblocking(link.as_fd()).map_err(Error::system("watch the other half"))?;
    loop {
        match link.try_receive() {
            Ok(Some(Message::Log(line))) => {
                server.stream.borrow_mut().log(&line);
                server.wake();
            }
            Ok(Some(Message::Process(program, process))) => {
                flow.borrow_mut().processes.answer(program, process);
            }
            Ok(Some(Message::Socket(connection_id, look))) => flow.borrow_mut().answer(connection_id, look),
            Ok(Some(Message::LogLevel(level))) => crate::log::set_level(level),
            Ok(Some(Message::Paused)) => {
                forget.pauses.update(|pauses| pauses + 1);
                forget.told.notify(usize::MAX);
            }
            Ok(Some(Message::Stop)) => return Ok(Leave::Ending),
            Ok(None) => return Ok(Leave::HalfGone),
            // What this half says itself.
            Ok(Some(_)) => {}
            Err(link::Error::System(Errno::EAGAIN)) => {
                ready.readable().await.map_err(Error::system("watch the other half"))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has the other half capture while somebody is connected, and for `linger` after.
async fn demand(link: &Link, server: &Server, linger: Duration) -> Result<Leave, Error> {
    loop {
        server.has_clients(true).await;
        link.wanted(true)?;
        loop {
            server.has_clients(false).await;
            let again = async {
                server.has_clients(true).await;
                false
            };
            let late = async {
                Timer::after(linger).await;
                true
            };
            if future::or(again, late).await {
                break;
            }
        }
        log::info!(
            "nobody was connected for {} s: what was kept is forgotten, and the probes go",
            linger.as_secs()
        );
        link.wanted(false)?;
    }
}

/// What tells when there is something in the ring.
fn readable(ring: &RingBuf<MapData>) -> std::io::Result<Async<OwnedFd>> {
    // epoll alone decides when to read; the descriptor itself is never read from.
    Async::new_nonblocking(ring.as_fd().try_clone_to_owned()?)
}

/// What is remembered of traffic is to be forgotten, once the ring is empty, if there were pauses.
#[derive(Default)]
struct Forget {
    pauses: Cell<u32>,
    told: Event,
}

/// Moves records from the ring to the journal.
struct Drain<'a> {
    ready: Async<OwnedFd>,
    ring: RingBuf<MapData>,
    nap: Duration,
    tails: Tails,
    link: &'a Link,
    flow: &'a RefCell<Flow>,
    forget: &'a Forget,
    /// The other half knows that addresses are missing, or can do nothing about it.
    told_no_address: bool,
    /// What tells of sockets is in place.
    hooked: bool,
    server: &'a Server,
    clock: Clock,
    /// The losses that the log has told of.
    told: Losses,
    /// There may be losses that no event will tell of.
    unsettled: bool,
    next_tell: Instant,
}

/// How long the first record of a burst keeps its place in the ring: what fills an eighth of it at a byte a nanosecond,
/// which no load got past.
fn nap(ring_size: u32) -> Duration {
    Duration::from_nanos(u64::from(ring_size) / 8).min(Duration::from_millis(1))
}

/// Between two lines about losses.
const TELL: Duration = Duration::from_secs(1);

impl Drain<'_> {
    /// Drains the ring whenever there is something in it, for ever.
    async fn run(&mut self) -> Result<Leave, Error> {
        loop {
            self.first().await;
            while self.slice() {
                future::yield_now().await;
            }
            let forget = self.forget.told.listen();
            let pauses = self.forget.pauses.take();
            if pauses > 0 {
                self.flow.borrow_mut().forget();
                // So has the other half.
                self.told_no_address = !self.hooked;
                self.server.stream.borrow_mut().forget();
                memory::give_back();
                self.link.forgotten(pauses)?;
            }
            let wait = async { self.ready.readable().await.map_err(Error::system("watch the ring buffer")) };
            let forget = async {
                forget.await;
                Ok(())
            };
            let wait = future::or(wait, forget);
            if self.server.losses() == self.told && !self.unsettled {
                wait.await?;
            } else {
                // What was lost last must be told even if nothing comes after it.
                let tell = async {
                    Timer::at(self.next_tell).await;
                    Ok(())
                };
                future::or(wait, tell).await?;
            }
        }
    }

    /// Takes one record at once, and others only after a nap. Meanwhile it keeps its place in the ring: the kernel wakes us
    /// for a record only if there is none before it, and the traced thread pays more for that than for all else.
    /// Source: linux 6.12, kernel/bpf/ringbuf.c, bpf_ringbuf_commit.
    async fn first(&mut self) {
        self.clock.follow();
        let Some(item) = self.ring.next() else { return };
        take(&item, &mut self.flow.borrow_mut(), self.clock, self.server);
        drop(item);
        self.taken();
        Timer::after(self.nap).await;
    }

    /// Drains a bounded number of records; says whether there may be more.
    fn slice(&mut self) -> bool {
        self.clock.follow();
        let mut drained = 0;
        while drained < SLICE {
            let Some(item) = self.ring.next() else { break };
            take(&item, &mut self.flow.borrow_mut(), self.clock, self.server);
            drained += 1;
        }
        if drained > 0 {
            self.taken();
        }
        if Instant::now() >= self.next_tell {
            self.tell_losses();
        }
        drained == SLICE
    }

    /// Asks for what the records just taken raised questions about, and has clients sent what came of them.
    fn taken(&mut self) {
        let mut flow = self.flow.borrow_mut();
        for program in flow.processes.questions() {
            self.link.who(program);
        }
        for (program, connection_id) in flow.questions() {
            self.link.whither(program, connection_id);
        }
        if flow.lacks_address && !self.told_no_address {
            self.told_no_address = self.link.no_address();
        }
        self.server.wake();
    }

    /// Says in the log what was lost, if that has changed.
    fn tell_losses(&mut self) {
        let losses = self.server.losses();
        if losses != self.told {
            log::warn!("lost before the journal: lost_events={} lost_bytes={}", losses.events, losses.bytes);
            self.told = losses;
            self.unsettled = true;
            self.next_tell = Instant::now() + TELL;
        } else if self.unsettled {
            self.tell_tails();
            self.next_tell = Instant::now() + TELL;
        }
    }

    /// Says in the log which losses were the last of their connection.
    fn tell_tails(&mut self) {
        let flow = self.flow.borrow();
        let (losses, unsettled) =
            self.tails.look(|connection, written| flow.next_offset(connection, written));
        self.unsettled = unsettled;
        for Loss { connection_id, written, bytes } in losses {
            let way = if written { "written" } else { "read" };
            log::warn!("lost at the end: connection_id={connection_id} direction={way} lost_bytes={bytes}");
        }
    }
}

/// Makes of a record what the stream holds.
fn take(record: &[u8], flow: &mut Flow, clock: Clock, server: &Server) {
    match Record::parse(record).map(|record| flow.take(&record, clock)) {
        Ok(Outcome::Event(event, subject)) => server.stream.borrow_mut().event(*event, subject),
        Ok(Outcome::EarlyDataRejected { connection_id, bytes }) => {
            log::warn!(
                "early data was rejected, and may be sent again: connection_id={connection_id} bytes={bytes}"
            );
        }
        Ok(Outcome::Nothing) => {}
        Err(error) => log::error!("{error}"),
    }
}

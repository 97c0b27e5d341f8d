//! A device's stream as the relay reads it: it goes on when its connection does not, and with `--install` its agent is seen to
//! before each connection.
//!
//! A `Stream` owns the connection, when its agent is seen to next, and what was told of trouble. A device that makes trouble is
//! asked ever more rarely, and has only so many words in the relay's log.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use plaintap_relay::{Incoming, Source, note, value};
use tungstenite::Message;

use super::AWAY;
use crate::{
    adb::{self, Kept, Pinned},
    address::Address,
    follow::{self, Follow, jittered},
    note::chain,
    text::abridged,
};

/// Between two attempts to have an agent on a device that is there: each may ask a person for root.
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// A connection that ends sooner was of no use, as where an agent lets everybody in and hangs up.
const BRIEF: Duration = Duration::from_secs(2);
/// Before the next attempt after one such, and after many: each has two lines in the log.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Of a device, so many reasons are told within this time.
const MOST_REASONS: usize = 5;
const REASONS_TIME: Duration = Duration::from_secs(600);
/// How many characters of each: an agent may refuse in a thousand.
const LONGEST_REASON: usize = 500;

/// A stream that goes on when its connection does not.
pub struct Stream {
    follow: Follow,
    keeper: Option<Keeper>,
    /// Since when there is a connection.
    connected: Option<Instant>,
    pause: Pause,
    told: Told,
}

impl Stream {
    /// All that the address's server still has, and what comes.
    pub fn new(address: &Address, keeper: Option<Keeper>) -> Self {
        let follow = Follow::new(address.with_backlog(), true);
        Self { follow, keeper, connected: None, pause: Pause::default(), told: Told::default() }
    }

    /// There is no connection.
    fn down(&mut self, why: &str) -> Incoming {
        let why = abridged(why, LONGEST_REASON);
        if let Some(since) = self.connected.take() {
            let now = Instant::now();
            self.pause.ended(now.duration_since(since), now);
            // The end of one is news whatever its reason: the next one is to go on behind what came.
            self.told.last.clone_from(&why);
        } else if !self.told.is_news(&why, Instant::now()) {
            return Incoming::Nothing;
        }
        Incoming::Down(why)
    }
}

impl Source for Stream {
    fn resume_after(&mut self, seq: u64, run: &str) {
        self.follow.resume_after(Some((seq, run)));
    }

    fn receive(&mut self) -> Incoming {
        let left = self.pause.left(Instant::now());
        if !left.is_zero() {
            // Not for long at a time: the source may not be wanted any more.
            thread::sleep(left.min(AWAY));
            return Incoming::Nothing;
        }
        if let Some(keeper) = &mut self.keeper
            && let Err(why) = keeper.keep()
        {
            return why.map_or(Incoming::Nothing, |why| self.down(&why));
        }
        let why = match self.follow.receive() {
            Ok(follow::Incoming::Message(Message::Binary(bytes))) => return Incoming::Message(bytes),
            Ok(follow::Incoming::Message(_) | follow::Incoming::Idle) => return Incoming::Nothing,
            Ok(follow::Incoming::Connected { .. }) => {
                self.connected = Some(Instant::now());
                self.told.last.clear();
                return Incoming::Connected;
            }
            Ok(follow::Incoming::Down(why, _) | follow::Incoming::StillDown(why)) => why,
            // As where an agent lets nobody in: somebody may change that while the relay runs.
            Err(error) => chain(&error),
        };
        self.keeper.iter_mut().for_each(|keeper| keeper.due = true);
        self.down(&why)
    }
}

/// How long a source is left alone whose connections end as soon as they begin: ever longer, until one lasts.
#[derive(Debug, Default)]
struct Pause {
    /// Zero: the last connection lasted.
    delay: Duration,
    /// When it is over.
    until: Option<Instant>,
}

impl Pause {
    /// A connection has ended that lasted so long.
    fn ended(&mut self, lasted: Duration, now: Instant) {
        self.delay = match lasted < BRIEF {
            true => (self.delay * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
            false => Duration::ZERO,
        };
        self.until = Some(now + jittered(self.delay));
    }

    /// How much of it is left.
    fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

/// Which reasons were told for there being no connection.
#[derive(Debug, Default)]
struct Told {
    /// Empty: there was a connection since.
    last: String,
    /// When, but for the ends of connections.
    at: VecDeque<Instant>,
}

impl Told {
    /// Whether a reason is to be told: it is another one, and not one too many. Who varies it must not fill the log.
    fn is_news(&mut self, why: &str, now: Instant) -> bool {
        self.at.retain(|at| now.duration_since(*at) < REASONS_TIME);
        if why == self.last || self.at.len() >= MOST_REASONS {
            return false;
        }
        self.at.push_back(now);
        why.clone_into(&mut self.last);
        true
    }
}

/// A device whose agent can be seen to.
pub trait Device: Send + Sync {
    /// Sees to it.
    fn keep(&self) -> Result<Kept, adb::Error>;
    /// How adb knows the device, if it can be used: another text once it was unplugged and came back.
    fn plugged(&self) -> Option<String>;
}

/// A device behind adb that is to have a pinned agent.
pub struct Install {
    /// The agent.
    pub pinned: Arc<Pinned>,
    /// The device.
    pub serial: String,
}

impl Device for Install {
    fn keep(&self) -> Result<Kept, adb::Error> {
        self.pinned.keep(&self.serial)
    }

    fn plugged(&self) -> Option<String> {
        self.pinned.plugged(&self.serial)
    }
}

/// Sees to it that the device has its agent, before each connection.
#[derive(Clone)]
pub struct Keeper {
    device: Arc<dyn Device>,
    serial: String,
    /// It has not been looked at since the last connection ended, or did not come about.
    due: bool,
    /// Before the next attempt, if the device is there.
    delay: Duration,
    /// When that is.
    next: Instant,
    /// How adb knew the device when the last one failed.
    plugged: Option<String>,
}

impl Keeper {
    /// Looks before the first connection too.
    pub fn new(device: Arc<dyn Device>, serial: String) -> Self {
        Self { device, serial, due: true, delay: Duration::ZERO, next: Instant::now(), plugged: None }
    }

    /// Looks, if that is due. `Err`: the agent can't be had; with a reason if it was tried now.
    fn keep(&mut self) -> Result<(), Option<String>> {
        if !self.due {
            return Ok(());
        }
        let left = self.next.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            self.wait(left);
            return Err(None);
        }
        match self.device.keep() {
            Ok(kept) => {
                self.due = false;
                self.delay = Duration::ZERO;
                match kept {
                    Kept::AsItWas => {}
                    Kept::Started => note(&format!("started plaintapd serial={}", value(&self.serial))),
                    Kept::Installed => {
                        note(&format!("installed and started plaintapd serial={}", value(&self.serial)))
                    }
                }
                Ok(())
            }
            Err(error) => {
                let wait = if error.is_away() {
                    self.delay = Duration::ZERO;
                    AWAY
                } else {
                    self.delay = (self.delay * 2).clamp(AWAY, LONGEST_DELAY);
                    jittered(self.delay)
                };
                self.next = Instant::now() + wait;
                self.plugged = self.device.plugged();
                Err(Some(chain(&error)))
            }
        }
    }

    /// Waits, but not for long: the source may not be wanted any more. A device that was unplugged has not to wait for what it
    /// did before.
    fn wait(&mut self, left: Duration) {
        thread::sleep(left.min(AWAY));
        if self.device.plugged() != self.plugged {
            self.delay = Duration::ZERO;
            self.next = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
    };

    use super::*;

    /// A device that says no, once it is asked more often than it says yes.
    #[derive(Default)]
    struct Fake {
        yes: usize,
        asked: AtomicUsize,
        plugged: Mutex<String>,
    }

    impl Device for Fake {
        fn keep(&self) -> Result<Kept, adb::Error> {
            if self.asked.fetch_add(1, Ordering::Relaxed) < self.yes {
                return Ok(Kept::AsItWas);
            }
            Err(adb::Error::NoRoot("R5".to_owned(), String::new()))
        }

        fn plugged(&self) -> Option<String> {
            Some(self.plugged.lock().unwrap().clone()).filter(|text| !text.is_empty())
        }
    }

    fn keeper(device: &Arc<Fake>) -> Keeper {
        Keeper::new(device.clone(), "R5".to_owned())
    }

    #[test]
    fn an_agent_is_seen_to_before_each_attempt_whatever_keeps_failing() {
        // No port that was free a moment ago: another test may have it by now.
        let address: Address = "ws://127.0.0.1:1/".parse().unwrap();
        let device = Arc::new(Fake { yes: 3, ..Fake::default() });
        let mut stream = Stream::new(&address, Some(keeper(&device)));
        assert!(matches!(stream.receive(), Incoming::Down(why) if why.contains("no connection")));
        for asked in 2..=3 {
            assert!(matches!(stream.receive(), Incoming::Nothing));
            assert_eq!(device.asked.load(Ordering::Relaxed), asked);
        }
        assert!(matches!(stream.receive(), Incoming::Down(why) if why.contains("no root on R5")));
    }

    #[test]
    fn a_device_that_says_no_is_asked_ever_more_rarely() {
        let mut keeper = keeper(&Arc::default());
        for most in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let before = Instant::now();
            assert!(matches!(keeper.keep(), Err(Some(_))));
            let (next, most) = (keeper.next, Duration::from_secs(most));
            assert!(next >= before + most / 2 && next <= Instant::now() + most, "{most:?}");
            keeper.next = Instant::now();
        }
    }

    #[test]
    fn a_device_that_waits_is_asked_at_once_when_it_was_unplugged() {
        // It may be gone already when it has said no.
        for plugged in ["transport_id:1", ""] {
            let device = Arc::new(Fake { plugged: Mutex::new(plugged.to_owned()), ..Fake::default() });
            let mut keeper = keeper(&device);
            assert!(matches!(keeper.keep(), Err(Some(_))));
            let next = Instant::now() + LONGEST_DELAY;
            (keeper.next, keeper.delay) = (next, LONGEST_DELAY);
            keeper.wait(Duration::ZERO);
            assert_eq!((keeper.next, keeper.delay), (next, LONGEST_DELAY));
            *device.plugged.lock().unwrap() = "transport_id:2".to_owned();
            keeper.wait(Duration::ZERO);
            assert!(keeper.next <= Instant::now() && keeper.delay.is_zero());
        }
    }

    #[test]
    fn a_source_that_hangs_up_at_once_is_left_alone_ever_longer_until_a_connection_lasts() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        assert!(pause.left(now).is_zero());
        for most in [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            pause.ended(Duration::from_millis(10), now);
            let (left, most) = (pause.left(now), Duration::from_millis(most));
            assert!(left >= most / 2 && left <= most, "{left:?} of {most:?}");
            assert!(pause.left(now + most).is_zero());
        }
        pause.ended(BRIEF, now);
        assert!(pause.left(now).is_zero());
        pause.ended(Duration::ZERO, now);
        assert!(pause.left(now) <= FIRST_PAUSE);
    }

    #[test]
    fn an_agent_that_hangs_up_at_once_is_not_connected_to_during_the_pause() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
        // It ends with the tests' process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                drop(tungstenite::accept(stream.unwrap()));
            }
        });
        let mut stream = Stream::new(&address, None);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !matches!(stream.receive(), Incoming::Down(_)) {
            assert!(Instant::now() < deadline);
        }
        assert!(stream.pause.until.is_some());
        stream.pause.until = Some(deadline + LONGEST_PAUSE);
        assert!(matches!(stream.receive(), Incoming::Nothing));
        stream.pause.until = None;
        while !matches!(stream.receive(), Incoming::Connected) {
            assert!(Instant::now() < deadline);
        }
    }

    #[test]
    fn who_varies_a_reason_does_not_fill_the_log() {
        let (mut told, begun) = (Told::default(), Instant::now());
        let mut is_news = |why: &str, seconds| told.is_news(why, begun + Duration::from_secs(seconds));
        assert!(is_news("no", 0) && !is_news("no", 1));
        let told_of = (2..600).filter(|second| is_news(&format!("no {second}"), *second)).count();
        assert_eq!(told_of, MOST_REASONS - 1);
        assert!(is_news("no", 600) && !is_news("no 1", 600));
    }
}

//! `plaintap relay`: the streams of devices into NATS JetStream, by the crate `plaintap-relay`.
//!
//! A thread owns which sources there are (`sources`), and tells the relay whenever that changes: on SIGHUP, and where `adb:*` is
//! one, when a device comes or goes. Each source has a thread of the relay's own, which reads a `stream`.

mod sources;
mod stream;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};
use plaintap_relay::{Named, Other, Target, Wanted, connect, note};

pub use sources::From;
use sources::Sources;
use stream::{Install, Keeper, Stream};

use crate::{
    adb::{Entry, Pinned, Server},
    address::Address,
    commands::{Size, Span},
    note::chain,
};

/// Between two attempts to reach an adb server that is gone, or a device that is away.
const AWAY: Duration = Duration::from_secs(2);

/// Sends the streams of devices into NATS JetStream, until Ctrl-C, and keeps nothing itself.
///
/// Each message goes out as it came, to plaintap.DEVICE.event, plaintap.DEVICE.log or plaintap.DEVICE.heartbeat, once the one
/// before it is stored. Where each device's stream goes on is read back from JetStream, so that a relay may be killed and
/// started elsewhere. What a device no longer has is told by a message with a Plaintap-Gap header.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "relay",
    example = "What the agent on this computer captures, as the device lab-1:
  {command_name} --from lab-1=ws://127.0.0.1:28257/ --to nats://127.0.0.1:4222",
    example = "Two phones, and an agent at a Unix socket:
  {command_name} --from adb:R5CT1 --from adb:R5CT2 --from gw=ws+unix:/run/plaintap.sock --to nats://nats.example:4222",
    example = "Every phone that is plugged in, now or later, with plaintapd put on it and kept running there:
  {command_name} --from 'adb:*' --install --to nats://nats.example:4222 --metrics 127.0.0.1:9464 -- --uid 10000-19999",
    note = "The stream is made if it is not there, with --max-age and --max-bytes; one that is there is checked and never
changed. Its messages are plaintext: passwords, cookies, tokens. Say in NATS who may subscribe."
)]
pub struct RelayArgs {
    /// a device's stream, as ws://HOST:PORT/, ws+unix:/PATH, adb:SERIAL or adb:* (every device), and NAME= before it to call the
    /// device so; repeatable
    #[argh(option, arg_name = "url")]
    pub from: Vec<From>,
    /// more of these, one a line; # begins a comment. It is read again on SIGHUP
    #[argh(option, arg_name = "file")]
    pub sources: Option<PathBuf>,
    /// the NATS server, as nats://HOST:PORT, nats://USER:PASSWORD@HOST:PORT or tls://HOST:PORT; several with commas
    /// (default: the context's)
    #[argh(option, arg_name = "url")]
    pub to: Option<String>,
    /// a context of the nats tool, by its name or its file's path: server, user and certificates, as far as they are
    /// not given here
    #[argh(option, arg_name = "name")]
    pub context: Option<String>,
    /// a user's credentials, as nsc writes them
    #[argh(option, arg_name = "file")]
    pub creds: Option<PathBuf>,
    /// certificates of the authorities that the server's is signed by
    #[argh(option, arg_name = "file")]
    pub tls_ca: Option<PathBuf>,
    /// the stream (default: PLAINTAP)
    #[argh(option, arg_name = "name", default = "\"PLAINTAP\".to_owned()")]
    pub stream: String,
    /// how long a stream that is made keeps messages (default: 7d)
    #[argh(option, arg_name = "time", default = "Span(Duration::from_secs(7 * 24 * 3600))")]
    pub max_age: Span,
    /// how many bytes a stream that is made keeps (default: 10G)
    #[argh(option, arg_name = "size", default = "Size(10_000_000_000)")]
    pub max_bytes: Size,
    /// put plaintapd on the devices behind adb and keep it running there: that program, with the flags behind --
    #[argh(switch)]
    pub install: bool,
    /// with --install, the program (default: plaintapd-aarch64 or plaintapd-x86_64 beside plaintap)
    #[argh(option, arg_name = "file")]
    pub agent: Option<PathBuf>,
    /// tell how it goes there, at /metrics for Prometheus and at /health; port 0 is a free one, named on stderr
    #[argh(option, arg_name = "ip:port")]
    pub metrics: Option<Place>,
    /// with --install, flags for plaintapd, behind --
    #[argh(positional, arg_name = "flags")]
    pub flags: Vec<String>,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub SocketAddr);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is no IP:PORT, as 127.0.0.1:9464"))
    }
}

/// Why nothing is relayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is to be.
    #[error(transparent)]
    Sources(#[from] sources::Error),
    /// The flags belong to nobody.
    #[error("--agent, and flags behind --, are for --install")]
    NoInstall,
    /// The agents would listen where adb does not lead.
    #[error(
        "adb does not lead to where --ecaptureq says: give one ws://127.0.0.1:PORT/ or ws+unix:@NAME too"
    )]
    Place,
    /// It can't begin.
    #[error(transparent)]
    Relay(#[from] plaintap_relay::Error),
}

impl Error {
    /// Whether the command line is what is wrong.
    pub fn is_usage(&self) -> bool {
        use plaintap_relay::{Error as Relay, connect::Error as Connect};
        matches!(
            self,
            Self::NoInstall
                | Self::Place
                | Self::Sources(sources::Error::None | sources::Error::SameName(_))
                | Self::Relay(Relay::Connect(Connect::NoServer | Connect::Url(..)))
        )
    }
}

/// Runs the command.
pub fn run(args: RelayArgs) -> Result<(), Error> {
    let pinned = if args.install {
        Some(Arc::new(Pinned::new(args.agent, args.flags).ok_or(Error::Place)?))
    } else if args.agent.is_some() || !args.flags.is_empty() {
        return Err(Error::NoInstall);
    } else {
        None
    };
    let target = Target {
        server: connect::Server {
            url: args.to,
            credentials: args.creds,
            tls_ca: args.tls_ca,
            context: args.context,
        },
        stream: args.stream,
        max_bytes: i64::try_from(args.max_bytes.0).unwrap_or(i64::MAX),
        max_age: args.max_age.0,
    };
    let chosen = Sources::new(args.from, args.sources)?;
    let (wanted, sources) = plaintap_relay::sources();
    let (news, inbox) = mpsc::channel();
    let hangup = news.clone();
    // It ends with the process.
    thread::spawn(move || choose(chosen, &wanted, pinned.as_ref(), &inbox, &news));
    // That thread takes news for as long as there are sources.
    Ok(plaintap_relay::run(&target, args.metrics.map(|place| place.0), sources, || {
        drop(hangup.send(News::Reread))
    })?)
}

/// What may change which sources there are.
enum News {
    /// The file may say something else.
    Reread,
    /// Adb has these devices.
    Devices(Vec<Entry>),
}

/// Says which sources there are, now and after each piece of news.
fn choose(
    mut chosen: Sources,
    wanted: &Wanted,
    pinned: Option<&Arc<Pinned>>,
    inbox: &mpsc::Receiver<News>,
    news: &mpsc::Sender<News>,
) {
    let mut tracked = false;
    loop {
        if chosen.follow_devices() && !tracked {
            tracked = true;
            let news = news.clone();
            thread::spawn(move || track(&news));
        }
        if wanted.send(named(chosen.all(), pinned)).is_err() {
            return;
        }
        match inbox.recv() {
            Ok(News::Reread) => match chosen.reread() {
                Ok(()) => note("read the sources again"),
                Err(error) => note(&format!("keeps the sources as they were error={:?}", chain(&error))),
            },
            Ok(News::Devices(devices)) => chosen.devices(devices),
            Err(_) => return,
        }
    }
}

/// Tells which devices adb has, whenever that changes.
fn track(news: &mpsc::Sender<News>) {
    let (mut told, mut followed) = (String::new(), false);
    loop {
        let tracked = Server::find().and_then(|server| {
            server.ensure()?;
            // What it tells has no ports in it, and they are asked for.
            server.track(|_| {
                let devices = server.devices()?;
                // Once: a server that comes and goes is told of by what it was lacking.
                if !std::mem::replace(&mut followed, true) {
                    let usable = devices.iter().filter(|device| device.state == "device").count();
                    note(&format!(
                        "follows the devices of adb usable={usable} others={}",
                        devices.len() - usable
                    ));
                }
                // Nobody listens at the process's end.
                let _ = news.send(News::Devices(devices));
                Ok(())
            })
        });
        let Err(error) = tracked;
        let why = chain(&error);
        if why != told {
            note(&format!("can't follow the devices error={why:?}"));
            told = why;
        }
        thread::sleep(AWAY);
    }
}

fn named(all: BTreeMap<String, (Address, Option<Other>)>, pinned: Option<&Arc<Pinned>>) -> Vec<Named> {
    let sources = all.into_iter().map(|(name, (address, other))| {
        let keeper = address.serial().zip(pinned).map(|(serial, pinned)| {
            let install = Install { pinned: pinned.clone(), serial: serial.to_owned() };
            (pinned.address(serial), Keeper::new(Arc::new(install), serial.to_owned()))
        });
        let (address, keeper) = match keeper {
            Some((there, keeper)) => (Address { path: address.path, ..there }, Some(keeper)),
            None => (address, None),
        };
        Named {
            name,
            other,
            place: format!("{address}{}", address.path),
            whole: !address.chooses(),
            open: Arc::new(move || Box::new(Stream::new(&address, keeper.clone()))),
        }
    });
    sources.collect()
}

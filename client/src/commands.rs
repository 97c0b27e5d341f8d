//! The command lines of the subcommands that inspect, record and play.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};

use crate::{address::Address, record::Format, values};

/// Shows every message as its bytes say it: each field by name and number, those that are unknown too, and where and why a
/// message does not decode.
///
/// On exit a line on stderr says how many messages there were of each kind, and how fast they came. Works with every
/// eCaptureQ server.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "inspect",
    example = "What the agent sends, a line a message:
  {command_name} --compact",
    example = "The next three messages of another server, payloads as hex dumps:
  {command_name} ws://127.0.0.1:9000/ --hex --count 3"
)]
#[cfg_attr(
    feature = "relay",
    argh(example = "What a relay stored of a device in NATS:
  {command_name} 'nats://127.0.0.1:4222/?device=lab-1&backlog=all' --compact")
)]
pub struct InspectArgs {
    /// the server, as ws://HOST:PORT/, ws+unix:/PATH, adb:SERIAL or nats://HOST:PORT/?device=NAME (default: ws://127.0.0.1:28257/)
    #[argh(positional, default = "Address::default()", arg_name = "url")]
    pub url: Address,
    /// show a line for each message
    #[argh(switch)]
    pub compact: bool,
    /// show payloads as hex dumps
    #[argh(switch)]
    pub hex: bool,
    /// show at most this many bytes of each payload (default: 1024)
    #[argh(option, arg_name = "bytes", default = "1024", from_str_fn(values::bytes))]
    pub max_payload: usize,
    /// end after this many messages
    #[argh(option, arg_name = "number", from_str_fn(values::from_one))]
    pub count: Option<NonZeroU64>,
    /// end when the connection ends; exit code 0 if the server closed it in good order
    #[argh(switch)]
    pub no_reconnect: bool,
    /// no colour, even if stdout is a terminal
    #[argh(switch)]
    pub no_color: bool,
}

/// Keeps the stream in a file that only you may read (mode 0600), until Ctrl-C.
///
/// The file's ending says what it is: .pb (every message as it came, for plaintap replay), .jsonl (a JSON object a line, as
/// plaintap watch --json prints it), .pcapng (TCP connections that carry the plaintext, for Wireshark) or .har (HTTP, for
/// browsers' developer tools).
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(
    subcommand,
    name = "record",
    example = "Keep everything, to be played again:
  {command_name} -o session.pb",
    example = "A new file every hour or 100 MB, of which the last 24 are kept: session-0001.jsonl and so on:
  {command_name} -o session.jsonl --rotate-time 1h --rotate-size 100M --keep 24",
    example = "Into Wireshark as it comes; there, Analyze > Decode As makes port 443 HTTP:
  {command_name} -o - | wireshark -k -i -",
    note = "A file that is there already is never written over without --force. What was recorded stays readable however
the recording ends. Its messages are plaintext: passwords, cookies, tokens."
)]
#[cfg_attr(
    feature = "relay",
    argh(example = "The last 1000 events that a relay stored of a device in NATS, and what follows:
  {command_name} 'nats://127.0.0.1:4222/?device=lab-1&backlog=1000' -o lab-1.pcapng")
)]
pub struct RecordArgs {
    /// the server, as ws://HOST:PORT/, ws+unix:/PATH, adb:SERIAL or nats://HOST:PORT/?device=NAME, and in its query what to send, as ?comm=NAME, ?pid=NUMBER, ?host=NAME or
    /// ?backlog=NUMBER (default: ws://127.0.0.1:28257/)
    #[argh(positional, default = "Address::default()", arg_name = "url")]
    pub url: Address,
    /// the file; - is stdout, and .pcapng unless --format says otherwise
    #[argh(option, short = 'o', arg_name = "file")]
    pub output: PathBuf,
    /// what the file is, if its ending does not say it
    #[argh(option, arg_name = "format")]
    pub format: Option<Format>,
    /// begin another file after so many bytes; K, M and G stand for 1000, and so on
    #[argh(option, arg_name = "size")]
    pub rotate_size: Option<Size>,
    /// begin another file after such a time, as 90s, 15m, 1h
    #[argh(option, arg_name = "time")]
    pub rotate_time: Option<Span>,
    /// of the files that one recording began keep only the last so many
    #[argh(option, arg_name = "number", from_str_fn(values::from_one))]
    pub keep: Option<NonZeroUsize>,
    /// replace a file that is there already
    #[argh(switch)]
    pub force: bool,
    /// end after this many events
    #[argh(option, arg_name = "number", from_str_fn(values::from_one))]
    pub count: Option<NonZeroU64>,
    /// end when the connection ends; exit code 0 if the server closed it in good order
    #[argh(switch)]
    pub no_reconnect: bool,
}

/// Is a capture interface of Wireshark, which runs this by itself.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "extcap",
    example = "Have Wireshark find it: plaintap is then among its interfaces
  ln -s \"$(command -v plaintap)\" EXTCAP_FOLDER/plaintap-extcap",
    note = "tshark -G folders, or Help > About Wireshark > Folders, names the folder."
)]
pub struct ExtcapArgs {
    /// name the interfaces
    #[argh(switch)]
    pub extcap_interfaces: bool,
    /// wireshark's version
    #[argh(option, arg_name = "version")]
    pub extcap_version: Option<String>,
    /// the interface that is meant
    #[argh(option, arg_name = "name")]
    pub extcap_interface: Option<String>,
    /// name the link type
    #[argh(switch)]
    pub extcap_dlts: bool,
    /// name the options
    #[argh(switch)]
    pub extcap_config: bool,
    /// a filter, which is not looked at: Wireshark's display filters do that
    #[argh(option, arg_name = "expr")]
    pub extcap_capture_filter: Option<String>,
    /// capture
    #[argh(switch)]
    pub capture: bool,
    /// the pipe to capture into
    #[argh(option, arg_name = "path")]
    pub fifo: Option<PathBuf>,
    /// the server (default: ws://127.0.0.1:28257/)
    #[argh(option, arg_name = "url", default = "Address::default()")]
    pub url: Address,
}

/// Serves a recorded .pb as an eCaptureQ server, so that every viewer can be tried without a device.
///
/// Each client gets the whole recording from its beginning, and after it heartbeats, until it goes.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "replay",
    example = "As it was, to whatever viewer connects to ws://127.0.0.1:28257/:
  {command_name} session.pb",
    example = "As fast as the client takes it, once, and done:
  {command_name} session.pb --listen ws://127.0.0.1:9000/ --speed max --once",
    note = "It listens on this computer only, and whoever uses this computer may connect. Ctrl-C ends it."
)]
pub struct ReplayArgs {
    /// the recording
    #[argh(positional, arg_name = "file")]
    pub file: PathBuf,
    /// where to listen; port 0 is a free one, named on stderr (default: ws://127.0.0.1:28257/)
    #[argh(option, arg_name = "url", default = "Listen::default()")]
    pub listen: Listen,
    /// how much faster than it was, as 2 or 0.5, or max (default: 1)
    #[argh(option, arg_name = "number", default = "Speed::Times(1.0)")]
    pub speed: Speed,
    /// give events and heartbeats the time at which they are sent, as if they happened now
    #[argh(switch)]
    pub now: bool,
    /// serve one client, close the connection at the recording's end, and end
    #[argh(switch)]
    pub once: bool,
}

/// Serves a stream again, live, for viewers that show payloads as they are: HTTP/1 and HTTP/2 as text, put together and
/// decoded, in the fields that every eCaptureQ viewer knows.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "serve",
    example = "Point a viewer at ws://127.0.0.1:28258/, while this runs:
  {command_name}",
    note = "It listens on this computer only, and whoever uses this computer may connect."
)]
pub struct ServeArgs {
    /// the server, as ws://HOST:PORT/, ws+unix:/PATH, adb:SERIAL or nats://HOST:PORT/?device=NAME (default: ws://127.0.0.1:28257/)
    #[argh(positional, default = "Address::default()", arg_name = "url")]
    pub url: Address,
    /// where to listen; port 0 is a free one, named on stderr (default: ws://127.0.0.1:28258/)
    #[argh(option, arg_name = "url", default = "Listen(SocketAddr::from(([127, 0, 0, 1], 28258)))")]
    pub listen: Listen,
    /// end when the connection to the server ends; exit code 0 if the server closed it in good order
    #[argh(switch)]
    pub no_reconnect: bool,
}

/// Writes completions for bash, zsh and fish and a man page into a folder.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "generate",
    example = "See the man page, and have bash complete what you type:
  {command_name} /tmp/plaintap && man /tmp/plaintap/plaintap.1 && . /tmp/plaintap/plaintap.bash"
)]
pub struct GenerateArgs {
    /// where to; made if it is not there
    #[argh(positional, arg_name = "folder")]
    pub folder: PathBuf,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; try 100M");
        let (number, unit) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (&text[..at], 1000),
            Some((at, 'M')) => (&text[..at], 1_000_000),
            Some((at, 'G')) => (&text[..at], 1_000_000_000),
            _ => (text, 1),
        };
        let number: NonZeroU64 = number.parse().map_err(|_| wrong())?;
        number.get().checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

/// A time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time; try 90s, 15m or 1h");
        let (number, unit) = match text.char_indices().last() {
            Some((at, 's')) => (&text[..at], 1),
            Some((at, 'm')) => (&text[..at], 60),
            Some((at, 'h')) => (&text[..at], 3600),
            Some((at, 'd')) => (&text[..at], 86400),
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse::<NonZeroU64>().map_err(|_| wrong())?.get();
        number.checked_mul(unit).map(|seconds| Self(Duration::from_secs(seconds))).ok_or_else(wrong)
    }
}

/// How fast a recording is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// So many times as fast as it was.
    Times(f64),
    /// Without waiting.
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<f64>()) {
            ("max", _) => Ok(Self::Max),
            (_, Ok(times)) if (0.001..=1_000_000.0).contains(&times) => Ok(Self::Times(times)),
            _ => Err(format!("{text:?} is no speed; try 1, 0.5, 10 or max")),
        }
    }
}

/// An address of this computer to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl Default for Listen {
    fn default() -> Self {
        Self(SocketAddr::from(([127, 0, 0, 1], 28257)))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} {why}; try ws://127.0.0.1:28257/");
        let rest = text.strip_prefix("ws://").ok_or_else(|| wrong("is no ws:// URL"))?;
        let (authority, _path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = match authority.strip_prefix("localhost") {
            Some(port) => format!("127.0.0.1{port}"),
            None => authority.to_owned(),
        };
        let address: SocketAddr = authority.parse().map_err(|_| wrong("is no IP address with a port"))?;
        if !address.ip().is_loopback() {
            return Err(wrong("is not an address of this computer alone, and a recording is secret"));
        }
        Ok(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(
            ["1", "2k", "3M", "4G"].map(|text| text.parse()),
            [Ok(Size(1)), Ok(Size(2000)), Ok(Size(3_000_000)), Ok(Size(4_000_000_000))]
        );
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!(["90s", "15m", "1h", "2d"].map(seconds), [Ok(90), Ok(900), Ok(3600), Ok(172_800)]);
        for wrong in ["", "M", "0", "-1", "1.5M", "1x", "\u{20ac}", "99999999999999999999G", "99999999999G0"]
        {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!(format!("{}G", u64::MAX).parse::<Size>().is_err());
        assert!(format!("{}d", u64::MAX).parse::<Span>().is_err());
    }

    #[test]
    fn a_speed_is_a_number_that_is_not_absurd_or_max() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("0.5".parse(), Ok(Speed::Times(0.5)));
        for wrong in ["", "0", "-1", "NaN", "inf", "1e300", "fast"] {
            assert!(wrong.parse::<Speed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_this_computer_is_listened_on() {
        for (text, address) in [
            ("ws://127.0.0.1:0", "127.0.0.1:0"),
            ("ws://localhost:9/", "127.0.0.1:9"),
            ("ws://[::1]:9/x", "[::1]:9"),
        ] {
            assert_eq!(text.parse(), Ok(Listen(address.parse().unwrap())));
        }
        for wrong in
            ["", "127.0.0.1:1", "ws://0.0.0.0:1/", "ws://10.0.0.1:1/", "ws://127.0.0.1/", "ws://h:1/"]
        {
            let error = wrong.parse::<Listen>().unwrap_err();
            assert!(
                error.contains(&format!("{wrong:?}")) && error.contains("ws://127.0.0.1:28257/"),
                "{error}"
            );
        }
    }
}

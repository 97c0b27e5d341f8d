//! The command line.

use std::{net::Ipv4Addr, net::SocketAddr, path::PathBuf, str::FromStr};

use argh::FromArgs;

/// The port of eCaptureQ. Source: shared/protocol.md.
pub const DEFAULT_PORT: u16 = 28257;

/// Streams the plaintext of TLS connections on this device to eCaptureQ clients, such as `plaintap watch`.
#[derive(FromArgs, Debug)]
#[argh(
    name = "plaintapd",
    example = "Watch every TLS library of the system; clients connect to ws://127.0.0.1:28257/:
  {command_name}",
    example = "Watch one process, on another port:
  {command_name} --pid 4242 --ecaptureq ws://127.0.0.1:9000/",
    example = "Watch a library that is not in a usual place:
  {command_name} --library /opt/app/lib/libssl.so",
    note = "Every flag takes its value as `--flag value` or `--flag=value`.",
    error_code(0, "done: ended by SIGINT or SIGTERM"),
    error_code(1, "failed while running"),
    error_code(2, "wrong usage"),
    error_code(3, "not permitted"),
    error_code(4, "the kernel lacks something"),
    error_code(5, "the address is in use"),
    error_code(6, "a library is not usable")
)]
pub struct Args {
    /// where clients connect: ws://HOST:PORT/, HOST a loopback address, port 0 for any free one (default:
    /// ws://127.0.0.1:28257/)
    #[argh(option, default = "Listen::default()", arg_name = "url")]
    pub ecaptureq: Listen,
    /// a TLS library or a program that contains one; repeatable (default: the system's BoringSSL and OpenSSL)
    #[argh(option, arg_name = "path")]
    pub library: Vec<PathBuf>,
    /// capture this process only; repeatable
    #[argh(option, arg_name = "number")]
    pub pid: Vec<u32>,
    /// memory for events on their way to clients, as 8M or 512K (default: 8M)
    #[argh(option, default = "Size(8 << 20)", arg_name = "size")]
    pub journal_size: Size,
    /// the kernel's buffer of events, a power of two, as 4M or 256K (default: 4M)
    #[argh(option, default = "RingSize(4 << 20)", arg_name = "size")]
    pub ring_size: RingSize,
    /// how much to log: error, warn, info, debug or trace (default: info)
    #[argh(option, default = "::log::LevelFilter::Info", arg_name = "level")]
    pub log_level: ::log::LevelFilter,
    /// print the version
    #[argh(switch)]
    pub version: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To run.
    Run(Args),
    /// To print this and be done.
    Print(String),
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0} (see plaintapd --help)")]
pub struct UsageError(String);

/// Reads the command line, without the program's own name.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Parsed, UsageError> {
    let mut args = normalised(args);
    if args.first().is_some_and(|first| first == "run") {
        args.remove(0);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match Args::from_args(&["plaintapd"], &args) {
        Ok(args) if args.version => Ok(Parsed::Print(format!("plaintapd {}\n", env!("CARGO_PKG_VERSION")))),
        Ok(args) => Ok(Parsed::Run(args)),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        Err(exit) => {
            let lines: Vec<&str> =
                exit.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(UsageError(lines.join(" ")))
        }
    }
}

/// argh takes only `--flag value`, and people also type `--flag=value`.
fn normalised(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = Vec::new();
    for arg in args {
        match arg.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => {
                all.extend([flag.to_owned(), value.to_owned()]);
            }
            _ => all.push(arg),
        }
    }
    all
}

/// An address for clients to connect to, from an eCaptureQ URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl Default for Listen {
    fn default() -> Self {
        Self((Ipv4Addr::LOCALHOST, DEFAULT_PORT).into())
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{url:?} {why}; try ws://127.0.0.1:{DEFAULT_PORT}/");
        let rest = url
            .get(..5)
            .filter(|scheme| scheme.eq_ignore_ascii_case("ws://"))
            .and_then(|_| url.get(5..))
            .ok_or_else(|| wrong("is no ws:// URL"))?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address stand inside its brackets.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("has no port number after its colon"))?)
            }
            _ => (authority, DEFAULT_PORT),
        };
        let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().ok().map(Into::into),
            None if host.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
            None => host.parse::<Ipv4Addr>().ok().map(Into::into),
        };
        let address: std::net::IpAddr =
            address.ok_or_else(|| wrong("has no IP address or localhost as its host"))?;
        if !address.is_loopback() {
            return Err(wrong("is not a loopback address, and only this device may connect for now"));
        }
        Ok(Self((address, port).into()))
    }
}

/// A number of bytes, written as `8M`, `512K` or plainly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            _ => (text, 0),
        };
        let most = 1 << 30;
        digits
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|bytes| (64 << 10..=most).contains(bytes))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size from 64K to 1024M"))
    }
}

/// A size that the kernel takes for a ring buffer: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize(pub u32);

impl FromStr for RingSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(bytes) = text.parse()?;
        match u32::try_from(bytes) {
            Ok(bytes) if bytes.is_power_of_two() => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no power of two, as 256K, 4M or 16M")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Parsed, UsageError> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn a_flag_takes_its_value_in_either_form() {
        for args in [&["--ecaptureq", "ws://127.0.0.1:9000/"][..], &["--ecaptureq=ws://127.0.0.1:9000/"]] {
            let Parsed::Run(args) = parsed(args).unwrap() else { panic!("not a run") };
            assert_eq!(args.ecaptureq, Listen("127.0.0.1:9000".parse().unwrap()));
        }
    }

    #[test]
    fn run_may_be_said_and_left_out() {
        assert!(matches!(parsed(&["run", "--pid=7"]), Ok(Parsed::Run(args)) if args.pid == [7]));
        assert!(matches!(parsed(&[]), Ok(Parsed::Run(args)) if args.ecaptureq == Listen::default()));
    }

    #[test]
    fn help_and_version_are_printed() {
        assert!(matches!(parsed(&["--help"]), Ok(Parsed::Print(text)) if text.contains("Examples:")));
        assert!(matches!(parsed(&["--version"]), Ok(Parsed::Print(text)) if text.starts_with("plaintapd ")));
    }

    #[test]
    fn a_url_may_lack_port_slash_or_have_any_path() {
        for (url, address) in [
            ("ws://127.0.0.1:1", "127.0.0.1:1"),
            ("WS://localhost/x?y", "127.0.0.1:28257"),
            ("ws://[::1]:5/", "[::1]:5"),
            ("ws://[::1]", "[::1]:28257"),
            ("ws://127.9.9.9:0/", "127.9.9.9:0"),
        ] {
            assert_eq!(url.parse(), Ok(Listen(address.parse().unwrap())), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_an_error_that_names_it() {
        for url in [
            "",
            "ws:/",
            "http://127.0.0.1:1/",
            "ws://",
            "ws://:1/",
            "ws://127.0.0.1:x/",
            "ws://127.0.0.1:65536/",
            "ws://8.8.8.8:1/",
            "ws://0.0.0.0:28257/",
            "ws://::1:5/",
            "ws://example.org/",
            "é",
        ] {
            let error = parsed(&["--ecaptureq", url]).unwrap_err().to_string();
            assert!(error.contains(&format!("{url:?}")), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_a_ring_is_a_power_of_two() {
        assert_eq!("512k".parse(), Ok(Size(512 << 10)));
        assert_eq!("4M".parse(), Ok(RingSize(4 << 20)));
        for size in ["", "K", "1K", "-1", "2048M", "99999999999999999999M"] {
            assert!(size.parse::<Size>().is_err(), "{size}");
        }
        assert!("3M".parse::<RingSize>().is_err());
    }
}

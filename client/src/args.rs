//! The command line.

use std::num::NonZeroU64;

use argh::{ArgsInfo, FromArgs};

use crate::{
    adb::{AdbArgs, DoctorArgs},
    address::{Address, without_secrets},
    commands::{ExtcapArgs, GenerateArgs, InspectArgs, RecordArgs, ReplayArgs, ServeArgs},
    http::filter::Filter,
    values,
};

/// Shows the plaintext of TLS connections, as plaintapd or another eCaptureQ server streams it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    name = "plaintap",
    example = "Put the agent on the phone at the other end of the cable, and watch:
  {command_name} adb",
    example = "Watch what the agent on this computer, or behind `adb forward tcp:28257 tcp:28257`, captures:
  {command_name} watch",
    note = "Every flag takes its value as `--flag value` or `--flag=value`.",
    error_code(0, "done"),
    error_code(1, "failed while running"),
    error_code(2, "wrong usage")
)]
#[cfg_attr(
    not(feature = "relay"),
    argh(
        note = "This build has no `plaintap relay` and reads no nats:// addresses. One that does (see docs/fleet.md) is made by
`cargo build --release -p plaintap --features relay`."
    )
)]
pub struct Args {
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// what to do
    #[argh(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// Show the stream as it comes.
    Watch(WatchArgs),
    /// From cable to plaintext.
    Adb(AdbArgs),
    /// Show every message as its bytes say it.
    Inspect(InspectArgs),
    /// Keep the stream in files.
    Record(RecordArgs),
    /// Send many devices' streams into NATS JetStream.
    #[cfg(feature = "relay")]
    Relay(crate::relay::RelayArgs),
    /// Serve a recording.
    Replay(ReplayArgs),
    /// Serve a stream again for older viewers.
    Serve(ServeArgs),
    /// Be a capture interface of Wireshark.
    Extcap(ExtcapArgs),
    /// Find out what is in the way.
    Doctor(DoctorArgs),
    /// Write completions and a man page.
    Generate(GenerateArgs),
}

/// Shows HTTP put together from the stream on stdout, and notes about the stream on stderr.
///
/// A request and its response are a block: a line that says when (UTC), which process, the connection (who opened it ->
/// who accepted it), what was asked, the status and how long it took; then headers and bodies, decoded, > before the
/// client's and < before the server's. What is no HTTP is shown as it comes, as with --raw.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "watch",
    example = "Watch the default address:
  {command_name}",
    example = "What went wrong at one host, without bodies:
  {command_name} --filter 'host=*.example.com and status>=400' --no-body",
    example = "Another port, and the agent's own log too:
  {command_name} ws://127.0.0.1:9000/ --logs",
    example = "Only what curl says from now on, after its last 100 events that the agent still has:
  {command_name} 'ws://127.0.0.1:28257/?comm=curl&backlog=100'",
    example = "The next ten events for a script, a JSON object each:
  {command_name} --json --count 10",
    note = "Characters that a terminal would obey are shown as \\x1b or \\u{{202e}}; for exact bytes use --raw --hex or
--json. A filter joins terms with and, or, not and (): FIELD=VALUE, !=, ~ (contains), or for numbers <, <=, >, >=. Fields:
host, method, path, status, process, pid, uid, text; a word alone is looked for in text. * in a value stands for anything,
and status=4xx works. Case does not matter. With --raw and --json it chooses events, which have no method, path or status.
A response without a length ends with its connection, whose end is not told: it is shown when nothing more came of it by the
next heartbeat, up to 15 s later. NO_COLOR or TERM=dumb in the environment works as --no-color. Ctrl-C ends it, and shows
what was begun."
)]
#[cfg_attr(
    feature = "relay",
    argh(example = "What a relay stored of a device in NATS, from the beginning and as it goes on:
  {command_name} 'nats://127.0.0.1:4222/?device=lab-1&backlog=all'")
)]
pub struct WatchArgs {
    /// the server, as ws://HOST:PORT/, ws+unix:/PATH, adb:SERIAL or nats://HOST:PORT/?device=NAME, and in its query what to send, as ?comm=NAME, ?pid=NUMBER, ?host=NAME or
    /// ?backlog=NUMBER (default: ws://127.0.0.1:28257/)
    #[argh(positional, default = "Address::default()", arg_name = "url")]
    pub url: Address,
    /// show the agent's log lines too
    #[argh(switch)]
    pub logs: bool,
    /// show heartbeats too
    #[argh(switch)]
    pub heartbeats: bool,
    /// print one JSON object a line, whole and with the payload in base64
    #[argh(switch)]
    pub json: bool,
    /// show every event as it comes, and don't put HTTP together
    #[argh(switch)]
    pub raw: bool,
    /// show only what matches, as 'host=example.com and status=4xx'
    #[argh(option, arg_name = "expr")]
    pub filter: Option<Filter>,
    /// show no bodies
    #[argh(switch)]
    pub no_body: bool,
    /// show at most this many bytes of each body (default: 65536)
    #[argh(option, arg_name = "bytes", default = "65536", from_str_fn(values::bytes))]
    pub max_body: usize,
    /// show payloads and bodies as hex dumps
    #[argh(switch)]
    pub hex: bool,
    /// of what is shown as it comes, show at most this many bytes of each payload (default: all)
    #[argh(option, arg_name = "bytes", from_str_fn(values::bytes))]
    pub max_payload: Option<usize>,
    /// end after this many events
    #[argh(option, arg_name = "number", from_str_fn(values::from_one))]
    pub count: Option<NonZeroU64>,
    /// end when the connection ends; exit code 0 if the server closed it in good order
    #[argh(switch)]
    pub no_reconnect: bool,
    /// no colour, even if stdout is a terminal
    #[argh(switch)]
    pub no_color: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To do this.
    Run(Box<Command>),
    /// To print this and be done.
    Print(String),
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The help says what would.
    #[error("{what} (see {help})")]
    Wrong {
        /// What is wrong.
        what: String,
        /// The command whose help has the right way.
        help: String,
    },
    /// It would where more was built in.
    #[cfg(not(feature = "relay"))]
    #[error(
        "this build of plaintap has no relay: `cargo build --release -p plaintap --features relay` makes one that has, \
         see docs/fleet.md"
    )]
    NoRelay,
}

/// Reads the command line, without the program's own name.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Parsed, UsageError> {
    let args = normalised(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let commands = Args::get_args_info().commands;
    let help = match args.first().filter(|first| commands.iter().any(|command| command.name == **first)) {
        Some(command) => format!("plaintap {command} --help"),
        None => "plaintap --help".to_owned(),
    };
    let wrong = |what| UsageError::Wrong { what, help };
    match Args::from_args(&["plaintap"], &args) {
        Ok(Args { version: true, .. }) => {
            Ok(Parsed::Print(format!("plaintap {}\n", env!("CARGO_PKG_VERSION"))))
        }
        Ok(Args { command: Some(command), .. }) => Ok(Parsed::Run(Box::new(command))),
        Ok(Args { command: None, .. }) => Err(wrong("what to do? Try plaintap watch".to_owned())),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        #[cfg(not(feature = "relay"))]
        Err(_) if args.first() == Some(&"relay") => Err(UsageError::NoRelay),
        Err(exit) => {
            // argh repeats what it can't read, and a password or a token may be in it.
            let secret = args.iter().filter(|arg| arg.contains(['@', '?']));
            let output = secret.fold(exit.output, |text, arg| text.replace(arg, &without_secrets(arg)));
            let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(wrong(lines.join(" ").replace(": duplicate values provided", ": it is given twice")))
        }
    }
}

/// argh takes only `--flag value`, and people also type `--flag=value`.
fn normalised(args: impl Iterator<Item = String>) -> Vec<String> {
    let (mut all, mut ours) = (Vec::new(), true);
    for arg in args {
        // What stands behind `--` is another program's.
        ours &= arg != "--";
        match arg.split_once('=') {
            Some((flag, value)) if ours && flag.starts_with("--") => {
                all.extend([flag.to_owned(), value.to_owned()])
            }
            _ => all.push(arg),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, UsageError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_flag_takes_its_value_in_either_form() {
        for line in ["watch --count=5 --max-payload=0", "watch --count 5 --max-payload 0"] {
            let Ok(Parsed::Run(command)) = parsed(line) else { panic!("{line}") };
            let Command::Watch(args) = *command else { panic!("{line}") };
            assert_eq!((args.count.map(NonZeroU64::get), args.max_payload), (Some(5), Some(0)));
        }
    }

    #[test]
    fn the_address_may_be_left_out() {
        let Ok(Parsed::Run(command)) = parsed("watch --json") else { panic!() };
        let Command::Watch(args) = *command else { panic!() };
        assert_eq!(args.url.to_string(), "ws://127.0.0.1:28257/");
    }

    #[test]
    fn help_and_version_are_printed() {
        assert!(
            matches!(parsed("watch --help"), Ok(Parsed::Print(text)) if text.contains("plaintap watch --json"))
        );
        assert!(matches!(parsed("--help"), Ok(Parsed::Print(text)) if text.contains("plaintap watch")));
        assert!(matches!(parsed("--version"), Ok(Parsed::Print(text)) if text.starts_with("plaintap ")));
    }

    #[cfg(not(feature = "relay"))]
    #[test]
    fn who_wants_a_relay_is_told_how_to_get_one() {
        for line in ["relay", "relay --help", "relay --from adb:* --to nats://h:4222"] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains("--features relay") && error.contains("docs/fleet.md"), "{error}");
            assert!(!error.contains("--help") && !error.contains('\n'), "{error}");
        }
        assert!(matches!(parsed("--help"), Ok(Parsed::Print(text)) if text.contains("no `plaintap relay`")));
    }

    #[test]
    fn a_secret_in_a_wrong_address_is_not_repeated() {
        for line in [
            "watch nats://u:secret@h/?x=1",
            "inspect ws://u:secret@h/",
            "watch --url=nats://u:secret@h",
            "watch wss://h/?token=secret",
            "watch --url=ws://h/?token=secret",
            "record adb:a;b?token=secret",
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_one_line_that_names_what_is_wrong() {
        for (line, wrong) in [
            ("", "what to do"),
            ("look", "look"),
            ("watch --count 0", "count"),
            ("watch http://h/", "http://h/"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(wrong) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_in_a_persons_words_with_the_help_that_has_the_right_one() {
        for (line, told) in [
            ("watch --count 0", "\"0\" is no number from 1, as 10 (see plaintap watch --help)"),
            ("watch --max-body x", "\"x\" is no number of bytes, as 65536 (see plaintap watch --help)"),
            ("watch --max-payload -1", "\"-1\" is no number of bytes, as 65536 (see plaintap watch --help)"),
            (
                "inspect --max-payload x",
                "\"x\" is no number of bytes, as 65536 (see plaintap inspect --help)",
            ),
            ("inspect --count x", "\"x\" is no number from 1, as 10 (see plaintap inspect --help)"),
            ("record -o x --count 0", "\"0\" is no number from 1, as 10 (see plaintap record --help)"),
            ("record -o x --keep 0", "\"0\" is no number from 1, as 10 (see plaintap record --help)"),
            ("watch --count 1 --count 2", "'2': it is given twice (see plaintap watch --help)"),
            ("replay", "not provided: file (see plaintap replay --help)"),
            ("look", "look (see plaintap --help)"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.ends_with(told), "{line}: {error}");
        }
    }
}

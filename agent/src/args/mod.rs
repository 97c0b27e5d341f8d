//! The command line.

mod config;
mod values;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use argh::FromArgs;

use crate::{
    discover::{Options, offsets::Offsets},
    listen::Place,
    memory::Sizes,
    server::tls,
};

pub use self::values::{
    Chosen, LogLevel, MaxClients, Pid, RingSize, Seconds, Size, SlowClient, Snaplen, Uids,
};

/// Streams the plaintext of TLS connections on this device to eCaptureQ clients, such as `plaintap watch`.
#[derive(FromArgs, Debug)]
#[argh(
    name = "plaintapd",
    example = "Watch every TLS library of the system; clients connect to ws://127.0.0.1:28257/:
  {command_name}",
    example = "Watch one process, on another port:
  {command_name} --pid 4242 --ecaptureq ws://127.0.0.1:9000/",
    example = "Watch an Android app, and what runs as uid 1000 to 1999 but for curl:
  {command_name} --package org.example.app
  {command_name} --uid 1000-1999 --comm '!curl'",
    example = "Watch one library and nothing else:
  {command_name} --library /opt/app/lib/libssl.so",
    example = "Serve adb forward tcp:28257 localabstract:plaintap, and whoever knows the token over USB:
  {command_name} --ecaptureq ws+unix:@plaintap --ecaptureq ws://usb0:28257/ --token-file /data/local/token",
    example = "As a service: nothing in place while nobody watches:
  {command_name} --on-demand --config /etc/plaintapd.conf",
    example = "Watch all but what one folder holds:
  {command_name} --exclude '/opt/quiet/*'",
    example = "What there is to capture, and whether this device is fit for it:
  {command_name} list
  {command_name} doctor",
    note = "Every flag takes its value as `--flag value` or `--flag=value`.",
    note = "--pid, --uid, --comm and --package choose what is captured. Each is repeatable: values of one flag are
alternatives, different flags must all agree, and a value after `!` is left out whatever else it agrees with.",
    note = "A --config file holds one flag a line, as `--pid 4242`; a `#` at a line's start or behind a blank starts a
comment. SIGHUP reads it again, for the filters, --snaplen and --log-level.",
    error_code(0, "done: ended by SIGINT or SIGTERM"),
    error_code(1, "failed while running"),
    error_code(2, "wrong usage"),
    error_code(3, "not permitted"),
    error_code(4, "the kernel lacks something"),
    error_code(5, "the address is in use"),
    error_code(6, "a library is not usable")
)]
pub struct Args {
    /// where clients connect: ws://ADDRESS:PORT/ (port 0: any free one), ws://INTERFACE:PORT/, ws+unix:/PATH or
    /// ws+unix:@NAME (abstract); repeatable (default: ws://127.0.0.1:28257/)
    #[argh(option, arg_name = "url")]
    pub ecaptureq: Vec<Place>,
    /// let this user id or range of them connect too (always may: root, who started plaintapd, on Android the shell);
    /// repeatable
    #[argh(option, arg_name = "range")]
    pub allow_uid: Vec<Uids>,
    /// ask every client for the token in this file; a must where other devices can connect
    #[argh(option, arg_name = "path")]
    pub token_file: Option<PathBuf>,
    /// the certificate for wss:// places, a PEM file; in builds with TLS only, as all of --tls
    #[argh(option, arg_name = "path")]
    pub tls_cert: Option<PathBuf>,
    /// its key, a PEM file
    #[argh(option, arg_name = "path")]
    pub tls_key: Option<PathBuf>,
    /// let only clients in that have a certificate of these, a PEM file
    #[argh(option, arg_name = "path")]
    pub tls_client_ca: Option<PathBuf>,
    /// clients at the same time (default: 64)
    #[argh(option, default = "MaxClients(64)", arg_name = "number")]
    pub max_clients: MaxClients,
    /// the user as whom clients are served (default: nobody, on Android the shell)
    #[argh(option, arg_name = "user")]
    pub user: Option<String>,
    /// a TLS library or a program that contains one; repeatable (default: what is in the usual places, and what processes
    /// have mapped, now or later)
    #[argh(option, arg_name = "path")]
    pub library: Vec<PathBuf>,
    /// watch the usual places only, whatever else processes have mapped
    #[argh(switch)]
    pub no_scan: bool,
    /// watch no file whose whole path fits this pattern; `*` is any text, `?` any character; repeatable
    #[argh(option, arg_name = "glob")]
    pub exclude: Vec<String>,
    /// watch no function that its code alone tells to be the one
    #[argh(switch)]
    pub no_inferred: bool,
    /// functions of files without symbols, by build ID: a text file with lines as `BUILD-ID SSL_read=0x2d5ac0
    /// SSL_write=0x2d5ed0`, addresses as nm prints them
    #[argh(option, arg_name = "path")]
    pub offsets: Option<Offsets>,
    /// capture this process id
    #[argh(option, arg_name = "number")]
    pub pid: Vec<Chosen<Pid>>,
    /// capture this user id, or these, as 10000-19999
    #[argh(option, arg_name = "range")]
    pub uid: Vec<Chosen<Uids>>,
    /// capture threads of this name, as ps -L shows it
    #[argh(option, arg_name = "name")]
    pub comm: Vec<Chosen<String>>,
    /// capture this Android app
    #[argh(option, arg_name = "id")]
    pub package: Vec<Chosen<String>>,
    /// keep only so many bytes of each call (default: all)
    #[argh(option, default = "Snaplen::default()", arg_name = "bytes")]
    pub snaplen: Snaplen,
    /// read further flags from this file
    #[argh(option, arg_name = "path")]
    pub config: Option<PathBuf>,
    /// memory for all that plaintapd keeps, in the kernel and in both processes, as 8M; it sizes the ring, the journal and the
    /// kernel's tables together, so that --ring-size and --journal-size are left out
    #[argh(option, arg_name = "size")]
    pub memory_limit: Option<Size>,
    /// memory for events on their way to clients, as 8M or 512K (default: 8M)
    #[argh(option, arg_name = "size")]
    pub journal_size: Option<Size>,
    /// what happens to a client that the journal has left behind: drop (it goes on with the oldest event left, and is told
    /// what it missed) or disconnect (default: drop)
    #[argh(option, default = "SlowClient::Drop", arg_name = "what")]
    pub slow_client: SlowClient,
    /// the kernel's buffer of events, a power of two, as 4M or 256K (default: 4M)
    #[argh(option, arg_name = "size")]
    pub ring_size: Option<RingSize>,
    /// put probes in place only while a client is connected: a minute after the last one left they are gone, and so is what
    /// was kept for clients
    #[argh(switch)]
    pub on_demand: bool,
    /// with --on-demand, seconds that it stays ready after the last client left (default: 60)
    #[argh(option, arg_name = "seconds")]
    pub linger: Option<Seconds>,
    /// how much to log: error, warn, info, debug or trace (default: info)
    #[argh(option, default = "LogLevel(::log::LevelFilter::Info)", arg_name = "level")]
    pub log_level: LogLevel,
    /// print the version
    #[argh(switch)]
    pub version: bool,
}

/// Lists the TLS code on this device: which of it can be captured, which not and why, and who uses it.
#[derive(FromArgs, Debug)]
#[argh(
    name = "list",
    example = "Show it as a table:
  {command_name}",
    example = "Which files can be captured:
  {command_name} --json | jq '.targets[] | select(.state != \"refused\") | .path'",
    note = "It looks into the usual places and at what every process has mapped, and changes nothing. `attached` means that
probes stand in a process that maps the file; `ready`, that plaintapd will put them there;
`left-out`, that others have probes and it has none, by a flag or for a reason in plaintapd's log. As root it sees all processes.",
    error_code(0, "done"),
    error_code(1, "failed while running"),
    error_code(2, "wrong usage")
)]
pub struct ListArgs {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// leave out what fits this pattern, as for running; repeatable
    #[argh(option, arg_name = "glob")]
    pub exclude: Vec<String>,
    /// leave out functions that only their code tells to be the ones, as for running
    #[argh(switch)]
    pub no_inferred: bool,
    /// functions of files without symbols, as for running
    #[argh(option, arg_name = "path")]
    pub offsets: Option<Offsets>,
}

impl ListArgs {
    /// Which files to look into, and how.
    pub fn options(&self) -> Options {
        options(&self.exclude, self.no_inferred, self.offsets.as_ref())
    }
}

fn options(exclude: &[String], no_inferred: bool, offsets: Option<&Offsets>) -> Options {
    Options { exclude: exclude.to_vec(), no_inferred, offsets: offsets.cloned().unwrap_or_default() }
}

/// Checks whether this device is fit for plaintapd: its kernel, what this user may do, the port, and what can be captured.
#[derive(FromArgs, Debug)]
#[argh(
    name = "doctor",
    example = "Check all, with another port:
  {command_name} --ecaptureq ws://127.0.0.1:9000/",
    example = "Keep what somebody needs to know who is to help:
  {command_name} --report /data/local/tmp/plaintapd-report.txt",
    note = "Each line is ok, warning or failure, and says what to do. The exit code is that of the first failure, as if
plaintapd had been started.",
    error_code(0, "no failure"),
    error_code(1, "failed while running, or the report's file is there already"),
    error_code(2, "wrong usage"),
    error_code(3, "not permitted"),
    error_code(4, "the kernel lacks something"),
    error_code(5, "the address is in use"),
    error_code(6, "no library is usable")
)]
pub struct DoctorArgs {
    /// where clients will connect (default: ws://127.0.0.1:28257/)
    #[argh(option, arg_name = "url")]
    pub ecaptureq: Vec<Place>,
    /// the token's file, as for running
    #[argh(option, arg_name = "path")]
    pub token_file: Option<PathBuf>,
    /// the certificate for wss:// places, as for running
    #[argh(option, arg_name = "path")]
    pub tls_cert: Option<PathBuf>,
    /// its key, as for running
    #[argh(option, arg_name = "path")]
    pub tls_key: Option<PathBuf>,
    /// whose certificates clients must have, as for running
    #[argh(option, arg_name = "path")]
    pub tls_client_ca: Option<PathBuf>,
    /// keep all of it in this new file too, with the list, the kernel's options and how its programs loaded: for somebody who
    /// helps from afar. It names processes and files, and holds no payload
    #[argh(option, arg_name = "file")]
    pub report: Option<PathBuf>,
}

impl Args {
    /// Which files to look into, and how.
    pub fn options(&self) -> Options {
        options(&self.exclude, self.no_inferred, self.offsets.as_ref())
    }

    /// How long it stays ready after the last client left, where nothing is in place without one.
    pub fn linger(&self) -> Duration {
        Duration::from_secs(self.linger.map_or(60, |Seconds(seconds)| seconds.into()))
    }

    /// The flags whose values are others in `new`, which can't be changed while we run.
    pub fn fixed_differences(&self, new: &Self) -> Vec<&'static str> {
        let sizes = |args: &Self| {
            let Sizes { ring, journal, .. } = Sizes::USUAL;
            (args.ring_size.unwrap_or(RingSize(ring)), args.journal_size.unwrap_or(Size(journal)))
        };
        let ((ring, journal), (new_ring, new_journal)) = (sizes(self), sizes(new));
        let places = |args: &Self| match args.ecaptureq[..] {
            [] => vec![Place::default()],
            _ => args.ecaptureq.clone(),
        };
        let differences = [
            ("--ecaptureq", places(self) != places(new)),
            ("--allow-uid", self.allow_uid != new.allow_uid),
            ("--token-file", self.token_file != new.token_file),
            ("--tls-cert", self.tls_cert != new.tls_cert),
            ("--tls-key", self.tls_key != new.tls_key),
            ("--tls-client-ca", self.tls_client_ca != new.tls_client_ca),
            ("--max-clients", self.max_clients != new.max_clients),
            ("--user", self.user != new.user),
            ("--library", self.library != new.library),
            ("--no-scan", self.no_scan != new.no_scan),
            ("--exclude", self.exclude != new.exclude),
            ("--no-inferred", self.no_inferred != new.no_inferred),
            ("--offsets", self.offsets != new.offsets),
            ("--memory-limit", self.memory_limit != new.memory_limit),
            ("--journal-size", journal != new_journal),
            ("--slow-client", self.slow_client != new.slow_client),
            ("--ring-size", ring != new_ring),
            ("--on-demand", self.on_demand != new.on_demand),
            ("--linger", self.linger() != new.linger()),
        ];
        differences.into_iter().filter(|(_, differs)| *differs).map(|(flag, _)| flag).collect()
    }

    /// What is to keep strangers out.
    pub fn guards(&self) -> Guards<'_> {
        guards(&self.token_file, &self.tls_cert, &self.tls_key, &self.tls_client_ca)
    }
}

impl DoctorArgs {
    /// What is to keep strangers out.
    pub fn guards(&self) -> Guards<'_> {
        guards(&self.token_file, &self.tls_cert, &self.tls_key, &self.tls_client_ca)
    }
}

/// The files that are to keep strangers out.
#[derive(Clone, Copy, Debug)]
pub struct Guards<'a> {
    /// The token's.
    pub token: Option<&'a Path>,
    /// What a TLS server needs.
    pub tls: tls::Files<'a>,
}

fn guards<'a>(
    token: &'a Option<PathBuf>,
    certificate: &'a Option<PathBuf>,
    key: &'a Option<PathBuf>,
    client_ca: &'a Option<PathBuf>,
) -> Guards<'a> {
    let tls = tls::Files {
        certificate: certificate.as_deref(),
        key: key.as_deref(),
        client_ca: client_ca.as_deref(),
    };
    Guards { token: token.as_deref(), tls }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To run.
    Run(Box<Args>),
    /// To list what can be captured.
    List(ListArgs),
    /// To check whether this device is fit for it.
    Doctor(DoctorArgs),
    /// To print this and be done.
    Print(String),
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{why} (see {command} --help)")]
pub struct UsageError {
    why: String,
    /// What was to be run, as it is typed.
    command: String,
}

/// Of `plaintapd` itself, not of one of its commands.
fn wrong(why: impl Into<String>) -> UsageError {
    UsageError { why: why.into(), command: "plaintapd".to_owned() }
}

/// Reads the command line, without the program's own name, and the file that its --config names.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Parsed, UsageError> {
    let mut all = normalised(args);
    match all.first().map(String::as_str) {
        Some("list") => return parse_command("list", &all[1..], Parsed::List),
        Some("doctor") => return parse_command("doctor", &all[1..], Parsed::Doctor),
        Some("run") => drop(all.remove(0)),
        _ => {}
    }
    let parsed = parse_flags(&all)?;
    let path = match &parsed {
        Parsed::Run(args) => args.config.clone(),
        _ => None,
    };
    let Some(path) = &path else { return checked(parsed) };
    // What stands on the command line comes last.
    let mut with_config = config::from_file(path)?;
    let instead: Vec<String> =
        all.iter().filter(|arg| config::INSTEAD.contains(&arg.as_str())).cloned().collect();
    config::drop_flags(&mut with_config, &instead);
    with_config.extend(all);
    let named =
        |error: UsageError| UsageError { why: format!("with {}: {}", path.display(), error.why), ..error };
    parse_flags(&with_config).and_then(checked).map_err(named)
}

/// Refuses flags that do nothing without another.
fn checked(parsed: Parsed) -> Result<Parsed, UsageError> {
    match &parsed {
        Parsed::Run(args) if args.linger.is_some() && !args.on_demand => {
            Err(wrong("--linger is for --on-demand, which is not there"))
        }
        _ => Ok(parsed),
    }
}

fn parse_flags(args: &[String]) -> Result<Parsed, UsageError> {
    let version = || Parsed::Print(format!("plaintapd {}\n", env!("CARGO_PKG_VERSION")));
    let run = |args: Args| if args.version { version() } else { Parsed::Run(args.into()) };
    parsed(&["plaintapd"], args, run)
}

fn parse_command<T: FromArgs>(
    name: &str,
    args: &[String],
    done: impl FnOnce(T) -> Parsed,
) -> Result<Parsed, UsageError> {
    parsed(&["plaintapd", name], args, done)
}

/// What can be typed.
const USAGE: &str = "Usage: plaintapd [run] [FLAG...]      capture, and serve it to clients
       plaintapd list [FLAG...]       list the TLS code that can be captured
       plaintapd doctor [FLAG...]     check whether this device is fit for it";

fn parsed<T: FromArgs>(
    name: &[&str],
    args: &[String],
    done: impl FnOnce(T) -> Parsed,
) -> Result<Parsed, UsageError> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match T::from_args(name, &args) {
        Ok(args) => Ok(done(args)),
        Err(exit) if exit.status.is_ok() && *name == ["plaintapd"] => {
            // The generated line has every flag, which come below with what they mean, and no command.
            let rest = exit.output.split_once('\n').map_or("", |(_, rest)| rest);
            Ok(Parsed::Print(format!("{USAGE}\n{rest}")))
        }
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        Err(exit) => {
            let lines: Vec<&str> =
                exit.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(UsageError { why: plainly(&lines.join(" ")), command: name.join(" ") })
        }
    }
}

/// What argh says, but where its words are those of programmers.
fn plainly(text: &str) -> String {
    let flag = text.strip_prefix("Error parsing option '").and_then(|rest| rest.split_once("' with value '"));
    match flag {
        Some((flag, rest)) if rest.ends_with("': duplicate values provided") => {
            format!("{flag} is given twice, and can be given once")
        }
        _ => text.to_owned(),
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

#[cfg(test)]
mod tests {
    use plaintap_abi::choice;

    use super::*;

    pub(super) fn parsed(args: &[&str]) -> Result<Parsed, UsageError> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn a_flag_takes_its_value_in_either_form() {
        for args in [&["--ecaptureq", "ws://127.0.0.1:9000/"][..], &["--ecaptureq=ws://127.0.0.1:9000/"]] {
            let Parsed::Run(args) = parsed(args).unwrap() else { panic!("not a run") };
            assert_eq!(args.ecaptureq, [Place::Tcp("127.0.0.1:9000".parse().unwrap())]);
        }
    }

    #[test]
    fn run_may_be_said_and_left_out() {
        let pid = Chosen { value: Pid(7), choice: choice::INCLUDE };
        assert!(matches!(parsed(&["run", "--pid=7"]), Ok(Parsed::Run(args)) if args.pid == [pid]));
        assert!(matches!(parsed(&[]), Ok(Parsed::Run(args)) if args.ecaptureq.is_empty()));
    }

    #[test]
    fn help_and_version_are_printed() {
        assert!(matches!(parsed(&["--help"]), Ok(Parsed::Print(text)) if text.contains("Examples:")));
        assert!(
            matches!(parsed(&["--help"]), Ok(Parsed::Print(text)) if text.contains("plaintapd doctor [FLAG...]"))
        );
        assert!(
            matches!(parsed(&["list", "--help"]), Ok(Parsed::Print(text)) if text.contains("plaintapd list [--json]"))
        );
        assert!(matches!(parsed(&["--version"]), Ok(Parsed::Print(text)) if text.starts_with("plaintapd ")));
    }

    #[test]
    fn filters_are_values_ranges_and_their_negations() {
        let Ok(Parsed::Run(args)) = parsed(&["--pid=!7", "--uid=5-9", "--uid=3", "--comm", "!a b"]) else {
            panic!("not a run")
        };
        assert_eq!(args.pid, [Chosen { value: Pid(7), choice: choice::EXCLUDE }]);
        assert_eq!(args.uid[0].value, Uids { first: 5, last: 9 });
        assert_eq!(args.uid[1].value, Uids { first: 3, last: 3 });
        assert_eq!(args.comm, [Chosen { value: "a b".to_owned(), choice: choice::EXCLUDE }]);
        for wrong in [
            "--pid=!",
            "--pid=",
            "--pid=0",
            "--pid=!0",
            "--pid=-1",
            "--uid=9-5",
            "--uid=a",
            "--comm=",
            "--snaplen=0",
        ] {
            assert!(parsed(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_said() {
        for (line, why) in [
            ("--pid !abc", "\"abc\" is no process id, as 4242"),
            ("--pid 0", "\"0\" is no process id, as 4242"),
            ("--log-level loud", "\"loud\" is none of error, warn"),
            ("--on-demand --linger 1m", "\"1m\" is no number of seconds"),
            ("--linger 30", "is for --on-demand"),
        ] {
            let error = parsed(&line.split(' ').collect::<Vec<_>>()).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn services_on_devices_are_on_demand_for_a_minute_and_within_8_mib() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        for (file, flags) in [
            ("android/magisk/plaintapd.conf", &[][..]),
            ("buildroot/package/plaintapd/plaintapd.conf", &["--on-demand"]),
        ] {
            let path = format!("{root}/{file}");
            let all = [flags, &["--config", &path]].concat();
            let Ok(Parsed::Run(args)) = parsed(&all) else { panic!("{file} is no run's") };
            assert_eq!(
                (args.on_demand, args.linger(), args.memory_limit),
                (true, Duration::from_secs(60), Some(Size(8 << 20))),
                "{file}"
            );
        }
    }

    #[test]
    fn a_flag_that_is_there_twice_is_named_in_plain_words() {
        for line in ["--log-level info --log-level warn", "doctor --token-file a --token-file b"] {
            let words: Vec<&str> = line.split(' ').collect();
            let error = parsed(&words).unwrap_err().to_string();
            let flag = words[words.len() - 2];
            assert!(error.starts_with(&format!("{flag} is given twice, and can be given once (")), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_help_of_its_command() {
        for (line, help) in [
            ("--nonsense", "(see plaintapd --help)"),
            ("run --nonsense", "(see plaintapd --help)"),
            ("list --nonsense", "(see plaintapd list --help)"),
            ("doctor --nonsense", "(see plaintapd doctor --help)"),
        ] {
            let error = parsed(&line.split(' ').collect::<Vec<_>>()).unwrap_err().to_string();
            assert!(error.ends_with(help), "{line}: {error}");
        }
    }

    #[test]
    fn the_doctors_help_has_all_of_its_exit_codes() {
        let Ok(Parsed::Print(text)) = parsed(&["doctor", "--help"]) else { panic!("no help") };
        for code in 0..=6 {
            assert!(text.contains(&format!("\n  {code} ")), "{code}: {text}");
        }
    }

    #[test]
    fn flags_that_wait_for_a_restart_are_those_whose_values_differ() {
        let run = |line: &str| match parsed(&line.split_whitespace().collect::<Vec<_>>()) {
            Ok(Parsed::Run(args)) => args,
            other => panic!("{line}: {other:?}"),
        };
        let running = run("--pid 7 --library /a");
        // These are taken over, or say what holds anyway.
        let same = "--library /a --pid 8 --snaplen 5 --log-level warn --ring-size 4M --journal-size 8M \
                    --ecaptureq ws://127.0.0.1:28257/";
        assert_eq!(running.fixed_differences(&run(same)), [""; 0]);
        let other = run(
            "--ring-size 8M --library /b --ecaptureq ws://127.0.0.1:1/ --on-demand --linger 5 --user root --allow-uid 5",
        );
        assert_eq!(
            running.fixed_differences(&other),
            ["--ecaptureq", "--allow-uid", "--user", "--library", "--ring-size", "--on-demand", "--linger"]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_command_line_has_an_answer(args: Vec<String>) {
            let _ = parse(args.into_iter().filter(|arg| !arg.contains("config")));
        }
    }
}

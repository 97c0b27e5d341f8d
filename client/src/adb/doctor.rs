//! `plaintap doctor`: the way from this computer to plaintext, step by step, and then the agent's own doctor on the device.

use std::time::Duration;

use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::Message as _;
use tungstenite::Message;

use super::{
    DoctorArgs, Error,
    device::{self, Device, Facts, Root},
    server::{self, Server},
    shell::{Output, quoted},
};
use crate::{
    address::{Address, Way},
    note,
    source::{Ended, Patience, Source},
    text,
};

/// For the agent's doctor: it loads the programs.
const EXAMINATION: u64 = 120;
/// A server sends its first message at once.
const GREETING: Duration = Duration::from_secs(5);

/// Prints what it finds, as it finds it; the exit code.
pub fn run(args: &DoctorArgs, print: impl Fn(&str)) -> Result<u8, Error> {
    let say = |word: &str, what: &str| print(&format!("{word:7}  {}\n", text::one_line(what)));
    let Way::Device(place) = &args.url.way else {
        return Ok(match greeting(&args.url) {
            Ok(words) => {
                say("ok", &format!("server: {words}"));
                0
            }
            Err(why) => {
                say("failure", &format!("server: {why}"));
                1
            }
        });
    };
    let examined = Examination { say: &say, args }.device(&place.serial);
    match examined {
        Ok(Output { code, out, err }) => {
            for line in out.lines().chain(err.lines()) {
                print(&format!("{}\n", text::one_line(line)));
            }
            Ok(code)
        }
        Err(error) => {
            say("failure", &note::chain(&error));
            Ok(1)
        }
    }
}

struct Examination<'a> {
    say: &'a dyn Fn(&str, &str),
    args: &'a DoctorArgs,
}

impl Examination<'_> {
    /// From the adb program to what the agent's doctor says.
    fn device(&self, serial: &str) -> Result<Output, Error> {
        match server::program() {
            Some(path) => (self.say)("ok", &format!("adb: {}", path.display())),
            None => (self.say)(
                "warning",
                "adb: no adb program on PATH or in ANDROID_HOME: its server must be started by hand",
            ),
        }
        let server = Server::find()?;
        server.ensure()?;
        let version = u32::from_str_radix(&server.version()?, 16).unwrap_or(0);
        (self.say)("ok", &format!("adb server: {}, version {version}", server.place()));
        for entry in server.devices()? {
            let word = if entry.state == "device" { "ok" } else { "warning" };
            (self.say)(word, &format!("device: {} is {} {}", entry.serial, entry.state, entry.about));
        }
        let device = Device::find(server, serial)?;
        let facts = device.facts()?;
        self.facts(&device, &facts);
        let root = device.root(&facts, note::note)?;
        (self.say)("ok", &format!("root: {}", root.how()));
        let path = self.program(&device, &facts)?;
        let serves = self.port(&device)?;
        self.forwards(&device)?;
        (self.say)("ok", &format!("what plaintapd doctor says on {}:", device.serial));
        examine(&device, root, &path, serves)
    }

    fn facts(&self, device: &Device, facts: &Facts) {
        let system =
            if facts.android.is_empty() { "no Android" } else { &format!("Android {}", facts.android) };
        let word = if device::new_enough(&facts.kernel) { "ok" } else { "warning" };
        let remedy = if word == "ok" { "" } else { "; plaintapd is known to work from 5.10 on" };
        (self.say)(word, &format!("system: {system}, kernel {}, {}{remedy}", facts.kernel, facts.machine));
        match device::clock(facts.clock_ahead) {
            Some(words) => (self.say)("warning", &format!("clock: {words}")),
            None => (self.say)("ok", &format!("clock: {}'s and this computer's agree", device.serial)),
        }
    }

    /// Puts the agent's program on the device if it is not there, as `plaintap adb` would; where it is.
    fn program(&self, device: &Device, facts: &Facts) -> Result<String, Error> {
        let (from, program) = device::program(self.args.agent.as_ref(), &facts.machine)?;
        let path = format!("{}/plaintapd", facts.folder);
        let put = device.install(&program, &path)?;
        let output = device.run("plaintapd --version", &format!("{} --version", quoted(&path)), 20)?;
        let theirs = output.out.strip_prefix("plaintapd ").unwrap_or("of no known version");
        let same = theirs == env!("CARGO_PKG_VERSION");
        let how = if put { "put there just now" } else { "the same as here" };
        let what = format!(
            "plaintapd: {theirs} at {path}, {how} ({}); plaintap is {}",
            from.display(),
            env!("CARGO_PKG_VERSION")
        );
        (self.say)(if same { "ok" } else { "warning" }, &what);
        Ok(path)
    }

    /// Whether somebody serves at the agent's port.
    fn port(&self, device: &Device) -> Result<bool, Error> {
        let address = Address::device(device.serial.clone());
        let place = match &address.way {
            Way::Device(device) => device.place.as_str(),
            _ => "",
        };
        if !super::agent::listens(device, place)? {
            (self.say)(
                "ok",
                &format!(
                    "port: nothing listens at {place} on the device yet; plaintap adb starts plaintapd there"
                ),
            );
            return Ok(false);
        }
        match greeting(&address) {
            Ok(words) => (self.say)("ok", &format!("port: {place} on the device: {words}")),
            Err(why) => (self.say)("warning", &format!("port: {place} on the device is taken: {why}")),
        }
        Ok(true)
    }

    fn forwards(&self, device: &Device) -> Result<(), Error> {
        let forwards = device.server.forwards(&device.serial)?;
        match &forwards[..] {
            [] => (self.say)(
                "ok",
                "forward: none, and none is needed for adb: sources; for others adb forward tcp:28257 tcp:28257",
            ),
            all => (self.say)("ok", &format!("forward: {}", all.join("; "))),
        }
        Ok(())
    }
}

fn examine(device: &Device, root: Root, path: &str, serves: bool) -> Result<Output, Error> {
    // The port of one that runs is no fault.
    let place = if serves { " --ecaptureq ws://127.0.0.1:0/" } else { "" };
    let script = format!("{} doctor{place}", quoted(path));
    device.run("plaintapd doctor", &root.command(&script), EXAMINATION)
}

/// What a server is, by its first messages; or why it is none.
fn greeting(address: &Address) -> Result<String, String> {
    let patience = Patience { stream: GREETING, ..Patience::default() };
    let mut source = Source::connect(address, patience).map_err(|error| note::chain(&error))?;
    let mut messages = 0_u64;
    // The kept log lines come first.
    while messages < 1000 {
        match source.receive() {
            Ok(Some(Message::Binary(bytes))) => {
                messages += 1;
                let entry = LogEntry::decode(bytes)
                    .map_err(|error| format!("{address} speaks no eCaptureQ: {}", note::chain(&error)))?;
                if let Some(Payload::HeartbeatPayload(heartbeat)) = entry.payload {
                    return Ok(match heartbeat.run_id.as_str() {
                        "" => format!("an eCaptureQ server, not plaintapd, answers at {address}"),
                        run => format!(
                            "plaintapd answers at {address}, run {run}, {} s old",
                            heartbeat.uptime_ms / 1000
                        ),
                    });
                }
            }
            Ok(Some(_)) => return Err(format!("{address} sends text, and eCaptureQ is binary")),
            Ok(None) => {}
            Err(ended @ Ended::Silent(_)) => {
                return Err(format!("{address} is a WebSocket server and no eCaptureQ: {ended}"));
            }
            Err(ended) => return Err(format!("{address}: {}", note::chain(&ended))),
        }
    }
    Err(format!("{address} sent {messages} messages and no heartbeat"))
}

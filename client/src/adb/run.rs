//! `plaintap adb`: one command from the cable to plaintext, and back to how the device was.

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    AdbArgs, Error,
    agent::{self, Agent},
    device::{self, Device, Root},
    server::Server,
};
use crate::{
    address::Address,
    args::WatchArgs,
    consume::{self, Interrupt},
    note::{self, note},
    source::{Patience, Source},
    watch,
};

/// For an agent that listens to answer, before its log is looked at again.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two looks for a server that is gone.
const AWAY: Duration = Duration::from_secs(2);

/// Why it ended before it was done.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not come to watching.
    #[error(transparent)]
    Adb(#[from] Error),
    /// It watched, and then no more.
    #[error(transparent)]
    Watch(#[from] consume::Error),
    /// The agent would listen where adb does not lead.
    #[error(
        "adb does not lead to where --ecaptureq says: give one ws://127.0.0.1:PORT/ or ws+unix:@NAME too"
    )]
    Place,
    /// Somebody is there already, and flags would do nothing.
    #[error(
        "{0} on the device is taken already; is it plaintapd, plaintap watch adb: shows it; else choose another port: -- --ecaptureq ws://127.0.0.1:9000/"
    )]
    Taken(String),
}

/// What is to be undone in the end.
struct Begun {
    device: Device,
    root: Root,
    /// The agent's program there.
    path: String,
    /// The agent, once it serves.
    agent: Option<Agent>,
    /// The port of this computer that leads to it; 0: none yet.
    port: u16,
}

/// Watches until there are enough events, nobody reads stdout, or Ctrl-C; then the device is as it was, but for the program.
pub fn run(args: AdbArgs) -> Result<(), RunError> {
    let server = Server::find()?;
    server.ensure()?;
    let place = agent::place(&args.flags).ok_or(RunError::Place)?;
    let device = Device::find(server, &args.serial)?;
    let facts = device.facts()?;
    let system =
        if facts.android.is_empty() { String::new() } else { format!("Android {}, ", facts.android) };
    note(&format!("{}: {system}kernel {}, {}", device.serial, facts.kernel, facts.machine));
    device::clock(facts.clock_ahead).iter().for_each(|words| note(words));
    let (_, program) = device::program(args.agent.as_ref(), &facts.machine)?;
    let root = device.root(&facts, note)?;
    let path = format!("{}/plaintapd", facts.folder);
    if device.install(&program, &path)? {
        note(&format!("put plaintapd on the device ({} KiB, {path})", program.len() / 1024));
    }
    versions(&device, &path)?;
    if agent::end_others(&device, root, &path)? {
        note("ended a plaintapd that an earlier plaintap adb had left on the device");
    }
    if agent::listens(&device, &place)? {
        return Err(RunError::Taken(place));
    }
    let mut flags = agent::bounded(args.flags.clone());
    flags.extend(args.package.iter().flat_map(|package| ["--package".to_owned(), package.clone()]));
    let url = Address::device_at(device.serial.clone(), place.clone());
    // It listens before its programs are loaded, and answers only then.
    let serves = || Source::connect(&url, Patience { connect: ANSWER, ..Patience::default() }).is_ok();
    let begun = Begun { device: device.clone(), root, path: path.clone(), agent: None, port: 0 };
    let begun = Arc::new(Mutex::new(Some(begun)));
    let interrupt = Interrupt::new()?;
    let interrupted = begun.clone();
    interrupt.first(move || {
        let mut begun = lock(&interrupted);
        // Held until the end: the watching thread has no news for anybody in the agent's end.
        mem::forget(io::stderr().lock());
        finish(&mut begun)
    });
    let started = Agent::start(&device, &facts, root, &path, &flags, serves).map_err(RunError::Adb);
    let watched = started.and_then(|agent| {
        if let Some(begun) = lock(&begun).as_mut() {
            begun.agent = Some(agent);
        }
        forward(&begun, &device.serial, args.port, &place)?;
        Ok(watch::run_until(&interrupt, watch_args(args, url))?)
    });
    let mut begun = lock(&begun);
    finish(&mut begun);
    // Held until the end, which is decided: a signal that comes now, or the end of who reads stdout, waits for it.
    mem::forget(begun);
    watched
}

fn lock(begun: &Mutex<Option<Begun>>) -> MutexGuard<'_, Option<Begun>> {
    begun.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_args(args: AdbArgs, url: Address) -> WatchArgs {
    WatchArgs {
        url,
        logs: args.logs,
        heartbeats: false,
        json: args.json,
        raw: args.raw,
        filter: args.filter,
        no_body: args.no_body,
        max_body: args.max_body,
        hex: false,
        max_payload: None,
        count: args.count,
        no_reconnect: false,
        no_color: args.no_color,
    }
}

/// Says when the agent is of another version than this program.
fn versions(device: &Device, path: &str) -> Result<(), Error> {
    let output =
        device.run("plaintapd --version", &format!("{} --version", super::shell::quoted(path)), 20)?;
    let ours = env!("CARGO_PKG_VERSION");
    match output.out.strip_prefix("plaintapd ") {
        Some(theirs) if output.code == 0 && theirs == ours => {}
        Some(theirs) if output.code == 0 => {
            note(&format!("plaintapd on the device is {theirs}, and this plaintap is {ours}"));
        }
        _ => {
            return Err(Error::Failed {
                what: "plaintapd --version does not work",
                said: output.last_words(),
            });
        }
    }
    Ok(())
}

/// Has a port of this computer lead to the agent, for other viewers, and sees to it that it does so again when the device
/// was away. What is watched here takes a way of its own.
fn forward(begun: &Arc<Mutex<Option<Begun>>>, serial: &str, port: u16, place: &str) -> Result<(), Error> {
    let mut guard = lock(begun);
    let Some(now) = guard.as_mut() else { return Ok(()) };
    now.port = now.device.server.forward(serial, port, place)?;
    let (server, port) = (now.device.server.clone(), now.port);
    note(&format!(
        "plaintapd runs on the device{}; for other viewers and browsers: http://127.0.0.1:{port}/",
        pid(now.agent.as_ref())
    ));
    drop(guard);
    let (begun, serial, place) = (begun.clone(), serial.to_owned(), place.to_owned());
    thread::spawn(move || {
        loop {
            // Each change of the devices is a moment to look.
            let ended = server.track(|devices| {
                let guard = lock(&begun);
                let here = devices.iter().any(|entry| entry.serial == serial && entry.state == "device");
                // Not one that is just being taken away.
                if guard.is_some()
                    && here
                    && server.forwards(&serial).is_ok_and(|all| !leads(&all, port, &place))
                {
                    let _ = server.forward(&serial, port, &place);
                }
                Ok(())
            });
            drop(ended);
            thread::sleep(AWAY);
        }
    });
    Ok(())
}

fn leads(forwards: &[String], port: u16, place: &str) -> bool {
    forwards.iter().any(|forward| *forward == format!("tcp:{port} {place}"))
}

/// ` (pid N)`, if it is known.
fn pid(agent: Option<&Agent>) -> String {
    agent.map_or_else(String::new, |agent| format!(" (pid {})", agent.pid()))
}

/// Ends the agent and takes the forward away, once; whether that worked.
fn finish(begun: &mut Option<Begun>) -> bool {
    let Some(Begun { device, root, path, agent, port }) = begun.take() else { return true };
    if port != 0 {
        // It may have gone with the device.
        let _ = device.server.remove_forward(&device.serial, port);
    }
    let ended = match &agent {
        Some(agent) => agent.end(&device).map(|()| true),
        // It may be starting.
        None => agent::end_others(&device, root, &path),
    };
    match ended {
        Ok(ran) => {
            if ran {
                note("ended plaintapd on the device");
            }
            true
        }
        Err(error) => {
            note(&format!(
                "plaintapd may run on, on the device{}; the next plaintap adb ends it: {}",
                pid(agent.as_ref()),
                note::chain(&error)
            ));
            false
        }
    }
}

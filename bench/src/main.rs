//! Measures what plaintapd costs the programs that it watches: see docs/performance.md, and ci/bench.sh, which runs this.
//!
//! The parts: `load` is the program under measurement, `probes` puts eBPF programs on it without an agent, `agent` runs
//! plaintapd with its clients; `cost`, `loss`, `stream`, `device` and `soak` are the measurements, and print Markdown; `process` reads what they are of.
//! `recording` makes what clients are measured with. `relay` measures many devices into NATS: `fleet` plays them, `nats` is the
//! server, and `metrics` what the relay tells of itself.

mod agent;
mod cost;
mod device;
mod fleet;
mod load;
mod loss;
mod metrics;
mod nats;
mod probes;
mod process;
mod recording;
mod relay;
mod soak;
mod stream;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};

/// What everything here needs: where things are.
#[derive(Debug)]
struct Paths {
    /// plaintapd.
    agent: PathBuf,
    /// The load, from load.c.
    load: PathBuf,
    /// A folder with cert.pem and key.pem.
    certificate: PathBuf,
}

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plaintap-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str =
    "usage: plaintap-bench cost  AGENT LOAD CERTIFICATES ROUNDS LIBRARY memory|tcp [NAME=OBJECT]...
       plaintap-bench steps AGENT LOAD CERTIFICATES ROUNDS LIBRARY OBJECT
       plaintap-bench loss  AGENT LOAD CERTIFICATES LIBRARY MILLISECONDS
       plaintap-bench recording FILE BYTES
       plaintap-bench relay PLAINTAP FOLDER SECONDS DEVICES[@RATE]...
       plaintap-bench device AGENT LOAD CERTIFICATES LIBRARY ROUNDS
       plaintap-bench soak AGENT LOAD CERTIFICATES MINUTES LIBRARY...
       plaintap-bench stream AGENT LOAD CERTIFICATES LIBRARY MILLISECONDS";

fn run(arguments: Vec<String>) -> Result<()> {
    if let [what, file, bytes] = &arguments[..]
        && what == "recording"
    {
        return recording::write(file, bytes.parse().context(USAGE)?);
    }
    if let [what, plaintap, folder, seconds, devices @ ..] = &arguments[..]
        && what == "relay"
    {
        let devices =
            devices.iter().map(|devices| devices.parse().context(USAGE)).collect::<Result<Vec<_>>>()?;
        return relay::run(plaintap.as_ref(), folder.as_ref(), seconds.parse().context(USAGE)?, &devices);
    }
    let [what, agent, load, certificate, rest @ ..] = &arguments[..] else { bail!(USAGE) };
    let paths = Paths { agent: agent.into(), load: load.into(), certificate: certificate.into() };
    match (what.as_str(), rest) {
        ("cost", [rounds, library, transport, objects @ ..]) => {
            let rounds = rounds.parse().context(USAGE)?;
            let objects = objects.iter().map(|object| object.split_once('=').context(USAGE));
            cost::run(&paths, rounds, library, transport, &objects.collect::<Result<Vec<_>>>()?)
        }
        ("steps", [rounds, library, object]) => {
            cost::steps(&paths, rounds.parse().context(USAGE)?, library, object)
        }
        ("loss", [library, milliseconds]) => loss::run(&paths, library, milliseconds.parse().context(USAGE)?),
        ("device", [library, rounds]) => device::run(&paths, library, rounds.parse().context(USAGE)?),
        ("soak", [minutes, libraries @ ..]) if !libraries.is_empty() => {
            soak::run(&paths, libraries, minutes.parse().context(USAGE)?)
        }
        ("stream", [library, milliseconds]) => {
            stream::run(&paths, library, milliseconds.parse().context(USAGE)?)
        }
        _ => bail!(USAGE),
    }
}

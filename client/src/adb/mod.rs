//! The device at the other end of the cable, through the adb server of this computer and by its own protocol: no adb program
//! is run, but to start the server.
//!
//! `server` is the adb server, `stream` the words on a connection to it, `device` what is asked of one device, `agent` the
//! agent's life there, for as long as it is watched (`run`) or for good (`keep`). Nothing is kept between connections.

mod agent;
mod args;
mod device;
pub mod doctor;
mod files;
#[cfg(feature = "relay")]
mod keep;
mod run;
mod server;
mod shell;
mod stream;

use std::{io, net::TcpStream};

pub use args::{AdbArgs, DoctorArgs};
#[cfg(feature = "relay")]
pub use keep::{Kept, Pinned};
pub use run::{RunError, run};
pub use server::{Entry, Server};

use crate::text;

/// Where the agent listens on the device, and `adb forward` leads by habit.
pub const AGENT_PORT: u16 = 28257;

/// What keeps us from a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of the environment leads to a server that can't be reached by TCP.
    #[error("{variable}={value:?} names no TCP port; try ADB_SERVER_SOCKET=tcp:127.0.0.1:5037")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// No server listens, and there is no program that would start one.
    #[error(
        "no adb server at {0}, and no adb program to start one: install Android's platform-tools (apt-get install adb)"
    )]
    NoProgram(String),
    /// No server listens.
    #[error("no adb server at {0}: adb start-server starts one")]
    NoServer(String, #[source] io::Error),
    /// There is no device at all.
    #[error(
        "no device: connect one by USB and allow USB debugging in its developer options; adb devices lists what is there"
    )]
    NoDevice,
    /// The one that is meant is not there.
    #[error("no device {0:?}{others}", others = others(.1))]
    Unknown(String, Vec<String>),
    /// Nobody said which one.
    #[error("{} devices: say which one, -s SERIAL or adb:SERIAL: {}", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// The device does not know this computer yet.
    #[error("{0} does not trust this computer yet: unlock it and answer \"Allow USB debugging?\"")]
    Unauthorized(String),
    /// It is there and does not answer.
    #[error("{serial} is {state}: unplug it and plug it in again, or try adb reconnect offline")]
    NotReady {
        /// Its serial number.
        serial: String,
        /// The adb server's word.
        state: String,
    },
    /// The server, or the device's adbd behind it, says no.
    #[error("adb says to {request:?}: {answer}")]
    Refused {
        /// What it was asked for.
        request: String,
        /// What it said.
        answer: String,
    },
    /// The device has no such port.
    #[error("nothing listens on {serial} at {place}: plaintap adb starts plaintapd there")]
    Closed {
        /// The device.
        serial: String,
        /// Where, as adb names it.
        place: String,
    },
    /// The connection to the server ended.
    #[error("the adb server's connection broke (was the cable pulled?)")]
    Broken(#[from] io::Error),
    /// What came is not adb's protocol.
    #[error("what answers at the adb server's port is no adb server: {0}")]
    Wrong(String),
    /// A command on the device took too long.
    #[error("{0} did not answer within {1} s")]
    Late(String, u64),
    /// The device is not what we have a program for.
    #[error("plaintapd is made for aarch64 and x86_64, and the device is {0:?}")]
    Machine(String),
    /// Nothing on the device gives root.
    #[error(
        "no root on {0}: it needs Magisk (or another su) that grants it to the shell, or an eng or userdebug image; see docs/android.md{1}"
    )]
    NoRoot(String, String),
    /// The program for the device is not there.
    #[error(
        "no {0} beside plaintap: copy it there, or name it with --agent FILE (bash ci/build-device.sh makes dist/{0})"
    )]
    NoAgent(String),
    /// The program for the device can't be read.
    #[error("can't read {0}")]
    Agent(String, #[source] io::Error),
    /// Something on the device did not work.
    #[error("{what} on the device: {said}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the device said.
        said: String,
    },
    /// Somebody else listens where the agent would.
    #[error("{place} on {serial} is taken by another program than {path}")]
    Taken {
        /// The device.
        serial: String,
        /// Where, as adb names it.
        place: String,
        /// The agent's program.
        path: String,
    },
    /// The agent ended before it served.
    #[error("plaintapd did not start: {said}{hint}")]
    NotStarted {
        /// Its last words.
        said: String,
        /// What that may mean.
        hint: String,
    },
}

impl Error {
    /// Whether the device is away: nothing was asked of it.
    #[cfg(feature = "relay")]
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Self::NoServer(..)
                | Self::NoDevice
                | Self::Unknown(..)
                | Self::Unauthorized(_)
                | Self::NotReady { .. }
        )
    }

    /// Whether waiting may help: a device that is away may come back.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Environment { .. } | Self::NoProgram(_) | Self::Several(_) | Self::Wrong(_))
    }
}

/// What a device says, as long as it may be in an error's sentence.
fn said(words: &str) -> String {
    text::abridged(words, 200)
}

fn others(all: &[String]) -> String {
    if all.is_empty() {
        "; there is none at all".to_owned()
    } else {
        format!("; there are: {}", all.join(", "))
    }
}

/// A connection to `place` on the device, as adb names it (`tcp:PORT` on its loopback, `localabstract:NAME`), as `adb forward`
/// would make.
///
/// `serial` is the device's, or empty: the only one there is, or the one that ANDROID_SERIAL names.
pub fn connect(serial: &str, place: &str) -> Result<TcpStream, Error> {
    let server = Server::find()?;
    server.ensure()?;
    let serial = server.choose(serial)?;
    Ok(server.open(&serial, place)?.into_inner())
}

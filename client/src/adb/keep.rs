//! An agent that is to be on a device and stay there: the program that was pinned, with the flags that were pinned.
//!
//! Looked after whenever the way to the device was cut: a device that was away may come back as it was made.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Error,
    agent::{self, Agent},
    device::{self, Device, Root},
    server::Server,
};
use crate::{
    address::Address,
    source::{Patience, Source},
};

/// What is to be there.
#[derive(Debug)]
pub struct Pinned {
    /// The program; `None`: the one beside this program, for the device's CPU.
    pub program: Option<PathBuf>,
    /// Its flags.
    pub flags: Vec<String>,
    /// Where these have it listen, as adb names it.
    place: String,
    /// What was read of it: files that are replaced meanwhile are other programs.
    read: Mutex<BTreeMap<PathBuf, Arc<[u8]>>>,
}

/// What was done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: it was there and ran.
    AsItWas,
    /// It was there, and was started.
    Started,
    /// It was put there and started.
    Installed,
}

impl Pinned {
    /// `None`: the flags have it listen where adb does not lead.
    pub fn new(program: Option<PathBuf>, flags: Vec<String>) -> Option<Self> {
        let place = agent::place(&flags)?;
        Some(Self { program, flags: agent::bounded(flags), place, read: Mutex::default() })
    }

    /// Where it listens on a device.
    pub fn address(&self, serial: &str) -> Address {
        Address::device_at(serial.to_owned(), self.place.clone())
    }

    /// Sees to it that just this program runs on the device, with just these flags. It says nothing by itself, and waits for
    /// no device.
    pub fn keep(&self, serial: &str) -> Result<Kept, Error> {
        let server = Server::find()?;
        server.ensure()?;
        let device = Device { serial: server.choose(serial)?, server };
        let facts = device.facts()?;
        let program = self.program(&facts.machine)?;
        let root = device.root(&facts, |_| ())?;
        let path = format!("{}/plaintapd", facts.folder);
        let installed = device.install(&program, &path)?;
        if !installed && self.runs(&device, root, &path)? {
            return Ok(Kept::AsItWas);
        }
        agent::end_others(&device, root, &path)?;
        if agent::listens(&device, &self.place)? {
            return Err(Error::Taken { serial: serial.to_owned(), place: self.place.clone(), path });
        }
        let url = self.address(&device.serial);
        // It listens before its programs are loaded, and answers only then.
        let serves = || Source::connect(&url, Patience::default()).is_ok();
        Agent::start(&device, &facts, root, &path, &self.flags, serves)?;
        Ok(if installed { Kept::Installed } else { Kept::Started })
    }

    /// How adb knows the device, if it can be used: another text once it was unplugged and came back.
    pub fn plugged(&self, serial: &str) -> Option<String> {
        let server = Server::find().ok()?;
        let serial = server.choose(serial).ok()?;
        let devices = server.devices().ok()?;
        devices.into_iter().find(|entry| entry.is_called(&serial)).map(|entry| entry.about)
    }

    fn program(&self, machine: &str) -> Result<Arc<[u8]>, Error> {
        let path = device::program_path(self.program.as_ref(), machine)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = read.get(&path) {
            return Ok(program.clone());
        }
        let program: Arc<[u8]> = device::read_program(&path)?.into();
        read.insert(path, program.clone());
        Ok(program)
    }

    fn runs(&self, device: &Device, root: Root, path: &str) -> Result<bool, Error> {
        let line = agent::command_line(device, root, path)?;
        let same = line.is_some_and(|line| line.split_first().is_some_and(|(_, flags)| flags == self.flags));
        // It listens before all else. One that does no more is at its end: its half that serves goes first.
        Ok(same && agent::listens(device, &self.place)?)
    }
}

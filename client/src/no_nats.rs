//! What stands in for `nats` in a `plaintap` without the cargo feature `relay`: the same names, of which there are no values.

use std::{fmt, str::FromStr};

use tungstenite::Bytes;

/// What is wrong with each address of NATS.
const MISSING: &str =
    "needs a plaintap that knows NATS, as cargo build --release -p plaintap --features relay makes it";

/// One device's messages in a stream: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {}

impl FromStr for Wanted {
    type Err = &'static str;

    fn from_str(_: &str) -> Result<Self, &'static str> {
        Err(MISSING)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, _: &mut fmt::Formatter) -> fmt::Result {
        match *self {}
    }
}

/// A place in a stream: there is none.
#[derive(Clone, Debug)]
pub enum Place {}

/// A connection: there is none.
pub enum Reader {}

impl Reader {
    /// Never comes to be called.
    pub fn connect(wanted: &Wanted, _: Option<&Place>) -> Result<(Self, Vec<String>), Error> {
        match *wanted {}
    }

    /// Never comes to be called.
    pub fn receive(&mut self) -> Result<Option<Bytes>, Ended> {
        match *self {}
    }

    /// Never comes to be called.
    pub fn place(&self) -> &Place {
        match *self {}
    }
}

/// Why no connection came about: it is never tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {}

impl Error {
    /// Never comes to be called.
    pub fn may_pass(&self) -> bool {
        match *self {}
    }
}

/// How a connection ended: there was none.
#[derive(Debug, thiserror::Error)]
pub enum Ended {}

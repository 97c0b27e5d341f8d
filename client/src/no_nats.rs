//! What stands in for `nats` in a `plaintap` without the cargo feature `relay`: the same names, of which there are no
//! values.

use std::{fmt, str::FromStr};

use tungstenite::Bytes;

/// What is wrong with each address of NATS.
const MISSING: &str =
    "needs a plaintap that knows NATS, as cargo build --release -p plaintap --features relay makes it";

/// What there is none of; for who uses the types around it, there might be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Never {}

/// One device's messages in a stream: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(Never);

impl FromStr for Wanted {
    type Err = &'static str;

    fn from_str(_: &str) -> Result<Self, &'static str> {
        Err(MISSING)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, _: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {}
    }
}

/// A place in a stream: there is none.
#[derive(Clone, Debug)]
pub struct Place(Never);

/// A connection: there is none.
pub struct Reader(Never);

impl Reader {
    /// Never comes to be called.
    pub fn connect(wanted: &Wanted, _: Option<&Place>) -> Result<(Self, Vec<String>), Error> {
        match wanted.0 {}
    }

    /// Never comes to be called.
    pub fn receive(&mut self) -> Result<Option<Bytes>, Ended> {
        match self.0 {}
    }

    /// Never comes to be called.
    pub fn place(&self) -> &Place {
        match self.0 {}
    }
}

/// Why no connection came about: it is never tried.
#[derive(Debug, thiserror::Error)]
#[error("{MISSING}")]
pub struct Error(Never);

impl Error {
    /// Never comes to be called.
    pub fn may_pass(&self) -> bool {
        match self.0 {}
    }
}

/// How a connection ended: there was none.
#[derive(Debug, thiserror::Error)]
#[error("{MISSING}")]
pub struct Ended(Never);

//! `plaintap relay`: the streams of devices into NATS JetStream, by the crate `plaintap-relay`.

use std::{path::PathBuf, time::Duration};

use argh::{ArgsInfo, FromArgs};
use plaintap_relay::{Incoming, Named, Source, Target, connect::Server};
use tungstenite::Message;

use crate::{
    address::{Address, Way, WrongAddress},
    commands::{Size, Span},
    consume::{self, Interrupt},
    follow::{self, Follow},
    note,
};

/// Sends the streams of devices into NATS JetStream, until Ctrl-C, and keeps nothing itself.
///
/// Each message goes out as it came, to plaintap.DEVICE.event, plaintap.DEVICE.log or plaintap.DEVICE.heartbeat, once the one
/// before it is stored. Where each device's stream goes on is read back from JetStream, so that a relay may be killed and
/// started elsewhere. What a device no longer has is told by a message with a Plaintap-Gap header.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "relay",
    example = "What the agent on this computer captures, as the device lab-1:
  {command_name} --from lab-1=ws://127.0.0.1:28257/ --to nats://127.0.0.1:4222",
    example = "Two phones, and an agent at a Unix socket:
  {command_name} --from adb:R5CT1 --from adb:R5CT2 --from gw=ws+unix:/run/plaintap.sock --to nats://nats.example:4222",
    note = "The stream is made if it is not there, with --max-age and --max-bytes; one that is there is checked and never
changed. Its messages are plaintext: passwords, cookies, tokens. Say in NATS who may subscribe."
)]
pub struct RelayArgs {
    /// a device's stream, as ws://HOST:PORT/, ws+unix:/PATH or adb:SERIAL, and NAME= before it to call the device so;
    /// repeatable
    #[argh(option, arg_name = "url")]
    pub from: Vec<From>,
    /// the NATS server, as nats://HOST:PORT, nats://USER:PASSWORD@HOST:PORT or tls://HOST:PORT; several with commas
    /// (default: the context's)
    #[argh(option, arg_name = "url")]
    pub to: Option<String>,
    /// a context of the nats tool, by its name or its file's path: server, user and certificates, as far as they are
    /// not given here
    #[argh(option, arg_name = "name")]
    pub context: Option<String>,
    /// a user's credentials, as nsc writes them
    #[argh(option, arg_name = "file")]
    pub creds: Option<PathBuf>,
    /// certificates of the authorities that the server's is signed by
    #[argh(option, arg_name = "file")]
    pub tls_ca: Option<PathBuf>,
    /// the stream (default: PLAINTAP)
    #[argh(option, arg_name = "name", default = "\"PLAINTAP\".to_owned()")]
    pub stream: String,
    /// how long a stream that is made keeps messages (default: 7d)
    #[argh(option, arg_name = "time", default = "Span(Duration::from_secs(7 * 24 * 3600))")]
    pub max_age: Span,
    /// how many bytes a stream that is made keeps (default: 10G)
    #[argh(option, arg_name = "size", default = "Size(10_000_000_000)")]
    pub max_bytes: Size,
}

/// A source, and what its device is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// The device.
    pub name: String,
    /// Where its stream is.
    pub address: Address,
}

impl std::str::FromStr for From {
    type Err = WrongAddress;

    fn from_str(text: &str) -> Result<Self, WrongAddress> {
        // A name has no colon, which each address has before its query, where a = may stand.
        if let Some((name, address)) =
            text.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains(':'))
        {
            return Self { name: name.to_owned(), address: address.parse()? }.unless_kept();
        }
        let address: Address = text.parse()?;
        let name = match &address.way {
            Way::Device(device) => device.serial.clone(),
            Way::Unix(path) => path.display().to_string(),
            Way::Tcp { .. } | Way::Nats(_) => address.authority(),
        };
        Self { name, address }.unless_kept()
    }
}

impl From {
    /// What is stored already is not relayed.
    fn unless_kept(self) -> Result<Self, WrongAddress> {
        match self.address.way {
            Way::Nats(_) => Err(WrongAddress::new(
                &self.address.to_string(),
                "is stored in NATS already, where a stream can have another as its source or mirror",
            )),
            _ => Ok(self),
        }
    }
}

/// Why nothing is relayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is to be.
    #[error("no source; name one with --from, as --from ws://127.0.0.1:28257/")]
    NoSource,
    /// Ctrl-C could not be prepared for.
    #[error(transparent)]
    Interrupt(#[from] consume::Error),
    /// It can't begin.
    #[error(transparent)]
    Relay(#[from] plaintap_relay::Error),
}

/// Runs the command.
pub fn run(args: RelayArgs) -> Result<(), Error> {
    if args.from.is_empty() {
        return Err(Error::NoSource);
    }
    let target = Target {
        server: Server { url: args.to, credentials: args.creds, tls_ca: args.tls_ca, context: args.context },
        stream: args.stream,
        max_bytes: i64::try_from(args.max_bytes.0).unwrap_or(i64::MAX),
        max_age: args.max_age.0,
    };
    let sources = args.from.into_iter().map(|From { name, address }| Named {
        name,
        whole: !address.chooses(),
        open: Box::new(move || Box::new(Stream(Follow::new(address.with_backlog(), true)))),
    });
    // Nothing is to be finished: what is not acknowledged is sent again by the next relay.
    let _interrupt = Interrupt::new()?;
    Ok(plaintap_relay::run(&target, sources.collect())?)
}

/// A stream that goes on when its connection does not.
struct Stream(Follow);

impl Source for Stream {
    fn resume_after(&mut self, seq: u64, run: &str) {
        self.0.resume_after(Some((seq, run)));
    }

    fn receive(&mut self) -> Result<Incoming, String> {
        match self.0.receive() {
            Ok(follow::Incoming::Message(Message::Binary(bytes))) => Ok(Incoming::Message(bytes)),
            Ok(follow::Incoming::Message(_) | follow::Incoming::Idle) => Ok(Incoming::Nothing),
            Ok(follow::Incoming::Down(why, _)) => Ok(Incoming::Down(why)),
            Ok(follow::Incoming::Connected { .. }) => Ok(Incoming::Connected),
            Err(error) => Err(note::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_name_that_it_is_given_or_that_of_its_place() {
        for (text, name, shown) in [
            ("lab=ws://h:1/?comm=curl", "lab", "ws://h:1/"),
            ("ws://h:1/?comm=curl", "h:1", "ws://h:1/"),
            ("adb:R5", "R5", "adb:R5"),
            ("gw=adb:R5?pid=1", "gw", "adb:R5"),
            ("ws+unix:/run/p.sock", "/run/p.sock", "ws+unix:/run/p.sock"),
        ] {
            let from: From = text.parse().unwrap();
            assert_eq!((from.name.as_str(), from.address.to_string()), (name, shown.to_owned()), "{text}");
        }
        for kept in ["nats://u:secret@h/?device=a", "lab=nats://u:secret@h/?device=a"] {
            let error = kept.parse::<From>().unwrap_err().to_string();
            assert!(error.contains("stored in NATS already") && !error.contains("secret"), "{error}");
        }
        assert!("=ws://h/".parse::<From>().is_err() && "lab=h".parse::<From>().is_err());
    }
}

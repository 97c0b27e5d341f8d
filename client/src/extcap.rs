//! `plaintap extcap`: a capture interface of Wireshark. Source: Wireshark's manual page extcap(4).
//!
//! Wireshark runs the programs in its extcap folder, first to ask which interfaces they have, then to capture into a pipe.
//! A link named `plaintap-extcap` that leads to `plaintap` is such a program.

use std::{ffi::OsStr, fmt::Write, path::Path};

use crate::{
    commands::{ExtcapArgs, RecordArgs},
    record::{self, Format},
};

/// The link's name.
const LINK: &str = "plaintap-extcap";
/// The interface's name.
const INTERFACE: &str = "plaintap";

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Recording failed.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Wireshark is of another mind about what there is.
    #[error("there is no interface {0:?}, only {INTERFACE}")]
    Interface(String),
    /// It is no person's command.
    #[error("Wireshark runs this: docs/recording.md says how to have it do so")]
    Nothing,
}

/// Whether the program was called by the name of its link, so that it is to act as an extcap program.
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_stem());
    name.is_some_and(|name| name == LINK)
}

/// Captures; or answers a question, with what is to be printed.
pub fn run(args: ExtcapArgs) -> Result<String, Error> {
    if let Some(interface) = args.extcap_interface.as_ref().filter(|interface| *interface != INTERFACE) {
        return Err(Error::Interface(interface.clone()));
    }
    if args.extcap_interfaces {
        return Ok(interfaces());
    }
    if args.extcap_dlts {
        return Ok("dlt {number=1}{name=EN10MB}{display=Ethernet}\n".to_owned());
    }
    if args.extcap_config {
        return Ok(config());
    }
    match args.fifo.filter(|_| args.capture) {
        Some(fifo) => {
            record::run(RecordArgs {
                url: args.url,
                output: fifo,
                format: Some(Format::Pcapng),
                ..RecordArgs::default()
            })?;
            Ok(String::new())
        }
        None => Err(Error::Nothing),
    }
}

fn interfaces() -> String {
    let mut answer = format!("extcap {{version={}}}{{display=plaintap}}\n", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(answer, "interface {{value={INTERFACE}}}{{display=Plaintext of TLS connections}}");
    answer
}

fn config() -> String {
    let tooltip = "A plaintapd or another eCaptureQ server, and in its query what to send";
    format!(
        "arg {{number=0}}{{call=--url}}{{display=Server}}{{type=string}}{{default=ws://127.0.0.1:28257/}}\
         {{tooltip={tooltip}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_link_is_an_extcap_program() {
        for (name, expected) in [
            (Some("/x/extcap/plaintap-extcap"), true),
            (Some("plaintap-extcap.exe"), true),
            (Some("/usr/bin/plaintap"), false),
            (None, false),
        ] {
            assert_eq!(is_called(name.map(OsStr::new)), expected, "{name:?}");
        }
    }
}

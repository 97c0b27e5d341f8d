//! The command lines of the subcommands that speak to a device.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

use crate::{address::Address, http::filter::Filter, values};

/// From the cable to plaintext: puts plaintapd on the device, starts it as root, watches it, and on Ctrl-C ends it.
///
/// What is shown, and how, is as with plaintap watch. While it runs, other viewers and a browser reach the same agent at the
/// port of this computer that it names, and `plaintap record adb: -o FILE` records it.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "adb",
    example = "The only device that is connected, everything on it:
  {command_name}",
    example = "One app on one of several devices, without bodies:
  {command_name} -s 0123456789ABCDEF --package org.example.app --no-body",
    example = "Flags of plaintapd's own, behind --:
  {command_name} -- --uid 10000-19999 --snaplen 4096",
    note = "It needs root on the device: adbd's own (an eng or userdebug image), or a su that grants it to the shell, as
Magisk's. The adb server is found as adb finds it (ANDROID_ADB_SERVER_PORT, ADB_SERVER_SOCKET, ANDROID_SERIAL)."
)]
pub struct AdbArgs {
    /// the device's serial number, if there are several
    #[argh(option, short = 's', arg_name = "serial", default = "String::new()")]
    pub serial: String,
    /// capture this Android app; repeatable
    #[argh(option, arg_name = "id")]
    pub package: Vec<String>,
    /// the plaintapd for the device (default: plaintapd-aarch64 or plaintapd-x86_64 beside plaintap)
    #[argh(option, arg_name = "file")]
    pub agent: Option<PathBuf>,
    /// the port of this computer for other viewers (default: a free one)
    #[argh(option, arg_name = "port", default = "0", from_str_fn(values::port))]
    pub port: u16,
    /// show the agent's log lines too
    #[argh(switch)]
    pub logs: bool,
    /// print one JSON object a line, whole and with the payload in base64
    #[argh(switch)]
    pub json: bool,
    /// show every event as it comes, and don't put HTTP together
    #[argh(switch)]
    pub raw: bool,
    /// show only what matches, as 'host=example.com and status=4xx'
    #[argh(option, arg_name = "expr")]
    pub filter: Option<Filter>,
    /// show no bodies
    #[argh(switch)]
    pub no_body: bool,
    /// show at most this many bytes of each body (default: 65536)
    #[argh(option, arg_name = "bytes", default = "65536", from_str_fn(values::bytes))]
    pub max_body: usize,
    /// end after this many events
    #[argh(option, arg_name = "number", from_str_fn(values::from_one))]
    pub count: Option<std::num::NonZeroU64>,
    /// no colour, even if stdout is a terminal
    #[argh(switch)]
    pub no_color: bool,
    /// flags for plaintapd, behind --
    #[argh(positional, arg_name = "flags")]
    pub flags: Vec<String>,
}

/// Finds out what keeps plaintext from coming: this computer's adb, the device, the way to it, and by plaintapd's own doctor
/// whether the device is fit.
///
/// Each line is ok, warning (it works, and misses something) or failure, with the remedy. The exit code is 0 if nothing
/// fails, 1 if something on the way fails, else that of plaintapd doctor.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(
    subcommand,
    name = "doctor",
    example = "The only device that is connected:
  {command_name}",
    example = "One of several:
  {command_name} adb:0123456789ABCDEF",
    example = "An agent that is reached by other ways, its port and protocol only:
  {command_name} ws://127.0.0.1:28257/"
)]
pub struct DoctorArgs {
    /// the device, as adb:SERIAL, or a server, as ws://HOST:PORT/ (default: adb:)
    #[argh(positional, default = "Address::device(String::new())", arg_name = "url")]
    pub url: Address,
    /// the plaintapd for the device (default: plaintapd-aarch64 or plaintapd-x86_64 beside plaintap)
    #[argh(option, arg_name = "file")]
    pub agent: Option<PathBuf>,
}

//! An adb server with a device, which is this computer with a home folder of its own: as much of adb as plaintap speaks.
//! Source: AOSP, packages/modules/adb, OVERVIEW.TXT, SERVICES.TXT, SYNC.TXT and shell_protocol.h.
//!
//! It listens until the tests' process ends. The agents on its device end when it is dropped.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process;

/// The device's serial number.
pub const SERIAL: &str = "FAKE";
/// Where it is plugged in.
pub const PORT: &str = "usb:1-1";

/// A running server.
pub struct Adb {
    /// Where it listens.
    pub port: u16,
    home: TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    plugged: bool,
    /// Another device is there that has the same serial number, and trusts nobody.
    twin: bool,
    /// Who wants to know of each change.
    trackers: Vec<TcpStream>,
    /// So many lists of devices are refused from now on.
    refusals: u32,
}

impl Adb {
    /// A server without its device.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (home, state) = (TempDir::with_prefix("plaintap-adb-")?, Arc::<Mutex<State>>::default());
        let this = Self { port: listener.local_addr()?.port(), home, state };
        let (state, home) = (this.state.clone(), this.home.path().to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (state, home) = (state.clone(), home.clone());
                // A client that goes in the middle of a word is no news.
                thread::spawn(move || serve(client, &state, &home));
            }
        });
        Ok(this)
    }

    /// Plugs the device in; the next `refusals` questions for the list of devices are refused.
    pub fn plug(&self, refusals: u32) -> Result<()> {
        self.change(|state| (state.plugged, state.refusals) = (true, refusals))
    }

    /// Has another device there with the same serial number, or not any more. It can't be used.
    pub fn plug_twin(&self, there: bool) -> Result<()> {
        self.change(|state| state.twin = there)
    }

    fn change(&self, how: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = lock(&self.state)?;
        how(&mut state);
        let list = list(&state);
        state.trackers.retain(|mut tracker| tracker.write_all(list.as_bytes()).is_ok());
        Ok(())
    }

    /// How many are told when the device comes.
    pub fn trackers(&self) -> Result<usize> {
        Ok(lock(&self.state)?.trackers.len())
    }

    /// Where the agent is put on the device.
    pub fn program(&self) -> PathBuf {
        self.home.path().join("plaintapd")
    }

    /// The processes of the agent that was put on the device.
    pub fn agents(&self) -> Result<Vec<u32>> {
        let path = self.program();
        let mut agents = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == path) {
                agents.push(pid);
            }
        }
        Ok(agents)
    }
}

impl Drop for Adb {
    fn drop(&mut self) {
        for pid in self.agents().unwrap_or_default() {
            // Its other half may have taken it along.
            let _ = process::send(pid, Signal::SIGKILL);
        }
    }
}

fn lock(state: &Mutex<State>) -> Result<MutexGuard<'_, State>> {
    state.lock().map_err(|_| anyhow!("a thread panicked"))
}

fn text(text: &str) -> String {
    format!("{:04x}{text}", text.len())
}

fn list(state: &State) -> String {
    let mut lines = String::new();
    if state.plugged {
        lines += &format!("{SERIAL} device {PORT} transport_id:1\n");
    }
    if state.twin {
        lines += &format!("{SERIAL} unauthorized usb:1-2 transport_id:2\n");
    }
    text(&lines)
}

/// What a client asks for.
fn request(client: &mut TcpStream) -> Result<String> {
    let mut digits = [0; 4];
    client.read_exact(&mut digits)?;
    let mut request = vec![0; usize::from_str_radix(str::from_utf8(&digits)?, 16)?];
    client.read_exact(&mut request)?;
    Ok(String::from_utf8(request)?)
}

fn serve(mut client: TcpStream, state: &Mutex<State>, home: &Path) -> Result<()> {
    let asked = request(&mut client)?;
    match asked.as_str() {
        "host:devices-l" => {
            let mut state = lock(state)?;
            if state.refusals > 0 {
                state.refusals -= 1;
                return refuse(&mut client, "not now");
            }
            client.write_all(format!("OKAY{}", list(&state)).as_bytes())?;
        }
        "host:track-devices" => {
            let mut state = lock(state)?;
            client.write_all(format!("OKAY{}", list(&state)).as_bytes())?;
            state.trackers.push(client);
        }
        asked if [SERIAL, PORT].iter().any(|name| asked == format!("host:transport:{name}")) => {
            client.write_all(b"OKAY")?;
            service(client, home)?;
        }
        asked => refuse(&mut client, &format!("unknown: {asked}"))?,
    }
    Ok(())
}

fn refuse(client: &mut TcpStream, why: &str) -> Result<()> {
    Ok(client.write_all(format!("FAIL{}", text(why)).as_bytes())?)
}

/// A service of the device.
fn service(mut client: TcpStream, home: &Path) -> Result<()> {
    let asked = request(&mut client)?;
    if let Some(command) = asked.strip_prefix("shell,v2,raw:") {
        client.write_all(b"OKAY")?;
        return shell(client, home, command);
    }
    if asked == "sync:" {
        client.write_all(b"OKAY")?;
        return sync(client);
    }
    let Some(name) = asked.strip_prefix("localabstract:") else { return refuse(&mut client, "closed") };
    let Ok(there) = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?) else {
        return refuse(&mut client, "closed");
    };
    client.write_all(b"OKAY")?;
    let (mut up, mut down) = ((client.try_clone()?, there.try_clone()?), (there, client));
    thread::spawn(move || {
        let _ = io::copy(&mut up.0, &mut up.1);
        up.1.shutdown(Shutdown::Both)
    });
    // Whoever ends, ends both.
    let _ = io::copy(&mut down.0, &mut down.1);
    Ok(down.1.shutdown(Shutdown::Both)?)
}

/// Runs a command; it goes on when its client has gone.
fn shell(mut client: TcpStream, home: &Path, command: &str) -> Result<()> {
    // Its standard error goes where its output does: nobody tells them apart.
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut packet = |kind: u8, data: &[u8]| -> Result<()> {
        let head = [&[kind][..], &u32::try_from(data.len())?.to_le_bytes()].concat();
        // Its output has to be read to its end all the same.
        let _ = client.write_all(&[&head, data].concat());
        Ok(())
    };
    let mut output = child.stdout.take().context("no pipe for its output")?;
    let mut piece = [0; 4096];
    loop {
        let length = output.read(&mut piece)?;
        if length == 0 {
            break;
        }
        packet(1, &piece[..length])?;
    }
    let code = child.wait()?.code().unwrap_or(255);
    packet(3, &[u8::try_from(code)?])
}

/// Takes a file.
fn sync(mut client: TcpStream) -> Result<()> {
    let mut take = || -> Result<([u8; 4], Vec<u8>)> {
        let (mut word, mut length) = ([0; 4], [0; 4]);
        client.read_exact(&mut word)?;
        client.read_exact(&mut length)?;
        let mut data = vec![0; if &word == b"DONE" { 0 } else { u32::from_le_bytes(length) as usize }];
        client.read_exact(&mut data)?;
        Ok((word, data))
    };
    let (word, target) = take()?;
    ensure!(&word == b"SEND", "{word:?}");
    let target = String::from_utf8(target)?;
    let (path, _) = target.rsplit_once(',').context("no mode")?;
    let mut file = Vec::new();
    loop {
        match take()? {
            (word, data) if &word == b"DATA" => file.extend(data),
            (word, _) if &word == b"DONE" => break,
            (word, _) => bail!("{word:?}"),
        }
    }
    // By another program: what this process has open to write, so have the children that other tests start just now, and while
    // they do, it can't be executed.
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\"", path])
        .stdin(Stdio::piped())
        .spawn()?;
    writer.stdin.take().context("no pipe to its input")?.write_all(&file)?;
    ensure!(writer.wait()?.success(), "can't write {path}");
    Ok(client.write_all(b"OKAY\0\0\0\0")?)
}

//! What a service manager is told that asks for it: that we are ready, alive, ending. Source: sd_notify(3).

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// Tells the service manager `state`, as `READY=1`, if there is one that wants to know.
pub fn tell(state: &str) {
    let Ok(place) = env::var("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&place, state) {
        log::warn!("can't tell the service manager {state} at {place}: {error}");
    }
}

fn send(place: &str, state: &str) -> io::Result<()> {
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold us up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// How often it wants a sign of life, if it does: twice in the time after which it takes us for stuck.
pub fn watchdog() -> Option<Duration> {
    let microseconds: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    env::var_os("NOTIFY_SOCKET")?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds) / 2)
}

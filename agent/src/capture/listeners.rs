//! The TCP ports that were listened on before the probes came: who accepted a connection is told by them.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Source: linux, include/net/tcp_states.h; as /proc/net/tcp writes it.
const LISTEN: &str = "0A";

/// The ports listened on in every network namespace that a process of `proc` (normally `/proc`) is in.
pub fn ports(proc: &Path) -> HashSet<u16> {
    let mut namespaces = HashSet::new();
    let mut ports = HashSet::new();
    let mut look = |process: PathBuf| {
        // A process may be gone, or not ours to look at.
        let Ok(namespace) = fs::read_link(process.join("ns/net")) else { return };
        if !namespaces.insert(namespace) {
            return;
        }
        ports.extend(in_namespace(&process));
    };
    look(proc.join("self"));
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            look(entry.path());
        }
    }
    ports
}

/// The ports listened on in the network namespace of the process with the folder `process`, as `/proc/PID`.
pub fn in_namespace(process: &Path) -> HashSet<u16> {
    let files =
        ["net/tcp", "net/tcp6"].into_iter().filter_map(|table| fs::File::open(process.join(table)).ok());
    files
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| port(&line)))
        .collect()
}

/// The local port of a line of /proc/net/tcp, if it is of a listening socket.
/// Source: linux, Documentation/networking/proc_net_tcp.rst.
fn port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (_, port) = fields.next()?.rsplit_once(':')?;
    (fields.nth(1)? == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        let ports = ports(Path::new("/proc"));
        assert!(ports.contains(&listener.local_addr().unwrap().port()));
        assert!(ports.contains(&six.local_addr().unwrap().port()));
    }

    #[test]
    fn only_listening_sockets_count() {
        let line =
            "   0: 0100007F:6E61 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1";
        assert_eq!(port(line), Some(28257));
        assert_eq!(port(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(port("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(port(""), None);
    }
}

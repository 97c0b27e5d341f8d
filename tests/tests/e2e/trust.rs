//! Who may connect: by user, by token, and from where; and that who talks to clients has nothing to give away.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use plaintap_tests::agent::{self, Agent};
use plaintap_tests::raw::{ask, handshake};
use plaintap_tests::stream::Client;
use plaintap_tests::{BORINGSSL, PATIENCE, process, until};

const TOKEN: &str = "an-example-of-a-token-0123456789";

fn token_file() -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    writeln!(file, "{TOKEN}")?;
    Ok(file)
}

fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("no UTF-8")
}

/// The first line of the answer that a process of user `uid` gets to a handshake at `port`, and the answer's last line.
fn answer_to(uid: u32, port: u16) -> Result<(String, String)> {
    let script = "exec 3<>/dev/tcp/127.0.0.1/$1; printf '%s' \"$2\" >&3; read -r first <&3; printf '%s\\n' \"$first\"; \
                  [[ $first == *' 101 '* ]] || cat <&3";
    let request = String::from_utf8(handshake("/?logs=0", port, &[]))?;
    let mut command = Command::new("timeout");
    command.args(["20", "bash", "-c", script, "bash", &port.to_string(), &request]);
    let answer = command.uid(uid).gid(uid).output()?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let mut lines = answer.lines().map(str::to_owned);
    let first = lines.next().with_context(|| format!("no answer to uid {uid}"))?.trim_end().to_owned();
    Ok((first, lines.next_back().unwrap_or_default()))
}

/// What a Unix socket answers to a handshake.
fn answer_at(mut socket: UnixStream) -> Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&handshake("/", 28257, &[]))?;
    let mut answer = [0; 12];
    socket.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn other_users_are_refused_until_they_are_allowed() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL, "--allow-uid", "5000-5001", "--allow-uid", "6000"])?;
    for uid in [0, 5000, 5001, 6000] {
        let (first, _) = answer_to(uid, agent.port)?;
        assert_eq!(first, "HTTP/1.1 101 Switching Protocols", "uid {uid}");
    }
    for uid in [5002, 65_534] {
        let (first, last) = answer_to(uid, agent.port)?;
        assert_eq!(first, "HTTP/1.1 403 Forbidden", "uid {uid}");
        assert!(last.contains(&format!("--allow-uid {uid}")), "{last}");
        agent.log().wait_for(0, "the refusal in the log", |line| {
            line.contains("refused client peer=127.0.0.1:") && line.contains(&format!("uid={uid}"))
        })?;
    }
    Ok(())
}

/// A process of user `uid` that opens 40 connections to `port` and sends nothing, and the first line that the last one got;
/// more of them where it got none, as the others had been given up before it came.
fn silent_crowd(uid: u32, port: u16) -> Result<(process::Process, String)> {
    const SCRIPT: &str = "import socket, sys\n\
                          address = ('127.0.0.1', int(sys.argv[1]))\n\
                          first = b''\n\
                          while not first:\n\
                          \x20   crowd = [socket.create_connection(address, 20) for _ in range(40)]\n\
                          \x20   first = crowd[-1].makefile('rb').readline()\n\
                          print(first.decode().strip(), flush=True)\n\
                          sys.stdin.read()";
    let mut command = Command::new("python3");
    let crowd = process::Process::start(command.args(["-c", SCRIPT, &port.to_string()]).uid(uid).gid(uid))?;
    let (_, first) = crowd.stdout.wait_for(0, "an answer to the last connection", |_| true)?;
    Ok((crowd, first))
}

#[test]
fn one_users_silent_connections_keep_nobody_else_out() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL, "--allow-uid", "5000"])?;
    for (uid, told) in [(65_534, "HTTP/1.1 403 Forbidden"), (5000, "HTTP/1.1 503 Service Unavailable")] {
        let (crowd, first) = silent_crowd(uid, agent.port)?;
        assert_eq!(first, told, "uid {uid}");
        assert_eq!(answer_to(0, agent.port)?.0, "HTTP/1.1 101 Switching Protocols", "beside uid {uid}");
        drop(crowd);
    }
    Ok(())
}

#[test]
fn a_token_is_asked_of_everybody_and_is_never_told() -> Result<()> {
    let file = token_file()?;
    let agent =
        Agent::start(&["--library", BORINGSSL, "--token-file", text(file.path())?, "--log-level", "trace"])?;
    let status = |path: &str, headers: &[(&str, &str)]| {
        Ok::<u16, anyhow::Error>(ask(agent.port, &handshake(path, agent.port, headers))?.status)
    };
    assert_eq!(status("/", &[])?, 401);
    let told = ask(agent.port, &handshake("/", agent.port, &[]))?.text;
    assert!(told.ends_with(".\n"), "{told:?}");
    assert_eq!(status("/", &[("Authorization", &format!("Bearer {TOKEN}"))])?, 101);
    assert_eq!(status(&format!("/?token={TOKEN}"), &[])?, 101);
    assert_eq!(status(&format!("/?logs=0&token={TOKEN}"), &[])?, 101);
    assert_eq!(status("/", &[("Authorization", &format!("Basic {TOKEN}"))])?, 401);
    for _ in 0..10 {
        assert_eq!(status(&format!("/?token={TOKEN}x"), &[])?, 401);
    }
    assert_eq!(status(&format!("/?token={TOKEN}"), &[])?, 429, "after ten guesses");
    let said = agent.log().all();
    assert!(!said.iter().any(|line| line.contains(TOKEN)), "{said:#?}");
    Ok(())
}

#[test]
fn a_token_file_that_others_can_read_and_places_that_need_one_are_refused_with_2() -> Result<()> {
    let file = token_file()?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
    for arguments in [
        &["--token-file", text(file.path())?][..],
        &["--token-file", "/nonexistent"],
        &["--ecaptureq", "ws://0.0.0.0:0/"],
        &["--ecaptureq", "ws://lo:28257/"],
        &["--user", "no-such-user"],
    ] {
        let refusal = agent::refusal(agent::plaintapd()?.args(arguments))?;
        assert_eq!(refusal.code, Some(2), "{arguments:?}: {refusal:?}");
        refusal.error()?;
    }
    Ok(())
}

#[test]
fn several_places_are_served_at_once_and_a_socket_goes_with_its_agent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let path = folder.path().join("socket");
    let name = format!("plaintap-{}", std::process::id());
    let (file_url, abstract_url) = (format!("ws+unix:{}", path.display()), format!("ws+unix:@{name}"));
    let arguments = ["--ecaptureq", &file_url, "--ecaptureq", &abstract_url, "--library", BORINGSSL];
    let mut agent = Agent::start(&arguments)?;
    for url in [&file_url, &abstract_url] {
        agent.log().wait_for(0, "both places", |line| line.ends_with(&format!("listening url={url}")))?;
    }
    let address = {
        use std::os::linux::net::SocketAddrExt;
        std::os::unix::net::SocketAddr::from_abstract_name(&name)?
    };
    assert_eq!(answer_at(UnixStream::connect(&path)?)?, "HTTP/1.1 101");
    assert_eq!(answer_at(UnixStream::connect_addr(&address)?)?, "HTTP/1.1 101");
    assert_eq!(answer_to(0, agent.port)?.0, "HTTP/1.1 101 Switching Protocols");
    let second =
        agent::refusal(agent::plaintapd()?.args(["--ecaptureq", &file_url, "--library", BORINGSSL]))?;
    assert_eq!(second.code, Some(5), "{second:?}");
    agent.signal(Signal::SIGTERM)?;
    agent.wait()?;
    assert!(!path.exists());
    Ok(())
}

/// The first line of what a process of user `uid` is answered at the Unix socket `path`.
fn answer_through(path: &std::path::Path, uid: u32) -> Result<String> {
    const SCRIPT: &str = "import socket, sys\n\
                          s = socket.socket(socket.AF_UNIX)\n\
                          s.settimeout(20)\n\
                          s.connect(sys.argv[1])\n\
                          s.sendall(sys.argv[2].encode())\n\
                          print(s.makefile('rb').readline().decode().strip())";
    let request = String::from_utf8(handshake("/", 28257, &[]))?;
    let mut command = Command::new("python3");
    let output = command.args(["-c", SCRIPT, text(path)?, &request]).uid(uid).gid(uid).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[test]
fn a_unix_socket_knows_its_clients_users() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let path = folder.path().join("socket");
    let url = format!("ws+unix:{}", path.display());
    let agent = Agent::start(&["--ecaptureq", &url, "--library", BORINGSSL, "--allow-uid", "5000"])?;
    agent.log().wait_for(0, "the socket", |line| line.ends_with(&format!("listening url={url}")))?;
    for (uid, answer) in [(0, "HTTP/1.1 101 Switching Protocols"), (5000, "HTTP/1.1 101 Switching Protocols")]
    {
        assert_eq!(answer_through(&path, uid)?, answer, "uid {uid}");
    }
    assert_eq!(answer_through(&path, 5001)?, "HTTP/1.1 403 Forbidden");
    agent.log().wait_for(0, "the refusal", |line| line.contains("refused client peer=unix uid=5001"))?;
    Ok(())
}

#[test]
fn no_more_clients_come_in_than_are_allowed() -> Result<()> {
    let agent = Agent::start(&["--library", BORINGSSL, "--max-clients", "2"])?;
    let _clients = [Client::connect(&agent.url)?, Client::connect(&agent.url)?];
    assert_eq!(ask(agent.port, &handshake("/", agent.port, &[]))?.status, 503);
    Ok(())
}

#[test]
fn as_many_clients_come_in_as_are_allowed_whatever_the_shell_allows_of_open_files() -> Result<()> {
    let agent = Agent::start_after("ulimit -S -n 64", &["--library", BORINGSSL, "--max-clients", "100"])?;
    let clients: Vec<_> = (0..100).map(|_| Client::connect(&agent.url)).collect::<Result<_>>()?;
    assert_eq!(ask(agent.port, &handshake("/", agent.port, &[]))?.status, 503);
    drop(clients);
    Ok(())
}

#[test]
fn a_socket_of_a_killed_agent_is_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("socket");
    let url = format!("ws+unix:{}", path.display());
    let mut agent = Agent::start(&["--ecaptureq", &url, "--library", BORINGSSL])?;
    let child = agent.child()?;
    agent.signal(Signal::SIGKILL)?;
    agent.wait()?;
    until("the serving half to end", || Ok((!process::runs(child)).then_some(())))?;
    assert!(path.exists());
    let agent = Agent::start(&["--ecaptureq", &url, "--library", BORINGSSL])?;
    agent.log().wait_for(0, "the socket", |line| line.ends_with(&format!("listening url={url}")))?;
    assert_eq!(answer_at(UnixStream::connect(&path)?)?, "HTTP/1.1 101");
    Ok(())
}

#[test]
fn who_talks_to_clients_is_nobody_and_can_do_nothing() -> Result<()> {
    for (arguments, uid) in [(&[][..], 65_534), (&["--user", "7777"], 7777)] {
        let agent = Agent::start(&[&["--library", BORINGSSL], arguments].concat())?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.child()?))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
        };
        assert_eq!(field("Uid"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(field("Gid"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!((field("Groups").as_str(), field("NoNewPrivs").as_str()), ("", "1"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0".repeat(16), "{set}");
        }
        for pid in agent.pids()? {
            // Files of a process that leaves no core and can't be traced are root's.
            let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
            let core =
                limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
            assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
            let looks = Command::new("cat").arg(format!("/proc/{pid}/maps")).uid(uid).gid(uid).output()?;
            assert!(!looks.status.success(), "its own user can look into process {pid}");
        }
    }
    Ok(())
}

/// Network namespaces of this test's own, and a pair of interfaces between them.
struct Namespaces {
    device: String,
    computer: String,
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip: install iproute2")?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Namespaces {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [device, computer] =
            ["device", "computer"].map(|name| format!("pt-{name}-{}-{number}", std::process::id()));
        let this = Self { device, computer };
        for name in [&this.device, &this.computer] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(this)
    }

    /// Plugs the cable in.
    fn plug(&self) -> Result<()> {
        ip(&[
            "-n",
            &self.device,
            "link",
            "add",
            "usb0",
            "type",
            "veth",
            "peer",
            "name",
            "usb0",
            "netns",
            &self.computer,
        ])?;
        for (name, address) in [(&self.device, "192.168.42.1/24"), (&self.computer, "192.168.42.2/24")] {
            ip(&["-n", name, "addr", "add", address, "dev", "usb0"])?;
            ip(&["-n", name, "link", "set", "usb0", "up"])?;
        }
        Ok(())
    }

    /// Whether a client in namespace `name` is let in at `host`, with the token or without.
    fn comes_in(&self, name: &str, host: &str, token: &str) -> Result<bool> {
        let script = format!(
            "exec 3<>/dev/tcp/{host}/28257 && printf 'GET /?logs=0{token} HTTP/1.1\\r\\nHost: {host}\\r\\nUpgrade: \
             websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: \
             dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n' >&3 && head -c 12 <&3"
        );
        let output = Command::new("ip")
            .args(["netns", "exec", name, "timeout", "20", "bash", "-c", &script])
            .output()?;
        Ok(output.stdout == b"HTTP/1.1 101")
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.device, &self.computer] {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

#[test]
fn an_agent_that_starts_before_any_network_is_up_is_there_when_one_comes() -> Result<()> {
    let namespaces = Namespaces::new()?;
    ip(&["-n", &namespaces.device, "link", "set", "lo", "down"])?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespaces.device]).arg(agent::plaintapd()?.get_program());
    let agent = process::Process::start(command.args(["--library", BORINGSSL]))?;
    agent.stderr.wait_for(0, "the listener", |line| line.contains(" listening url="))?;
    assert!(!namespaces.comes_in(&namespaces.device, "127.0.0.1", "")?);
    ip(&["-n", &namespaces.device, "link", "set", "lo", "up"])?;
    assert!(namespaces.comes_in(&namespaces.device, "127.0.0.1", "")?);
    Ok(())
}

#[test]
fn an_interface_is_served_as_its_cable_comes_and_goes_to_those_with_the_token() -> Result<()> {
    let namespaces = Namespaces::new()?;
    let file = token_file()?;
    let mut command = Command::new("ip");
    let plaintapd = agent::plaintapd()?;
    command.args(["netns", "exec", &namespaces.device]).arg(plaintapd.get_program());
    command
        .args(["--ecaptureq", "ws://usb0:28257/", "--library", BORINGSSL, "--token-file"])
        .arg(file.path());
    let agent = process::Process::start(&mut command)?;
    let token = format!("&token={TOKEN}");
    let listening = |from: usize, word: &str| {
        agent.stderr.wait_for(from, word, |line| {
            line.contains(&format!("{word} url=ws://192.168.42.1:28257/ interface=usb0"))
        })
    };
    namespaces.plug()?;
    let (line, _) = listening(0, " listening")?;
    assert!(namespaces.comes_in(&namespaces.computer, "192.168.42.1", &token)?);
    assert!(!namespaces.comes_in(&namespaces.computer, "192.168.42.1", "")?);
    assert!(
        !namespaces.comes_in(&namespaces.device, "127.0.0.1", &token)?,
        "it listens on that interface only"
    );
    ip(&["-n", &namespaces.device, "link", "del", "usb0"])?;
    let (line, _) = listening(line, "no longer listening")?;
    namespaces.plug()?;
    listening(line + 1, " listening")?;
    assert!(namespaces.comes_in(&namespaces.computer, "192.168.42.1", &token)?);
    assert!(agent.stderr.all().iter().any(|line| line.contains("WRN") && line.contains("not encrypted")));
    Ok(())
}

#[test]
fn a_socket_that_the_service_manager_hands_over_is_served() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    // Inherited by what is started, as what a service manager hands over is.
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let script = format!("exec env LISTEN_FDS=1 LISTEN_PID=$$ \"$@\" 3<&{}", listener.as_raw_fd());
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash"]).arg(agent::plaintapd()?.get_program());
    let agent = process::Process::start(command.args(["--library", BORINGSSL]))?;
    drop(listener);
    agent
        .stderr
        .wait_for(0, "the socket", |line| line.ends_with(&format!("listening url=ws://127.0.0.1:{port}/")))?;
    assert_eq!(answer_to(0, port)?.0, "HTTP/1.1 101 Switching Protocols");
    Ok(())
}

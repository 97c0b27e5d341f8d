//! What `plaintap record` keeps of real conversations, as Wireshark's own dissectors read it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::certificate;
use plaintap_tests::process::Process;
use plaintap_tests::program::unique_name;
use plaintap_tests::{OPENSSL, need, net, process, until};
use tempfile::TempDir;

/// An agent that captures threads of some names, and `plaintap record` as its client.
struct Recorded {
    plaintap: Process,
    _agent: Agent,
}

impl Recorded {
    fn start(names: &[&str], file: &Path) -> Result<Self> {
        let names = names.iter().flat_map(|name| ["--comm", *name]);
        let agent = Agent::start(&["--library", OPENSSL].into_iter().chain(names).collect::<Vec<_>>())?;
        let mut command = Command::new(need::binary("plaintap")?);
        command.args(["record", "-o"]).arg(file).arg(&agent.url);
        let plaintap = Process::start(&mut command)?;
        agent.log().wait_for(0, "a client", |line| line.contains("client connected"))?;
        Ok(Self { plaintap, _agent: agent })
    }

    fn signal(mut self, signal: Signal) -> Result<()> {
        self.plaintap.signal(signal)?;
        let status = self.plaintap.wait()?;
        ensure!(signal == Signal::SIGKILL || status.success(), "it ended with {status}");
        Ok(())
    }
}

/// A server of HTTP/1.1 over TLS, whose threads have this name, and its port.
fn https(certificate: &TempDir, name: &str) -> Result<(Process, u16)> {
    let python = process::renamed(Path::new("/usr/bin/python3"), certificate.path(), name)?;
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/https.py"));
    command.arg(certificate.path().join("cert.pem")).arg(certificate.path().join("key.pem"));
    let server = Process::start(&mut command)?;
    let (_, port) = server.stdout.wait_for(0, "its port", |_| true)?;
    Ok((server, port.parse()?))
}

fn run(command: &mut Command) -> Result<Vec<String>> {
    let mut process = Process::start(command)?;
    process.close_input();
    let said = process.stdout.to_the_end()?;
    ensure!(process.wait()?.success(), "{command:?}: {}", process.stderr.all().join("\n"));
    Ok(said)
}

/// A curl of this name, which other tests' have not.
fn curl(folder: &TempDir, name: &str) -> Result<PathBuf> {
    process::renamed(&need::program("curl", "curl")?, folder.path(), name)
}

fn fetch(curl: &Path, arguments: &[&str]) -> Result<Vec<String>> {
    run(Command::new(curl)
        .args(["--silent", "--insecure", "--max-time", "15", "-o", "/dev/null"])
        .args(arguments))
}

/// The fields of each frame that `filter` chooses, tabs between them.
fn tshark(file: &Path, port: u16, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
    let mut tshark = Command::new(need::program("tshark", "tshark")?);
    tshark.arg("-r").arg(file).args(["-d", &format!("tcp.port=={port},http"), "-Y", filter, "-T", "fields"]);
    run(tshark.args(fields.iter().flat_map(|field| ["-e", field])))
}

/// Waits until the recorder has nothing in hand: the file holds `text`.
fn holds(file: &Path, text: &str) -> Result<()> {
    until(text, || {
        let bytes = fs::read(file).unwrap_or_default();
        Ok(bytes.windows(text.len()).any(|window| window == text.as_bytes()).then_some(()))
    })
}

#[test]
fn wireshark_reads_http1_of_curl_as_curl_said_it() -> Result<()> {
    let certificate = certificate()?;
    let [server, client] = [unique_name(), unique_name()];
    let (_server, port) = https(&certificate, &server)?;
    let curl = curl(&certificate, &client)?;
    let file = certificate.path().join("http1.pcapng");
    let recorded = Recorded::start(&[&client], &file)?;
    let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let body = certificate.path().join("body");
    fs::write(&body, "x".repeat(100_000))?;
    fetch(&curl, &[&at("/gzip"), &at("/chunked"), &at("/image"), &at("/nowhere")])?;
    fetch(&curl, &["--data-binary", &format!("@{}", body.display()), &at("/post/last")])?;
    holds(&file, "100000 bytes came")?;
    recorded.signal(Signal::SIGINT)?;

    let mine = format!("tcp.port=={port} && http");
    let fields = ["http.request.method", "http.request.uri", "http.response.code", "http.file_data"];
    let lines = tshark(&file, port, &mine, &fields[..3])?;
    let expected = [
        "GET\t/gzip\t",
        "\t\t200",
        "GET\t/chunked\t",
        "\t\t200",
        "GET\t/image\t",
        "\t\t200",
        "GET\t/nowhere\t",
        "\t\t404",
        "POST\t/post/last\t",
        "\t\t201",
    ];
    ensure!(lines == expected, "{lines:#?}");
    let lengths = tshark(&file, port, &format!("{mine} && http.content_length"), &["http.content_length"])?;
    ensure!(lengths.contains(&"100000".to_owned()) && lengths.contains(&"108".to_owned()), "{lengths:?}");
    let bodies = tshark(&file, port, &format!("{mine}.file_data"), &["http.file_data"])?;
    let sizes: Vec<usize> = bodies.iter().map(String::len).collect();
    ensure!(sizes.iter().any(|size| *size >= 100_000), "{sizes:?}");

    // The connection is whole: no number is odd, and each comment names the process.
    let odd = tshark(
        &file,
        port,
        "tcp.analysis.flags || ip.checksum.status==0 || tcp.checksum.status==0",
        &["frame.number"],
    )?;
    ensure!(odd.is_empty(), "{odd:?}");
    let comments = tshark(&file, port, &format!("{mine}.request"), &["frame.comment"])?;
    let process = format!("{client}[");
    ensure!(comments.iter().all(|comment| comment.contains(&process)), "{comments:?}");
    Ok(())
}

#[test]
fn wireshark_reads_http2_of_curl() -> Result<()> {
    let certificate = certificate()?;
    let folder = certificate.path();
    fs::write(folder.join("page"), "y".repeat(30_000))?;
    let port = net::free_port()?;
    let mut command = Command::new(need::program("nghttpd", "nghttp2-server")?);
    command.args(["--address=127.0.0.1", "-d"]).arg(folder).arg(port.to_string());
    command.arg(folder.join("key.pem")).arg(folder.join("cert.pem"));
    let mut server = Process::start(&mut command)?;
    until("nghttpd to listen", || {
        ensure!(server.ended()?.is_none(), "nghttpd ended: {}", server.stderr.all().join("\n"));
        Ok(net::listens(port)?.then_some(()))
    })?;
    let client = unique_name();
    let curl = curl(&certificate, &client)?;
    let file = folder.join("http2.pcapng");
    let recorded = Recorded::start(&[&client], &file)?;
    let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
    fetch(&curl, &["--http2", &at("/page"), &at("/none")])?;
    holds(&file, "Not Found")?;
    recorded.signal(Signal::SIGINT)?;

    let fields = ["http2.headers.method", "http2.headers.path", "http2.headers.status"];
    let lines = tshark(&file, port, "http2.headers.method", &fields[..2])?;
    ensure!(lines == ["GET\t/page", "GET\t/none"], "{lines:?}");
    let lines = tshark(&file, port, "http2.headers.status", &fields[2..])?;
    ensure!(lines == ["200", "404"], "{lines:?}");
    let lines = tshark(&file, port, "http2.body.reassembled.length", &["http2.body.reassembled.length"])?;
    ensure!(lines.first().is_some_and(|length| length == "30000"), "{lines:?}");
    Ok(())
}

#[test]
fn a_recorder_that_is_killed_leaves_what_came_of_both_ends_of_a_connection() -> Result<()> {
    let certificate = certificate()?;
    let [server, client] = [unique_name(), unique_name()];
    let (_server, port) = https(&certificate, &server)?;
    let curl = curl(&certificate, &client)?;
    let file = certificate.path().join("killed.pcapng");
    // Both ends of the connection are on this computer, and are two connections.
    let recorded = Recorded::start(&[&server, &client], &file)?;
    let path = format!("/killed/{port}");
    fetch(&curl, &[&format!("https://127.0.0.1:{port}{path}")])?;
    until("both ends", || {
        let bytes = fs::read(&file).unwrap_or_default();
        let request = format!("GET {path}");
        Ok((bytes.windows(request.len()).filter(|window| *window == request.as_bytes()).count() == 2)
            .then_some(()))
    })?;
    recorded.signal(Signal::SIGKILL)?;
    let filter = format!("http.request.uri==\"{path}\"");
    let lines = tshark(&file, port, &filter, &["tcp.stream", "frame.comment"])?;
    ensure!(lines.len() == 2, "{lines:?}");
    lines.iter().find(|line| line.contains(&format!("{client}["))).context("curl's end")?;
    lines.iter().find(|line| line.contains("made up")).context("the other end, said to be so")?;
    Ok(())
}

#[test]
fn a_har_of_a_recorder_that_was_killed_is_json_and_says_what_curl_said() -> Result<()> {
    let certificate = certificate()?;
    let [server, client] = [unique_name(), unique_name()];
    let (_server, port) = https(&certificate, &server)?;
    let curl = curl(&certificate, &client)?;
    let file = certificate.path().join("killed.har");
    let recorded = Recorded::start(&[&client], &file)?;
    let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
    fetch(&curl, &[&at("/gzip"), &at("/chunked"), &at("/image"), &at("/nowhere?a=b")])?;
    holds(&file, &at("/nowhere?a=b"))?;
    recorded.signal(Signal::SIGKILL)?;

    let script = "import json, sys
for entry in json.load(open(sys.argv[1]))['log']['entries']:
    request, response = entry['request'], entry['response']
    if sys.argv[2] in request['url']:
        content = response['content']
        print(request['method'], request['url'], response['status'], content['size'], repr(content['text'][:12]))";
    let mut python = Command::new("/usr/bin/python3");
    let lines = run(python.args(["-c", script]).arg(&file).arg(format!(":{port}/")))?;
    let expected = [
        format!("GET {} 200 35 '{{\"path\": \"/g'", at("/gzip")),
        format!("GET {} 200 51 'a line in ch'", at("/chunked")),
        format!("GET {} 200 108 'iVBORw0KGgoA'", at("/image")),
        format!("GET {} 404 17 'nothing here'", at("/nowhere?a=b")),
    ];
    ensure!(lines == expected, "{lines:#?}");
    let mut node = Command::new(need::program("node", "nodejs")?);
    let entries = run(node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/har.mjs")).arg(&file))?;
    ensure!(entries.first().is_some_and(|count| count != "0"), "{entries:?}");
    Ok(())
}

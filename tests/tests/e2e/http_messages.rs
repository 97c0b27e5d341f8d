//! HTTP as `plaintap watch` puts it together: what real programs said over TLS is what is shown.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plaintap_tests::agent::Agent;
use plaintap_tests::driver::certificate;
use plaintap_tests::process::Process;
use plaintap_tests::{OPENSSL, need, net, until};
use tempfile::TempDir;

/// An agent, and `plaintap watch` as its client.
struct Watched {
    plaintap: Process,
    _agent: Agent,
}

impl Watched {
    /// Sees what threads of these names do: what other tests' programs say would take room in the agent's ring.
    fn start(names: &[&str], filter: &str) -> Result<Self> {
        let names = names.iter().flat_map(|name| ["--comm", *name]);
        Self::over(&["--library", OPENSSL].into_iter().chain(names).collect::<Vec<_>>(), filter)
    }

    /// Sees what one process does over `library`.
    fn of(program: &Process, library: &str, filter: &str) -> Result<Self> {
        Self::over(&["--library", library, "--pid", &program.pid().to_string()], filter)
    }

    /// Sees what the agent with these flags does.
    fn over(flags: &[&str], filter: &str) -> Result<Self> {
        let agent = Agent::start(flags)?;
        let mut command = Command::new(need::binary("plaintap")?);
        command.args(["watch", &agent.url, "--filter", filter]);
        let plaintap = Process::start(&mut command)?;
        agent.log().wait_for(0, "a client", |line| line.contains("client connected"))?;
        Ok(Self { plaintap, _agent: agent })
    }

    /// The block whose first line holds each of `parts`, once it is whole.
    fn block(&self, parts: &[&str]) -> Result<Vec<String>> {
        let lines = &self.plaintap.stdout;
        let what = format!("a block with {parts:?}");
        let (first, _) = lines.wait_for(0, &what, |line| {
            !line.starts_with(' ') && parts.iter().all(|part| line.contains(part))
        })?;
        let (end, _) = lines.wait_for(first, "its end", str::is_empty)?;
        Ok(lines.all()[first..end].to_vec())
    }
}

/// The lines of a block that begin with `mark`, without it.
fn marked<'a>(block: &'a [String], mark: &str) -> Vec<&'a str> {
    block.iter().filter_map(|line| line.strip_prefix(&format!("  {mark} "))).collect()
}

fn run(command: &mut Command) -> Result<Vec<String>> {
    let mut process = Process::start(command)?;
    process.close_input();
    let said = process.stdout.to_the_end()?;
    ensure!(process.wait()?.success(), "{command:?}: {}", process.stderr.all().join("\n"));
    Ok(said)
}

/// A server of HTTP/1.1 over TLS, and its port.
fn https(certificate: &TempDir) -> Result<(Process, String)> {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/https.py"));
    command.arg(certificate.path().join("cert.pem")).arg(certificate.path().join("key.pem"));
    let server = Process::start(&mut command)?;
    let (_, port) = server.stdout.wait_for(0, "its port", |_| true)?;
    Ok((server, port))
}

/// A program of `programs/` for node, which has said that it is ready, and the file that has its TLS code: Debian's node uses
/// the system's library, others bring their own.
fn node(program: &str, certificate: &TempDir) -> Result<(Process, String, String)> {
    let mut command = Command::new(need::program("node", "nodejs")?);
    command.arg(format!("{}/programs/{program}", env!("CARGO_MANIFEST_DIR")));
    command.arg(certificate.path().join("cert.pem")).arg(certificate.path().join("key.pem"));
    let process = Process::start(&mut command)?;
    let said = process.stdout.wait_for(0, "its first line", |_| true);
    let (_, line) = said.with_context(|| process.stderr.all().join("\n"))?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid()))?;
    let library = if maps.contains(OPENSSL) {
        OPENSSL.to_owned()
    } else {
        fs::read_link(format!("/proc/{}/exe", process.pid()))?.to_string_lossy().into_owned()
    };
    Ok((process, line, library))
}

fn curl() -> Result<Command> {
    let mut curl = Command::new(need::program("curl", "curl")?);
    curl.args(["--silent", "--insecure", "--max-time", "15"]);
    Ok(curl)
}

#[test]
fn http1_of_curl_and_python_is_paired_unchunked_and_decoded() -> Result<()> {
    let certificate = certificate()?;
    let (_server, port) = https(&certificate)?;
    let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let watched = Watched::start(&["curl"], &format!("host=127.0.0.1:{port} and process=curl"))?;

    // One connection, kept alive; a body that is long enough for curl to ask first.
    run(curl()?.args([&at("/gzip"), &at("/chunked"), &at("/image"), &at("/nowhere")]))?;
    run(curl()?.args(["--head", &at("/gzip")]))?;
    let body = "x".repeat(1_100_000);
    let file = certificate.path().join("body");
    fs::write(&file, &body)?;
    let data = format!("@{}", file.display());
    let said = run(curl()?.args(["-H", "Content-Type: text/plain", "--data-binary", &data, &at("/post")]))?;
    ensure!(said == ["1100000 bytes came"], "{said:?}");

    let block = watched.block(&["GET", &at("/gzip"), " 200 in "])?;
    ensure!(marked(&block, ">")[0] == "GET /gzip HTTP/1.1", "{block:#?}");
    let json = ["{", "  \"path\": \"/gzip\",", "  \"list\": [", "    1,", "    2.5", "  ]", "}"];
    ensure!(marked(&block, "<").ends_with(&json), "{block:#?}");

    let block = watched.block(&["GET", &at("/chunked"), " 200 in "])?;
    let lines = marked(&block, "<");
    ensure!(lines.iter().filter(|line| **line == "a line in chunks").count() == 3, "{block:#?}");
    ensure!(lines.last() == Some(&"X-Trailer: the end"), "{block:#?}");

    let block = watched.block(&["GET", &at("/image"), " 200 in "])?;
    ensure!(marked(&block, "<").last() == Some(&"(PNG image, 108 bytes sent)"), "{block:#?}");

    let block = watched.block(&["GET", &at("/nowhere"), " 404 in "])?;
    ensure!(marked(&block, "<").last() == Some(&r"nothing here\x1b[2J"), "{block:#?}");

    let block = watched.block(&["HEAD", &at("/gzip"), " 200 in "])?;
    ensure!(marked(&block, "<").iter().any(|line| line.starts_with("Content-Length: ")), "{block:#?}");
    ensure!(!block.iter().any(|line| line.starts_with("...")), "a response to HEAD has no body: {block:#?}");

    let block = watched.block(&["POST", &at("/post"), " 201 in "])?;
    ensure!(block.iter().any(|line| line == "  < 100 (interim)"), "curl asked first");
    ensure!(marked(&block, "<").last() == Some(&"1100000 bytes came"));
    let shown: usize =
        marked(&block, ">").iter().filter(|line| line.starts_with("xxx")).map(|l| l.len()).sum();
    ensure!(shown == 65_536, "{shown} bytes of the body are shown");
    ensure!(block.iter().any(|line| line.contains("--max-body")));
    Ok(())
}

#[test]
fn http2_of_nghttp_and_curl_is_put_together_by_stream() -> Result<()> {
    let certificate = certificate()?;
    let folder = certificate.path();
    let long = "long line ".repeat(20_000);
    fs::write(folder.join("one.txt"), "the first page\n")?;
    fs::write(folder.join("two.json"), r#"{"two":[true]}"#)?;
    fs::write(folder.join("long.txt"), &long)?;
    fs::write(folder.join("body"), "a body that is posted")?;
    let port = net::free_port()?;
    let mut command = Command::new(need::program("nghttpd", "nghttp2-server")?);
    command.args(["--address=127.0.0.1", "--padding=40", "--trailer", "x-last: word", "-d"]).arg(folder);
    command.arg(port.to_string()).arg(folder.join("key.pem")).arg(folder.join("cert.pem"));
    let mut server = Process::start(&mut command)?;
    until("nghttpd to listen", || {
        ensure!(server.ended()?.is_none(), "nghttpd ended: {}", server.stderr.all().join("\n"));
        Ok(net::listens(port)?.then_some(()))
    })?;
    let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let watched = Watched::start(
        &["nghttp", "curl"],
        &format!("host=127.0.0.1:{port} and (process=nghttp or process=curl)"),
    )?;

    let mut nghttp = Command::new(need::program("nghttp", "nghttp2-client")?);
    nghttp.args([
        "--null-out",
        "--no-verify-peer",
        "--continuation",
        "--padding=30",
        "--trailer",
        "x-sum: 9",
    ]);
    nghttp.arg("--data").arg(folder.join("body")).args([at("/one.txt"), at("/two.json"), at("/long.txt")]);
    run(&mut nghttp)?;
    // The second request's headers refer to what the first one's added to the table.
    run(curl()?.args(["--http2", "-H", "x-mark: remembered", &at("/one.txt?a"), &at("/one.txt?b")]))?;

    let block = watched.block(&["nghttp[", "POST", &at("/one.txt"), " 200 in ", ", stream "])?;
    let asked = marked(&block, ">");
    ensure!(asked[0] == "POST /one.txt HTTP/2", "{block:#?}");
    ensure!(asked.ends_with(&["a body that is posted", "x-sum: 9"]), "{block:#?}");
    ensure!(asked.iter().any(|line| line.starts_with("continuation-test-")), "{block:#?}");
    let answered = marked(&block, "<");
    ensure!(answered[0] == "HTTP/2 200", "{block:#?}");
    ensure!(answered.ends_with(&["the first page", "x-last: word"]), "{block:#?}");
    ensure!(!block.iter().any(|line| line.starts_with("...")), "nothing is odd: {block:#?}");

    let block = watched.block(&["nghttp[", &at("/two.json"), " 200 in "])?;
    let json = ["{", "  \"two\": [", "    true", "  ]", "}", "x-last: word"];
    ensure!(marked(&block, "<").ends_with(&json), "{block:#?}");

    let block = watched.block(&["nghttp[", &at("/long.txt"), " 200 in "])?;
    let shown =
        marked(&block, "<").into_iter().find(|line| line.starts_with("long line")).context("no body")?;
    ensure!(shown == &long[..65_536], "{} bytes are shown", shown.len());

    for path in ["/one.txt?a", "/one.txt?b"] {
        let block = watched.block(&["curl[", "GET", &at(path), " 200 in "])?;
        ensure!(marked(&block, ">").contains(&"x-mark: remembered"), "{block:#?}");
        ensure!(marked(&block, "<").contains(&"the first page"), "{block:#?}");
    }
    Ok(())
}

#[test]
fn websocket_messages_over_tls_are_unmasked_joined_and_inflated() -> Result<()> {
    let certificate = certificate()?;
    let mut command = Command::new("/usr/bin/python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/websocket.py"));
    command.arg(certificate.path().join("cert.pem")).arg(certificate.path().join("key.pem"));
    let mut program = Process::start(&mut command)?;
    // The server's end has no name that TLS asked for, so this shows the client's.
    let watched = Watched::of(&program, OPENSSL, &format!("host=ws.example.org pid={}", program.pid()))?;
    program.write(b"go\n")?;
    program.stdout.wait_for(0, "its end", |line| line == "done")?;

    let block = watched.block(&["GET https://elsewhere/chat 101 in "])?;
    ensure!(marked(&block, "<").contains(&"Upgrade: websocket"), "{block:#?}");
    for (line, mark, text) in [
        (
            "client sent WebSocket text, 39 bytes",
            ">",
            "{  \"said\": [    \"hello\",    \"hello\",    \"hello\"  ]}",
        ),
        ("client sent WebSocket text, 24 bytes", ">", "again: hello hello hello"),
        ("server sent WebSocket ping, 5 bytes", "<", "there"),
        ("server sent WebSocket text, 24 bytes", "<", "a message in 3 fragments"),
        ("client sent WebSocket close, 6 bytes", ">", "1000 done"),
    ] {
        let block = watched.block(&[line])?;
        ensure!(marked(&block, mark).concat() == text, "{block:#?}");
    }
    Ok(())
}

#[test]
fn requests_in_a_row_before_any_answer_have_their_own_answers() -> Result<()> {
    let certificate = certificate()?;
    let (_server, port) = https(&certificate)?;
    let watched = Watched::start(&["pipeliner"], &format!("host=pipe.example:{port} and process=pipeliner"))?;
    let script = "import socket, ssl, sys
open('/proc/self/comm', 'w').write('pipeliner')
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
tls = context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))
paths = ['/gzip', '/nowhere', '/chunked', '/image']
close = {paths[-1]: 'Connection: close\\r\\n'}
tls.sendall(b''.join(f'GET {path} HTTP/1.1\\r\\nHost: pipe.example:{sys.argv[1]}\\r\\n{close.get(path) or str()}\\r\\n'.encode() for path in paths))
while tls.recv(65536):
    pass
print('done')";
    let said = run(Command::new("/usr/bin/python3").args(["-c", script, &port]))?;
    ensure!(said == ["done"], "{said:?}");
    let at = |path: &str| format!("https://pipe.example:{port}{path}");
    let block = watched.block(&["GET", &at("/gzip"), " 200 in "])?;
    ensure!(marked(&block, "<").contains(&"  \"path\": \"/gzip\","), "{block:#?}");
    let block = watched.block(&["GET", &at("/nowhere"), " 404 in "])?;
    ensure!(marked(&block, "<").last() == Some(&r"nothing here\x1b[2J"), "{block:#?}");
    let block = watched.block(&["GET", &at("/chunked"), " 200 in "])?;
    ensure!(marked(&block, "<").last() == Some(&"X-Trailer: the end"), "{block:#?}");
    let block = watched.block(&["GET", &at("/image"), " 200 in "])?;
    ensure!(marked(&block, "<").last() == Some(&"(PNG image, 108 bytes sent)"), "{block:#?}");
    Ok(())
}

#[test]
fn http2_streams_of_node_are_told_apart() -> Result<()> {
    let certificate = certificate()?;
    let (mut program, port, library) = node("h2.mjs", &certificate)?;
    // Its client's end: TLS there asks for no name, and :authority has the port.
    let watched = Watched::of(&program, &library, &format!("host=127.0.0.1:{port} pid={}", program.pid()))?;
    program.write(b"many 30\n")?;
    program.stdout.wait_for(1, "its end", |line| line == "done")?;
    for number in 0..30 {
        let block =
            watched.block(&["POST", &format!("https://127.0.0.1:{port}/many/{number} "), " 200 in "])?;
        let body = format!("word-{number}-").repeat(number + 1);
        ensure!(marked(&block, ">").contains(&body.as_str()), "{block:#?}");
        let answer = format!("you said {body} to /many/{number}");
        ensure!(marked(&block, "<").ends_with(&[&answer, "x-last: word"]), "{block:#?}");
    }
    Ok(())
}

#[test]
fn an_http2_connection_older_than_the_agent_shows_what_can_be_known() -> Result<()> {
    let certificate = certificate()?;
    let (mut program, port, library) = node("h2.mjs", &certificate)?;
    program.write(b"get /before\n")?;
    program.stdout.wait_for(1, "an answer", |line| line.starts_with("200 "))?;
    let watched = Watched::of(&program, &library, &format!("pid={}", program.pid()))?;
    for path in ["/midway", "/later"] {
        program.write(format!("get {path}\n").as_bytes())?;
        program.stdout.wait_for(2, "an answer", |line| line.ends_with(path))?;
        let block = watched.block(&["GET", path, " 200 in "])?;
        // These came in a table that was filled before.
        ensure!(!block.iter().any(|line| line.contains("remembered")), "{block:#?}");
        ensure!(marked(&block, ">").contains(&"?: ?"), "{block:#?}");
        ensure!(marked(&block, "<").contains(&format!("you said  to {path}").as_str()), "{block:#?}");
    }
    let shown = watched.plaintap.stdout.all();
    ensure!(!shown.iter().any(|line| line.contains("/before")), "port {port}: {shown:#?}");
    ensure!(shown.iter().any(|line| line.contains("HTTP/2 joined midway")), "{shown:#?}");
    Ok(())
}

#[test]
fn grpc_calls_show_their_messages_and_status() -> Result<()> {
    let certificate = certificate()?;
    let (mut program, _, library) = node("grpc.mjs", &certificate)?;
    let watched = Watched::of(&program, &library, &format!("pid={}", program.pid()))?;
    program.write(b"go\n")?;
    let done = program.stdout.wait_for(1, "its end", |line| line == "done");
    done.with_context(|| program.stderr.all().join("\n"))?;
    let block = watched.block(&["POST", "/demo.Talk/Say", " 200 in "])?;
    ensure!(marked(&block, ">").contains(&"(gRPC message 1: 5 bytes)"), "{block:#?}");
    ensure!(marked(&block, "<").contains(&"(gRPC message 1: 14 bytes)"), "{block:#?}");
    ensure!(marked(&block, "<").contains(&"grpc-status: 0"), "{block:#?}");
    let block = watched.block(&["POST", "/demo.Talk/Count", " 200 in "])?;
    for line in ["(gRPC message 1: 3 bytes)", "(gRPC message 2: 3 bytes)", "(gRPC message 3: 5 bytes)"] {
        ensure!(marked(&block, "<").contains(&line), "{block:#?}");
    }
    let block = watched.block(&["POST", "/demo.Talk/Fail", " 200 in "])?;
    ensure!(marked(&block, "<").contains(&"grpc-status: 5"), "{block:#?}");
    ensure!(marked(&block, "<").contains(&"grpc-message: no%20such%20thing"), "{block:#?}");
    Ok(())
}

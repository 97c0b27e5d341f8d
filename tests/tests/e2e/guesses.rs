//! TLS libraries without symbols: found by their code, and let go where that led astray.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::{Agent, plaintapd, refusal};
use plaintap_tests::conversation::streams;
use plaintap_tests::driver::certificate;
use plaintap_tests::need;
use plaintap_tests::process::Process;
use plaintap_tests::stream::Client;

use crate::copies;

/// A gRPC server that answers what it is asked; it says its port.
const SERVER: &str = r#"
import grpc, concurrent.futures, sys
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"an answer to " + request)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Handler()])
pair = (open("key.pem", "rb").read(), open("cert.pem", "rb").read())
port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
server.start()
print(port, flush=True)
sys.stdin.read()
"#;

/// A client that asks it once it may.
const CLIENT: &str = r#"
import grpc, sys
print("ready", flush=True)
port = input()
credentials = grpc.ssl_channel_credentials(open("cert.pem", "rb").read())
options = [("grpc.ssl_target_name_override", sys.argv[1])]
channel = grpc.secure_channel("127.0.0.1:" + port, credentials, options)
print(channel.unary_unary("/a.Service/Method")(b"a question", timeout=20).decode(), flush=True)
"#;

#[test]
fn grpcs_boringssl_without_symbols_is_captured_without_a_flag() -> Result<()> {
    let certificate = certificate()?;
    let python = copies::python()?;
    let start = |script: &str, argument: &str| {
        Process::start(Command::new(&python).args(["-c", script, argument]).current_dir(certificate.path()))
    };
    let server = start(SERVER, "")?;
    let port = server.stdout.wait_for(0, "the server's port", |line| line.parse::<u16>().is_ok());
    let (_, port) = port.with_context(|| format!("it said {:?}", server.stderr.all()))?;
    let mut program = start(CLIENT, "localhost")?;
    let ready = program.stdout.wait_for(0, "grpc", |line| line == "ready");
    ready.with_context(|| format!("it said {:?}", program.stderr.all()))?;
    let agent = Agent::start(&[])?;
    // Not what other tests' programs say: they may say 16 MiB at a time, and all is looked through again and again.
    let mut client = Client::connect(&format!("{}?pid={}", agent.url, program.pid()))?;
    let (_, line) = agent.log().wait_for(0, "its library", |line| {
        line.contains(" attached library=") && line.contains("/cygrpc.")
    })?;
    ensure!(line.ends_with(" functions=SSL_read,SSL_write found=inferred"), "{line}");
    program.write(format!("{port}\n").as_bytes())?;
    let answer = program.stdout.wait_for(1, "an answer", |line| line == "an answer to a question");
    answer.with_context(|| format!("it said {:?}", program.stderr.all()))?;
    for (direction, text) in
        [(Direction::Written, "a question"), (Direction::Read, "an answer to a question")]
    {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let seen = client.wait_for(text, |messages| {
            let events = messages.iter().filter_map(|message| message.event());
            let own = events.filter(|event| event.pid == i64::from(program.pid()));
            let mut halves = streams(own).ok()?.into_iter().filter(|(way, _)| *way == direction);
            halves.find(|(_, joined)| has(&joined.bytes))
        })?;
        // Its SSL objects are over memory: which socket is theirs shows when it sends what they wrote.
        let (_, seen) = seen;
        ensure!(seen.events.iter().any(|event| event.dst_port.to_string() == port), "{:?}", seen.events);
    }
    Ok(())
}

/// As a test of a page has it, with nothing of its own to fetch. Source: chromium's own list of switches.
const BROWSER: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
];

#[test]
fn a_browsers_boringssl_without_symbols_is_captured_without_a_flag() -> Result<()> {
    let certificate = certificate()?;
    let (_server, port) = copies::server(certificate.path())?;
    let agent = Agent::start(&[])?;
    // Which of its processes it will be is not known; the loudest of other tests' programs are.
    let mut client = Client::connect(&format!("{}?comm=!drv-client&comm=!drv-server", agent.url))?;
    let chromium = need::program("chromium", "chromium")?;
    // From now on its file is known: 300 MB take their time.
    ensure!(Command::new(&chromium).arg("--version").output()?.status.success(), "chromium --version fails");
    let (_, line) = agent.log().wait_for(0, "its program", |line| {
        line.contains(" attached library=") && line.contains("/chromium ")
    })?;
    ensure!(line.ends_with(" functions=SSL_read,SSL_write found=inferred"), "{line}");
    let profile = tempfile::tempdir()?;
    let url = format!("https://127.0.0.1:{port}/from-a-browser");
    let mut browser = Command::new(&chromium);
    browser.args(BROWSER).arg(format!("--user-data-dir={}", profile.path().display()));
    let browser = Process::start(browser.args(["--dump-dom", &url]))?;
    for (direction, begin) in
        [(Direction::Written, "GET /from-a-browser HTTP/1.1\r\n"), (Direction::Read, "HTTP/1.0 200 ")]
    {
        client
            .wait_for(begin, |messages| {
                let events = || messages.iter().filter_map(|message| message.event());
                // Other tests' programs are seen too, and say much the same.
                let to_port = events().filter(|event| event.dst_port == u32::from(port));
                let ids: Vec<u64> = to_port.map(|event| event.connection_id).collect();
                let own = events().filter(|event| ids.contains(&event.connection_id));
                let mut halves = streams(own).ok()?.into_iter().filter(|(way, _)| *way == direction);
                halves.find(|(_, joined)| joined.bytes.starts_with(begin.as_bytes()))
            })
            .with_context(|| format!("the browser said {:?}", browser.stderr.all()))?;
    }
    Ok(())
}

/// Two functions with the errors of BoringSSL's SSL_read and SSL_write, that are called with other arguments.
const ASTRAY: &str = r#"
#include <stdio.h>
#define HIDDEN __attribute__((noinline, visibility("hidden")))
struct state { void *pad; char *data; size_t length; };
const char *volatile label = "CLIENT_RANDOM";
HIDDEN void error(int library, int unused, int reason, const char *file, unsigned line) {
    __asm__ volatile("" : : "r"(library), "r"(unused), "r"(reason), "r"(file), "r"(line));
}
HIDDEN long one(long kind, struct state *state, long step) {
    if (kind < 0) { error(16, 0, 66, "/x/ssl/ssl_lib.cc", 963); return -1; }
    state->data += step;
    state->length -= step;
    return step;
}
HIDDEN long other(long kind, struct state *state, long step) {
    if (kind < 0) { error(16, 0, 66, "/x/ssl/ssl_lib.cc", 985); return -1; }
    if (kind > 9) { error(16, 0, 226, "/x/ssl/ssl_lib.cc", 990); return -1; }
    if (!state) { error(16, 0, 215, "/x/ssl/ssl_lib.cc", 1005); return -1; }
    return step;
}
int main(void) {
    struct state state = { 0 };
    char line[9];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld\n", one(3, &state, 1) + other(5, &state, 1));
        fflush(stdout);
    }
}
"#;

/// That as a program, without symbols.
fn astray(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("astray.c"), folder.join("astray"));
    fs::write(&source, ASTRAY)?;
    let mut compiler = Command::new(need::program("cc", "gcc")?);
    compiler.args(["-O1", "-s", "-o"]).args([&program, &source]);
    ensure!(compiler.status()?.success(), "cc can't build {}", source.display());
    Ok(program)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("not UTF-8")
}

#[test]
fn a_wrong_guess_is_detached_by_its_first_calls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = astray(folder.path())?;
    let agent = Agent::start(&["--library", text(&path)?])?;
    let mut client = Client::connect(&agent.url)?;
    let attached =
        format!(" attached library={} functions=SSL_read,SSL_write found=inferred", path.display());
    let (line, _) = agent.log().wait_for(0, &attached, |said| said.ends_with(&attached))?;
    let mut program = Process::start(&mut Command::new(&path))?;
    program.stdout.wait_for(0, "the program", |line| line == "ready")?;
    for _ in 0..8 {
        program.write(b"go\n")?;
    }
    let detached = format!(" detached library={}: its functions were guessed wrongly", path.display());
    agent.log().wait_for(line, &detached, |said| said.contains(&detached))?;
    // Clients hear of it too.
    client.wait_for("the word of it", |messages| {
        messages.iter().filter_map(|message| message.log()).find(|log| log.contains(&detached)).map(|_| ())
    })?;
    Ok(())
}

#[test]
fn guesses_are_not_made_where_nobody_wants_them_or_somebody_knows_better() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = astray(folder.path())?;
    let run = |arguments: &[&str]| {
        let place = ["--ecaptureq", "ws://127.0.0.1:0/"];
        refusal(plaintapd()?.args(place).args(["--library", text(&path)?]).args(arguments))
    };
    let refused = run(&["--no-inferred"])?;
    ensure!(refused.code == Some(6) && refused.error()?.contains("--no-inferred"), "{:?}", refused.lines);
    let table = folder.path().join("offsets");
    fs::write(&table, "00 SSL_read=zz\n")?;
    let refused = run(&["--offsets", text(&table)?])?;
    ensure!(refused.code == Some(2) && refused.error()?.contains("line 1"), "{:?}", refused.lines);
    Ok(())
}

#[test]
fn the_list_says_what_was_guessed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = astray(folder.path())?;
    let program = Process::start(&mut Command::new(&path))?;
    program.stdout.wait_for(0, "the program", |line| line == "ready")?;
    for (arguments, word) in
        [(&[][..], r#""found_by": "inferred""#), (&["--no-inferred"], r#""state": "refused", "reason": "#)]
    {
        let output = plaintapd()?.args(["list", "--json"]).args(arguments).output()?;
        let list = String::from_utf8(output.stdout)?;
        // A line for each.
        let line = list.lines().find(|line| line.contains(text(&path).unwrap_or_default()));
        let line = line.with_context(|| format!("{} is missing in {list}", path.display()))?;
        ensure!(line.contains(word), "{arguments:?}: {line}");
    }
    Ok(())
}

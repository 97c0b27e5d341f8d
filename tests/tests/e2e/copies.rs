//! Copies of TLS code that programs bring with them, found without a flag.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::{Half, join};
use plaintap_tests::driver::certificate;
use plaintap_tests::process::Process;
use plaintap_tests::stream::Client;
use plaintap_tests::{need, net, until};

/// Loads curl_cffi, which has a BoringSSL of its own without dynamic symbols; then asks for what it is told.
const FETCH: &str = "import sys; from curl_cffi import requests; print('ready', flush=True); \
    print(requests.get(input(), verify=False, timeout=20).status_code, flush=True)";

/// The Python that has curl_cffi.
pub fn python() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/copies/bin/python");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map(|target| Path::new(&target).join("copies/bin/python"));
    let path = target.filter(|path| path.exists()).unwrap_or(path);
    ensure!(path.exists(), "{} is missing: bash ci/setup.sh test", path.display());
    Ok(path.to_str().context("not UTF-8")?.to_owned())
}

#[test]
fn a_programs_own_boringssl_with_full_symbols_only_is_captured_without_a_flag() -> Result<()> {
    let certificate = certificate()?;
    let port = net::free_port()?;
    let mut server = Command::new(need::program("openssl", "openssl")?);
    server.args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}")]);
    server.args(["-cert", "cert.pem", "-key", "key.pem"]).current_dir(certificate.path());
    let server = Process::start(&mut server)?;
    until("the server to listen", || Ok(net::listens(port)?.then_some(())))
        .with_context(|| format!("it said {:?}", server.stderr.all()))?;
    let agent = Agent::start(&[])?;
    let mut client = Client::connect(&agent.url)?;
    let mut program = Process::start(Command::new(python()?).args(["-c", FETCH]))?;
    program
        .stdout
        .wait_for(0, "curl_cffi", |line| line == "ready")
        .with_context(|| format!("it said {:?}", program.stderr.all()))?;
    let (_, line) = agent.log().wait_for(0, "its library", |line| {
        line.contains(" attached library=") && line.contains("/curl_cffi/")
    })?;
    ensure!(
        line.contains(" functions=SSL_read,SSL_write ") && line.ends_with("found=symbol-table"),
        "{line}"
    );
    program.write(format!("https://127.0.0.1:{port}/its-own-copy\n").as_bytes())?;
    program
        .stdout
        .wait_for(1, "an answer", |line| line == "200")
        .with_context(|| format!("it said {:?}", program.stderr.all()))?;
    for (direction, begin) in
        [(Direction::Written, "GET /its-own-copy HTTP/1.1\r\n"), (Direction::Read, "HTTP/1.0 200 ")]
    {
        let half = Half::of(program.pid(), direction);
        let seen = client.wait_for(begin, |messages| {
            let events = messages.iter().filter_map(|message| message.event());
            join(events, &half).ok().filter(|joined| joined.bytes.len() >= begin.len())
        })?;
        ensure!(seen.bytes.starts_with(begin.as_bytes()), "{:?}", String::from_utf8_lossy(&seen.bytes));
        ensure!(seen.events.iter().all(|event| event.dst_port == u32::from(port)), "{:?}", seen.events);
    }
    Ok(())
}

//! Copies of TLS code that programs bring with them, found without a flag.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plaintap_proto::Direction;
use plaintap_tests::agent::Agent;
use plaintap_tests::conversation::streams;
use plaintap_tests::driver::certificate;
use plaintap_tests::process::Process;
use plaintap_tests::stream::Client;
use plaintap_tests::{need, net, until};

/// Loads curl_cffi, which has a BoringSSL of its own without dynamic symbols; then asks for what it is told.
const FETCH: &str = "import sys; from curl_cffi import requests; print('ready', flush=True); \
    print(requests.get(input(), verify=False, timeout=20).status_code, flush=True)";

/// A file of what the set-up fetches.
fn fetched(path: &str) -> Result<String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(|target| Path::new(&target).join(path));
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(path);
    let path = target.filter(|path| path.exists()).unwrap_or(usual);
    ensure!(path.exists(), "{} is missing: bash ci/setup.sh test", path.display());
    Ok(path.to_str().context("not UTF-8")?.to_owned())
}

/// The Python that has curl_cffi.
pub fn python() -> Result<String> {
    fetched("copies/bin/python")
}

/// OpenSSL's server, which answers every GET, and its port.
pub fn server(certificate: &Path) -> Result<(Process, u16)> {
    let port = net::free_port()?;
    let mut server = Command::new(need::program("openssl", "openssl")?);
    server.args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}")]);
    server.args(["-cert", "cert.pem", "-key", "key.pem"]).current_dir(certificate);
    let server = Process::start(&mut server)?;
    until("the server to listen", || Ok(net::listens(port)?.then_some(())))
        .with_context(|| format!("it said {:?}", server.stderr.all()))?;
    Ok((server, port))
}

/// Starts a program that says when it is ready, and then asks for the URL that it is told. All of that is captured without a
/// flag, from the library with this in its path, whose functions were found in this way.
fn is_captured(program: &mut Command, library: &str, found: &str) -> Result<()> {
    let certificate = certificate()?;
    let (_server, port) = server(certificate.path())?;
    let agent = Agent::start(&[])?;
    let mut client = Client::connect(&agent.url)?;
    let mut program = Process::start(program)?;
    program
        .stdout
        .wait_for(0, "the program", |line| line == "ready")
        .with_context(|| format!("it said {:?}", program.stderr.all()))?;
    let (_, line) = agent
        .log()
        .wait_for(0, "its library", |line| line.contains(" attached library=") && line.contains(library))?;
    ensure!(line.ends_with(&format!(" functions=SSL_read,SSL_write found={found}")), "{line}");
    program.write(format!("https://127.0.0.1:{port}/its-own-copy\n").as_bytes())?;
    program
        .stdout
        .wait_for(1, "an answer", |line| line == "200")
        .with_context(|| format!("it said {:?}", program.stderr.all()))?;
    for (direction, begin) in
        [(Direction::Written, "GET /its-own-copy HTTP/1.1\r\n"), (Direction::Read, "HTTP/1.0 200 ")]
    {
        let (_, seen) = client.wait_for(begin, |messages| {
            let events = messages.iter().filter_map(|message| message.event());
            let own = events.filter(|event| event.pid == i64::from(program.pid()));
            let mut halves = streams(own).ok()?.into_iter().filter(|(way, _)| *way == direction);
            halves.find(|(_, joined)| joined.bytes.len() >= begin.len())
        })?;
        ensure!(seen.bytes.starts_with(begin.as_bytes()), "{:?}", String::from_utf8_lossy(&seen.bytes));
        ensure!(seen.events.iter().all(|event| event.dst_port == u32::from(port)), "{:?}", seen.events);
    }
    Ok(())
}

#[test]
fn a_programs_own_boringssl_with_full_symbols_only_is_captured_without_a_flag() -> Result<()> {
    is_captured(Command::new(python()?).args(["-c", FETCH]), "/curl_cffi/", "symbol-table")
}

/// It unpacks its library into a file that it deletes once it has mapped it, and the library has no symbols.
#[test]
fn conscrypt_on_a_desktops_java_is_captured_without_a_flag() -> Result<()> {
    let jar = "conscrypt-openjdk-uber-2.5.2.jar";
    let jar = fetched(&format!("copies-java/{jar}/{jar}"))?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/Get.java");
    let mut java = Command::new(need::program("java", "default-jdk-headless")?);
    is_captured(java.args(["-cp", &jar, program]), "/libconscrypt_openjdk_jni", "inferred")
}

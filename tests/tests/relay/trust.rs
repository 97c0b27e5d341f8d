//! Who a relay is to a server, and who the server is to a relay: TLS under an authority of one's own, a user's credentials as
//! nsc writes them, and what the users of docs/fleet.md may.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use plaintap_tests::agent::Agent;
use plaintap_tests::process::Process;
use plaintap_tests::{BORINGSSL, need};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nats::Nats;
use crate::scene::{Scene, command};

/// An authority, a server's certificate by it, and its key: `ca.pem`, `cert.pem` and `key.pem`.
fn certificates(folder: &Path) -> Result<()> {
    let openssl = need::program("openssl", "openssl")?;
    let run = |line: &str| -> Result<()> {
        let output = Command::new(&openssl).current_dir(folder).args(line.split(' ')).output()?;
        ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    run(&format!("req -x509 {key} -subj /CN=lab -keyout ca-key.pem -out ca.pem"))?;
    run(&format!(
        "req {key} -subj /CN=nats -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out request.pem"
    ))?;
    run("x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -days 30 -copy_extensions copy -out cert.pem")
}

/// A JWT as NATS has them. Source: docs.nats.io, "JWTs", and nats-io/jwt, claims.go.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> Result<String> {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({"jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": nats});
    let text = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = issuer.sign(text.as_bytes()).context("signing")?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A server's configuration with an operator, and a user's credentials; the files.
fn operator(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (operator, system, account, user) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1});
    let of_account = json!({"type": "account", "version": 2, "limits": limits});
    let mut of_system = of_account.clone();
    for storage in ["mem_storage", "disk_storage"] {
        of_system["limits"][storage] = json!(0);
    }
    let operator_jwt = jwt(&operator, &operator, "op", json!({"type": "operator", "version": 2}))?;
    let system_jwt = jwt(&operator, &system, "SYS", of_system)?;
    let account_jwt = jwt(&operator, &account, "lab", of_account)?;
    let of_user = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let user_jwt = jwt(&account, &user, "relay", of_user)?;
    let (config, credentials) = (folder.join("nats.conf"), folder.join("relay.creds"));
    fs::write(
        &config,
        format!(
            "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n  {}: {system_jwt}\n  {}: {account_jwt}\n}}\n",
            system.public_key(),
            system.public_key(),
            account.public_key()
        ),
    )?;
    let seed = user.seed().context("no seed")?;
    fs::write(
        &credentials,
        format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ),
    )?;
    Ok((config, credentials))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

#[test]
fn a_server_is_trusted_by_its_authority_and_trusts_credentials() -> Result<()> {
    let folder = TempDir::new()?;
    certificates(folder.path())?;
    let (config, credentials) = operator(folder.path())?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (at("cert.pem"), at("key.pem"));
    let nats = Nats::start(&["--tls", "--tlscert", &cert, "--tlskey", &key, "--config", text(&config)?])?;
    let url = nats.url.replace("nats://", "tls://");
    let source = [("dev-1", "ws://127.0.0.1:1/")];
    let ca = at("ca.pem");
    let refused = |flags: &[&str]| -> Result<String> {
        let mut relay = Process::start(command(&source, &url)?.args(flags))?;
        ensure!(relay.wait()?.code() == Some(1), "{:?}", relay.stderr.all());
        Ok(relay.stderr.to_the_end()?.join("\n"))
    };
    let said = refused(&["--creds", text(&credentials)?])?;
    ensure!(said.contains("invalid peer certificate"), "{said}");
    let said = refused(&["--tls-ca", &ca])?;
    ensure!(said.contains("refuses the credentials"), "{said}");
    let said = refused(&["--tls-ca", &ca, "--creds", &at("none.creds")])?;
    ensure!(said.contains("none.creds"), "{said}");
    let said = refused(&["--tls-ca", &ca, "--creds", &cert])?;
    ensure!(said.contains("cert.pem"), "{said}");

    let relay =
        Process::start(command(&source, &url)?.args(["--tls-ca", &ca, "--creds", text(&credentials)?]))?;
    relay.stderr.wait_for(0, "it to read back", |line| line.contains("goes on device=dev-1"))?;
    Ok(())
}

/// The configuration in docs/fleet.md, whose lines are indented by four.
fn documented() -> Result<String> {
    let page = include_str!("../../../docs/fleet.md");
    let (_, rest) = page.split_once("\n    authorization {").context("docs/fleet.md has no authorization")?;
    let (inside, _) = rest.split_once("\n    }").context("docs/fleet.md's authorization has no end")?;
    Ok(format!("authorization {{{inside}\n}}\n").replace("$RELAY", "one").replace("$READER", "two"))
}

#[test]
fn the_users_of_the_documentation_may_relay_and_read_and_no_more() -> Result<()> {
    let folder = TempDir::new()?;
    let config = folder.path().join("nats.conf");
    fs::write(&config, documented()?)?;
    let mut scene = Scene::set()?;
    scene.nats = Nats::start(&["--config", text(&config)?])?;
    let of = |user: &str| scene.nats.url.replace("nats://", &format!("nats://{user}@"));
    let (relays, reads) = (of("relay:one"), of("reader:two"));
    let agent = scene.agent.url.clone();
    let source = [("dev-1", agent.as_str())];
    let relay = Process::start(&mut command(&source, &relays)?)?;
    relay.stderr.wait_for(0, "the source", |line| line.contains("source is there"))?;
    let mut reader = Process::start(
        Command::new(need::binary("plaintap")?)
            .args(["watch", "--json", "--count", "3"])
            .arg(format!("{reads}/?device=dev-1&backlog=all")),
    )?;
    scene.load(3)?;
    ensure!(reader.wait()?.success(), "{:?}", reader.stderr.all());
    // Who reads may not write.
    scene.nats.user = ("reader", "two");
    let written = scene.nats.publish("plaintap.dev-2.log", "", b"a line");
    let refusal = written.err().context("a reader wrote")?.to_string();
    ensure!(refusal.contains("Permissions Violation for Publish"), "{refusal}");
    // Nor relay, be it an agent of which nothing is stored yet.
    let second = Agent::watching(scene.driver.pid(), BORINGSSL)?;
    let other = Process::start(&mut command(&[("dev-2", &second.url)], &reads)?)?;
    let (_, line) = other.stderr.wait_for(0, "a refusal", |line| line.contains("device=dev-2 "))?;
    ensure!(line.contains("can't read back device=dev-2"), "{line}");
    names(&line, "$JS.API.STREAM.MSG.GET.PLAINTAP")?;
    // Nor who relays read.
    let mut watch = Process::start(
        Command::new(need::binary("plaintap")?).arg("watch").arg(format!("{relays}/?device=dev-1")),
    )?;
    ensure!(watch.wait()?.code() == Some(1), "{:?}", watch.stderr.all());
    let said = watch.stderr.to_the_end()?;
    ensure!(said.len() == 1 && said[0].contains("can't read the stream PLAINTAP: "), "{said:?}");
    names(&said[0], "$JS.API.CONSUMER.CREATE.PLAINTAP")?;
    scene.nats.user = ("relay", "one");
    scene.load(3)?;
    let stored = scene.is_stored()?;
    ensure!(stored.iter().all(|message| message.subject.starts_with("plaintap.dev-1.")), "{stored:?}");

    // Where the stream is there already, this is enough.
    drop((relay, other));
    let narrow = r#""$JS.API.STREAM.INFO.PLAINTAP", "$JS.API.STREAM.MSG.GET.PLAINTAP""#;
    restart_with(&mut scene.nats, &config, &documented()?.replace(r#""$JS.API.STREAM.>""#, narrow))?;
    let relay = Process::start(&mut command(&source, &relays)?)?;
    relay.stderr.wait_for(0, "it to go on", |line| {
        line.contains("goes on device=dev-1 run=\"") && !line.contains("seq=0")
    })?;
    drop(relay);

    // Who may not store is told so, and tries again.
    let no_writing = documented()?.replace(r#""plaintap.>", "#, "");
    restart_with(&mut scene.nats, &config, &no_writing)?;
    let relay = Process::start(&mut command(&source, &relays)?)?;
    scene.load(3)?;
    let (_, line) = relay.stderr.wait_for(0, "it to wait", |line| line.contains("waits device=dev-1"))?;
    names(&line, "plaintap.dev-1.")?;
    drop(relay);

    // Without leave to hear answers nothing can be asked.
    let no_answers = documented()?.replace(r#"subscribe: ["_INBOX.>"]"#, r#"subscribe: ["other"]"#);
    restart_with(&mut scene.nats, &config, &no_answers)?;
    let mut relay = Process::start(&mut command(&source, &relays)?)?;
    ensure!(relay.wait()?.code() == Some(1), "{:?}", relay.stderr.all());
    let said = relay.stderr.to_the_end()?;
    let last = said.last().context("it said nothing")?;
    ensure!(last.contains("not let this user subscribe to _INBOX."), "{said:?}");
    Ok(())
}

fn restart_with(nats: &mut Nats, config: &Path, text: &str) -> Result<()> {
    nats.kill()?;
    fs::write(config, text)?;
    nats.start_again()
}

/// Whether a line says what is not permitted, once, and where the documentation is.
fn names(line: &str, subject: &str) -> Result<()> {
    let words = ["permission denied", &format!("not let this user publish to {subject}"), "docs/fleet.md"];
    let missing: Vec<&&str> = words.iter().filter(|words| line.matches(**words).count() != 1).collect();
    ensure!(missing.is_empty() && !line.contains("timed out"), "{missing:?}: {line}");
    Ok(())
}

#[test]
fn a_server_that_speaks_no_tls_gets_nothing_where_tls_is_asked_for() -> Result<()> {
    let scene = Scene::set()?;
    let folder = TempDir::new()?;
    certificates(folder.path())?;
    let authority = folder.path().join("ca.pem");
    let mut command = command(&[("dev-1", &scene.agent.url)], &scene.nats.url)?;
    let mut relay = Process::start(command.arg("--tls-ca").arg(authority))?;
    let status = relay.wait()?;
    let said = relay.stderr.to_the_end()?;
    ensure!(status.code() == Some(1) && said.len() == 1, "{status}: {said:?}");
    ensure!(said[0].contains("no connection to"), "{said:?}");
    Ok(())
}

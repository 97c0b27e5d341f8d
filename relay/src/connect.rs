//! How a NATS server is reached: what a person says of it, and what a context of the `nats` tool says besides.
//!
//! What is given explicitly wins over the context. Source of a context's place and keys: nats-io's ADR-21, "NATS
//! Configuration Contexts".

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerAddr, jetstream};
use serde_json::Value;

use crate::{device::chain, permission::Refusals, wanted::decoded};

/// How often a silent server is asked whether it is there; it is given up when it owes two answers.
const PING: Duration = Duration::from_secs(15);

/// Keys of a context that say how to connect and that nothing is done about. Who sets one would not get there, or as
/// somebody else.
const UNSUPPORTED: [&str; 6] =
    ["nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store", "windows_ca_certs_match"];

/// A server, as a person names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// `nats://HOST:PORT`, or `tls://…`, with `USER:PASSWORD@` or `TOKEN@` before the host; several with commas.
    /// `None`: the context's.
    pub url: Option<String>,
    /// A file as `nsc` writes it, with a user's JWT and seed.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities that the server's may be signed by.
    pub tls_ca: Option<PathBuf>,
    /// A context of the `nats` tool: its name, or its file's path if there is a `/` in it.
    pub context: Option<String>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a URL nor a context that has one.
    #[error("no NATS server is named; name one as nats://HOST:PORT, or a context that has a url")]
    NoServer,
    /// It is no URL of a server. What it says is left out, as a password may be in it.
    #[error("what names the server is no NATS server's URL; try nats://127.0.0.1:4222")]
    Url(#[source] io::Error),
    /// There is no place where contexts would be.
    #[error(
        "no folder for the context {0}: neither XDG_CONFIG_HOME nor HOME is set; name the context's file by its path"
    )]
    NoFolder(String),
    /// A file is of no use.
    #[error("can't read the {what} in {path:?}")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A context asks for what is not there.
    #[error("the context {path:?} {why}")]
    Context {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The server lets nobody in with these.
    #[error(
        "{0} refuses the credentials; give others with a context, a credentials file, or USER:PASSWORD@ before the host"
    )]
    Refused(String),
    /// No connection. The causes of NATS's errors repeat each other, and are one text here.
    #[error("no connection to {server}: {why}")]
    Connect {
        /// The server.
        server: String,
        /// What kind of failure it is.
        kind: ConnectErrorKind,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    /// Whether it may be better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { kind, .. } => {
                matches!(kind, ConnectErrorKind::Dns | ConnectErrorKind::Io | ConnectErrorKind::TimedOut)
            }
            _ => false,
        }
    }
}

/// A connection, and the server's URL without secrets.
pub struct Connected {
    /// JetStream there.
    pub context: jetstream::Context,
    /// What it does not permit.
    pub refusals: Refusals,
    /// For the person.
    pub shown: String,
}

/// Who we are to the server.
#[derive(Debug, Default, PartialEq, Eq)]
enum User {
    #[default]
    Nobody,
    Credentials(PathBuf),
    Seed(PathBuf),
    Password(String, String),
    Token(String),
}

/// All that it takes to connect.
#[derive(Debug, Default, PartialEq, Eq)]
struct Way {
    servers: Vec<ServerAddr>,
    user: User,
    tls_ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    tls_first: bool,
    inbox_prefix: Option<String>,
    domain: Option<String>,
    api_prefix: Option<String>,
}

impl Way {
    /// Whether no server may be spoken to in the clear, whatever it says itself: neither one that is named, nor one that the first tells
    /// of, whose URLs have no scheme.
    fn demands_tls(&self) -> bool {
        self.tls_ca.is_some()
            || self.certificate.is_some()
            || self.tls_first
            || self.servers.iter().any(ServerAddr::tls_required)
    }
}

/// A context's file.
struct Context {
    path: PathBuf,
    value: Value,
}

impl Server {
    /// Connects, under `name`; `told` is what happens to the connection from then on, but for refusals.
    pub async fn connect(
        &self,
        name: &str,
        told: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Connected, Error> {
        let context = self.context.as_deref().map(Context::read).transpose()?;
        let way = self.way(context.as_ref())?;
        let shown = shown(&way.servers);
        let tls = way.demands_tls();
        let refusals = Refusals::default();
        let hears = refusals.clone();
        let mut options = ConnectOptions::new().name(name).ping_interval(PING).event_callback(move |event| {
            if !hears.hear(&event) {
                told(event);
            }
            std::future::ready(())
        });
        options = match way.user {
            User::Nobody => options,
            User::Password(user, password) => options.user_and_password(user, password),
            User::Token(token) => options.token(token),
            User::Credentials(path) => {
                options.credentials_file(&path).await.map_err(|source| file("credentials", &path, source))?
            }
            User::Seed(path) => options.nkey(seed(&path)?),
        };
        if let Some(path) = way.tls_ca {
            options = options.add_root_certificates(path);
        }
        if let Some((certificate, key)) = way.certificate {
            options = options.add_client_certificate(certificate, key);
        }
        if way.tls_first {
            options = options.tls_first();
        }
        options = options.require_tls(tls);
        if let Some(prefix) = way.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        let client = options.connect(way.servers).await.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                Error::Refused(shown.clone())
            }
            kind => Error::Connect { server: shown.clone(), kind, why: chain(&error) },
        })?;
        let context = match (way.domain, way.api_prefix) {
            (_, Some(prefix)) => jetstream::with_prefix(client, &prefix),
            (Some(domain), None) => jetstream::with_domain(client, domain),
            (None, None) => jetstream::new(client),
        };
        Ok(Connected { context, refusals, shown })
    }

    /// What is given, and for the rest what the context says.
    fn way(&self, context: Option<&Context>) -> Result<Way, Error> {
        let mut way = context.map(Context::way).transpose()?.unwrap_or_default();
        let list = self.url.as_deref().or_else(|| context?.text("url")).unwrap_or_default();
        way.servers = servers(list).map_err(Error::Url)?;
        if way.servers.is_empty() {
            return Err(Error::NoServer);
        }
        // NATS's client does nothing about a user in a URL.
        let theirs = way.servers.iter().find_map(user);
        if let Some(path) = &self.credentials {
            way.user = User::Credentials(path.clone());
        } else if let Some(user) = theirs
            && (self.url.is_some() || way.user == User::Nobody)
        {
            way.user = user;
        }
        if let Some(path) = &self.tls_ca {
            way.tls_ca = Some(path.clone());
        }
        Ok(way)
    }
}

impl Context {
    /// Reads it by its name, or by its file's path.
    fn read(name: &str) -> Result<Self, Error> {
        let path = if name.contains('/') {
            at_home(name)
        } else {
            let folder =
                |variable| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
            let config =
                folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
            let config = config.ok_or_else(|| Error::NoFolder(name.to_owned()))?;
            config.join("nats").join("context").join(format!("{name}.json"))
        };
        let text = fs::read(&path).map_err(|source| file("context", &path, source))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|error| file("context", &path, error.into()))?;
        Ok(Self { path, value })
    }

    /// A key's text; none if it is empty, as in a context that the tool wrote all keys are there.
    fn text(&self, key: &str) -> Option<&str> {
        self.value[key].as_str().filter(|text| !text.is_empty())
    }

    /// All that it says but the servers.
    fn way(&self) -> Result<Way, Error> {
        let wrong = |why: String| Error::Context { path: self.path.clone(), why };
        if !self.value.is_object() {
            return Err(wrong("is no JSON object".to_owned()));
        }
        let set = |key: &&str| {
            self.text(key).is_some() || self.value[*key].as_array().is_some_and(|values| !values.is_empty())
        };
        if let Some(key) = UNSUPPORTED.iter().find(|key| set(key)) {
            return Err(wrong(format!("has {key}, which is not supported here")));
        }
        let text = |key| self.text(key).map(str::to_owned);
        let path = |key| self.text(key).map(at_home);
        let user = match (path("creds"), path("nkey"), text("user"), text("token")) {
            (Some(path), ..) => User::Credentials(path),
            (_, Some(path), ..) => User::Seed(path),
            (_, _, Some(user), _) => User::Password(user, text("password").unwrap_or_default()),
            (_, _, _, Some(token)) => User::Token(token),
            _ => User::Nobody,
        };
        let certificate = match (path("cert"), path("key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(wrong("has only one of cert and key".to_owned())),
        };
        Ok(Way {
            servers: Vec::new(),
            user,
            tls_ca: path("ca"),
            certificate,
            tls_first: self.value["tls_first"].as_bool().unwrap_or(false),
            inbox_prefix: text("inbox_prefix"),
            domain: text("jetstream_domain"),
            api_prefix: text("jetstream_api_prefix"),
        })
    }
}

/// Servers of a list that a person wrote, with commas. `Err`: what is wrong with one, without what it says, which may hold a secret.
pub fn servers(list: &str) -> Result<Vec<ServerAddr>, io::Error> {
    let server = |one: &str| {
        let server: ServerAddr = one.trim().parse()?;
        // The client was built for no others, and would speak to them in the clear.
        match server.scheme() {
            "nats" | "tls" if !server.host().is_empty() => Ok(server),
            "nats" | "tls" => Err(io::Error::other("it names no host")),
            _ => Err(io::Error::other("only nats:// and tls:// are spoken here")),
        }
    };
    list.split(',').filter(|one| !one.trim().is_empty()).map(server).collect()
}

/// Servers' URLs without the users and passwords that are in them.
pub fn shown(servers: &[ServerAddr]) -> String {
    let shown = |server: &ServerAddr| {
        let (scheme, host, port) = (server.scheme(), server.host(), server.port());
        match host.contains(':') {
            true => format!("{scheme}://[{host}]:{port}"),
            false => format!("{scheme}://{host}:{port}"),
        }
    };
    servers.iter().map(shown).collect::<Vec<_>>().join(",")
}

/// The user in a server's URL; what stands there alone is a token, as for other clients of NATS.
fn user(server: &ServerAddr) -> Option<User> {
    let plain = |text: &str| decoded(text, false).unwrap_or_else(|| text.to_owned());
    let user = plain(server.username()?);
    Some(match server.password() {
        Some(password) => User::Password(user, plain(password)),
        None => User::Token(user),
    })
}

/// A path, where `~/` stands for the person's home.
fn at_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.into(),
    }
}

/// The seed of a user's key in a file, alone or between the lines that `nsc` puts around it.
fn seed(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|source| file("nkey", path, source))?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    let missing = || file("nkey", path, io::Error::other("it holds no user's seed"));
    seed.map(str::to_owned).ok_or_else(missing)
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn way(server: &Server, context: Value) -> Result<Way, String> {
        let context = Context { path: "/c.json".into(), value: context };
        server.way(Some(&context)).map_err(|error| error.to_string())
    }

    fn at(url: &str) -> Server {
        Server { url: Some(url.to_owned()), ..Server::default() }
    }

    fn password(user: &str, password: &str) -> User {
        User::Password(user.to_owned(), password.to_owned())
    }

    #[test]
    fn a_context_says_where_to_and_as_whom() {
        let all = json!({
            "description": "lab", "url": "nats://a:1, nats://b:2", "user": "u", "password": "p", "token": "",
            "creds": "", "cert": "/c", "key": "/k", "ca": "/ca", "nsc": "", "jetstream_domain": "",
            "jetstream_api_prefix": "",
            "inbox_prefix": "_I", "user_jwt": "", "tls_first": true, "windows_ca_certs_match": null,
        });
        let expected = Way {
            servers: servers("nats://a:1,nats://b:2").unwrap(),
            user: password("u", "p"),
            tls_ca: Some("/ca".into()),
            certificate: Some(("/c".into(), "/k".into())),
            tls_first: true,
            inbox_prefix: Some("_I".to_owned()),
            domain: None,
            api_prefix: None,
        };
        assert_eq!(way(&Server::default(), all), Ok(expected));
        for (context, user) in [
            (json!({"creds": "/u.creds", "user": "u"}), User::Credentials("/u.creds".into())),
            (json!({"nkey": "/u.nk"}), User::Seed("/u.nk".into())),
            (json!({"token": "t"}), User::Token("t".to_owned())),
        ] {
            assert_eq!(way(&at("nats://h"), context).unwrap().user, user);
        }
    }

    #[test]
    fn who_speaks_of_tls_is_not_spoken_to_without() {
        for (server, context, tls) in [
            (at("nats://h"), json!({}), false),
            (at("nats://h,TLS://h"), json!({}), true),
            (Server { tls_ca: Some("/ca".into()), ..at("h") }, json!({}), true),
            (Server::default(), json!({"url": "h", "cert": "/c", "key": "/k"}), true),
            (Server::default(), json!({"url": "h", "tls_first": true}), true),
        ] {
            assert_eq!(way(&server, context.clone()).unwrap().demands_tls(), tls, "{server:?} {context}");
        }
    }

    #[test]
    fn what_is_given_wins_over_the_context() {
        let context = json!({"url": "nats://a:1", "user": "u", "password": "p", "ca": "/ca"});
        let given = Server {
            tls_ca: Some("/own".into()),
            credentials: Some("/own.creds".into()),
            ..at("tls://x:y@h:2")
        };
        let given = way(&given, context.clone()).unwrap();
        assert_eq!(
            (given.servers, given.user, given.tls_ca),
            (servers("tls://x:y@h:2").unwrap(), User::Credentials("/own.creds".into()), Some("/own".into()))
        );
        assert_eq!(way(&at("nats://x:y@h"), context.clone()).unwrap().user, password("x", "y"));
        assert_eq!(way(&at("nats://h"), context).unwrap().user, password("u", "p"));
    }

    #[test]
    fn a_user_in_a_url_is_taken_from_it_and_not_shown() {
        let user = |url| servers(url).unwrap().iter().find_map(user);
        assert_eq!(user("nats://u:p%40%2B+@h:1/"), Some(password("u", "p@++")));
        assert_eq!(user("nats://t@h"), Some(User::Token("t".to_owned())));
        assert_eq!(user("nats://h/@"), None);
        for (list, text) in [
            ("nats://a:1, b:2", "nats://a:1,nats://b:2"),
            ("nats://u:SECRET@a:1,TLS://SECRET@b", "nats://a:1,tls://b:4222"),
            ("u:SECRET@a:1,nats://b:2/SECRET?SECRET", "nats://a:1,nats://b:2"),
            ("[::1]:5", "nats://[::1]:5"),
        ] {
            assert_eq!(shown(&servers(list).unwrap()), text);
        }
        for list in [
            "nats://u:SEC,RET@h",
            "wss://u:SECRET@h",
            "tls://a,ws://SECRET@b",
            "nats://",
            "nats://u:SEC?RET@h",
        ] {
            let error = servers(list).unwrap_err().to_string();
            assert!(!error.contains("SEC") && !error.contains("RET"), "{error}");
        }
    }

    #[test]
    fn what_a_context_asks_for_in_vain_is_said() {
        for (context, said) in [
            (json!({}), "no NATS server is named"),
            (json!([]), "no JSON object"),
            (json!({"socks_proxy": "socks5://h"}), "has socks_proxy"),
            (json!({"url": "nats://a", "cert": "/c"}), "only one of cert and key"),
            (json!({"url": "http://u:secret@a"}), "try nats://127.0.0.1:4222"),
        ] {
            let error = way(&Server::default(), context).unwrap_err();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
        let error = Context::read("/does/not/exist.json").err().unwrap().to_string();
        assert!(error.contains("can't read the context in \"/does/not/exist.json\""), "{error}");
    }
}

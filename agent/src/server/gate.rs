//! Who may come in, by what the kernel says of the client and by a secret that it knows.

use std::{
    fs::File,
    hint::black_box,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::peer::Peer;
use crate::{args::Uids, recent::Recent};

/// Android's shell user, which adb's forwards arrive as. Source: AOSP, private/android_filesystem_config.h.
const SHELL: u32 = 2000;
/// Bytes that a token has.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=256;
/// Wrong tokens that one peer may give in `WINDOW`, before it has to wait.
const MAX_WRONG: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Peers remembered that gave a wrong token.
const PEERS: usize = 256;

/// A secret that clients must know; never shown.
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Why a token file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It can't be read.
    #[error("can't read --token-file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read it.
    #[error("--token-file {0} can be read by others; chmod 600 it")]
    Open(PathBuf),
    /// It holds no token.
    #[error(
        "--token-file {0} must hold one line of 16 to 256 letters, digits, or -._~; make one with: head -c 24 \
         /dev/urandom | base64 | tr +/ -_"
    )]
    Content(PathBuf),
}

impl Token {
    /// Reads the token in the file at `path`.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let unreadable = |source| TokenError::Read { path: path.into(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
            return Err(TokenError::Open(path.into()));
        }
        let mut text = Vec::new();
        file.take(*TOKEN.end() as u64 + 3).read_to_end(&mut text).map_err(unreadable)?;
        let token = text.trim_ascii_end().to_vec();
        // So that it needs no encoding in a header or a URL.
        let is_fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        if !TOKEN.contains(&token.len()) || !token.iter().all(is_fit) {
            return Err(TokenError::Content(path.into()));
        }
        Ok(Self(token))
    }

    /// Whether `given` is the token, found out in a time that does not depend on where they differ.
    fn is(&self, given: &[u8]) -> bool {
        let differ =
            self.0.iter().zip(given).fold(0, |differ, (ours, theirs)| black_box(differ | (ours ^ theirs)));
        self.0.len() == given.len() && differ == 0
    }
}

/// What a client does not fulfil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// This user may not.
    User(u32),
    /// The kernel does not say which user it is.
    Unknown,
    /// It gave no token, or a wrong one.
    Token,
    /// It gave too many wrong ones.
    Patience,
}

/// Decides who comes in.
#[derive(Debug)]
pub struct Gate {
    users: Vec<Uids>,
    token: Option<Token>,
    wrong: Recent<String, (Instant, u32)>,
}

impl Gate {
    /// Lets in root, the user that started the agent, on Android the shell, `users`, and who knows the token if there is one.
    pub fn new(users: &[Uids], token: Option<Token>) -> Self {
        let one = |uid| Uids { first: uid, last: uid };
        let mut users = users.to_vec();
        users.extend([one(0), one(nix::unistd::getuid().as_raw())]);
        // sudo says who called it.
        users.extend(std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok()).map(one));
        if is_android() {
            users.push(one(SHELL));
        }
        Self { users, token, wrong: Recent::new(PEERS) }
    }

    /// Whether `peer` is of a user that may not come in, whatever it says.
    pub fn excludes(&self, peer: &Peer) -> Option<Lack> {
        let allowed = |uid| self.users.iter().any(|users| (users.first..=users.last).contains(&uid));
        peer.uid.filter(|uid| !allowed(*uid)).map(Lack::User)
    }

    /// What `peer` lacks, which gave this as a token. A process of this device needs its user and the token, others the token.
    pub fn lacks(&mut self, peer: &Peer, given: Option<&[u8]>) -> Option<Lack> {
        if let Some(lack) = self.excludes(peer) {
            return Some(lack);
        }
        if peer.uid.is_none() && (peer.is_local || self.token.is_none()) {
            return Some(Lack::Unknown);
        }
        let token = self.token.as_ref()?;
        let name = match (peer.uid, peer.address) {
            (Some(uid), _) => format!("uid {uid}"),
            (None, address) => address.map(|address| address.ip().to_string()).unwrap_or_default(),
        };
        let now = Instant::now();
        if self.wrong.peek(&name).is_some_and(|(since, wrong)| *wrong >= MAX_WRONG && now < *since + WINDOW) {
            return Some(Lack::Patience);
        }
        if given.is_some_and(|given| token.is(given)) {
            return None;
        }
        let (since, wrong) = self.wrong.get_or_insert_with(name, || (now, 0));
        if now >= *since + WINDOW {
            (*since, *wrong) = (now, 0);
        }
        // To forget it is no attempt.
        *wrong += u32::from(given.is_some());
        Some(Lack::Token)
    }
}

/// Whether this is Android, of which the static program can't know at build time.
pub fn is_android() -> bool {
    Path::new("/system/build.prop").exists()
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, os::unix::fs::PermissionsExt};

    use super::*;

    fn peer(uid: Option<u32>, is_local: bool) -> Peer {
        let local = Ipv4Addr::LOCALHOST.into();
        Peer { address: Some("10.0.0.2:5".parse().unwrap()), local, is_local, uid }
    }

    fn token() -> Option<Token> {
        Some(Token(b"0123456789abcdef".to_vec()))
    }

    #[test]
    fn users_of_this_device_come_in_if_they_are_allowed() {
        let mut gate = Gate::new(&["5000-5001".parse().unwrap()], None);
        for uid in [0, 5000, 5001] {
            assert_eq!(gate.lacks(&peer(Some(uid), true), None), None);
        }
        assert_eq!(gate.lacks(&peer(Some(5002), true), None), Some(Lack::User(5002)));
        assert_eq!(gate.lacks(&peer(None, true), None), Some(Lack::Unknown));
    }

    #[test]
    fn a_token_is_asked_of_all_and_does_not_stand_for_a_user() {
        let mut gate = Gate::new(&[], token());
        assert_eq!(gate.lacks(&peer(Some(0), true), None), Some(Lack::Token));
        assert_eq!(gate.lacks(&peer(Some(0), true), Some(b"0123456789abcdeX")), Some(Lack::Token));
        assert_eq!(gate.lacks(&peer(Some(0), true), Some(b"0123456789abcdef0")), Some(Lack::Token));
        assert_eq!(gate.lacks(&peer(Some(0), true), Some(b"0123456789abcdef")), None);
        assert_eq!(gate.lacks(&peer(Some(77), true), Some(b"0123456789abcdef")), Some(Lack::User(77)));
        assert_eq!(gate.lacks(&peer(None, true), Some(b"0123456789abcdef")), Some(Lack::Unknown));
        assert_eq!(gate.lacks(&peer(None, false), Some(b"0123456789abcdef")), None);
        assert_eq!(gate.lacks(&peer(None, false), None), Some(Lack::Token));
    }

    #[test]
    fn nobody_from_elsewhere_comes_in_without_a_token() {
        assert_eq!(Gate::new(&[], None).lacks(&peer(None, false), Some(b"")), Some(Lack::Unknown));
    }

    #[test]
    fn guessing_is_slow() {
        let mut gate = Gate::new(&[], token());
        for _ in 0..MAX_WRONG {
            assert_eq!(gate.lacks(&peer(None, false), Some(b"guess")), Some(Lack::Token));
        }
        assert_eq!(gate.lacks(&peer(None, false), Some(b"0123456789abcdef")), Some(Lack::Patience));
        assert_eq!(gate.lacks(&peer(Some(0), true), Some(b"0123456789abcdef")), None);
    }

    #[test]
    fn a_token_file_is_private_and_holds_one_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        assert!(Token::read(file.path()).unwrap().is(b"0123456789abcdef"));
        for wrong in ["", "short", "0123456789 abcdef", "0123456789abcdef\nx", &"x".repeat(300)] {
            std::fs::write(&file, wrong).unwrap();
            assert!(matches!(Token::read(file.path()), Err(TokenError::Content(_))), "{wrong}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Token::read(file.path()), Err(TokenError::Open(_))));
        assert!(matches!(Token::read(Path::new("/nonexistent")), Err(TokenError::Read { .. })));
    }
}

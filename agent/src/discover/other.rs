//! TLS that is neither BoringSSL nor OpenSSL, recognised where that costs little, so that silence is explained.

use std::path::Path;

use super::{
    elf::{Bytes, InFile, Layout},
    find::position,
};

/// Libraries by the start of their file's name, and what they are.
const LIBRARIES: [(&str, &str); 14] = [
    ("libgnutls.so", "GnuTLS"),
    ("libssl3.so", "NSS"),
    ("libs2n.so", "s2n-tls"),
    ("libmbedtls.so", "Mbed TLS"),
    ("libwolfssl.so", "wolfSSL"),
    ("libtls.so", "libtls"),
    ("libbearssl.so", "BearSSL"),
    ("librustls.so", "rustls"),
    ("libquiche.so", "quiche (QUIC)"),
    ("libmsquic.so", "MsQuic (QUIC)"),
    ("libngtcp2.so", "ngtcp2 (QUIC)"),
    ("liblsquic.so", "LSQUIC (QUIC)"),
    ("libaws_crt_jni.so", "s2n-tls"),
    ("libpicotls-core.so", "picotls"),
];

/// What a library is called, by its file's name.
pub fn by_name(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    // Nothing but a version follows: libtls.so.26 is one, libtlsutil.so is none.
    let is =
        |start: &str| name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    LIBRARIES.iter().find(|(start, _)| is(start)).map(|(_, what)| *what)
}

/// What a program has in itself, by its constants.
pub fn by_constants(bytes: InFile<'_>, layout: &Layout) -> Option<&'static str> {
    let constants = layout.constants?;
    if layout.is_go {
        // A type's name, which stays in programs without symbols.
        return position(bytes, constants, b"*tls.Conn").map(|_| "Go (crypto/tls)");
    }
    // Where a panic would say that it happened: the crate's folder, which has its version behind its name.
    let place = position(bytes, constants, CRATE)?;
    let mut version = [0];
    let is_there = bytes.read(constants.0.checked_add(place)?.checked_add(CRATE.len() as u64)?, &mut version);
    (is_there && version[0].is_ascii_digit()).then_some("rustls")
}

const CRATE: &[u8] = b"/rustls-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_known_by_their_names_and_nothing_else_is() {
        for (path, what) in [
            ("/usr/lib/x86_64-linux-gnu/libgnutls.so.30", Some("GnuTLS")),
            ("/usr/lib/firefox/libssl3.so", Some("NSS")),
            ("/opt/libs2n.so.1", Some("s2n-tls")),
            ("/usr/lib/libssl.so.3", None),
            ("/usr/lib/libtlsutil.so", None),
            ("/usr/lib/libgnutlsxx.so.28", None),
            ("/", None),
        ] {
            assert_eq!(by_name(Path::new(path)), what, "{path}");
        }
    }
}

//! TLS for clients of our own, in builds with the cargo feature `tls`: `wss://` places.
//!
//! A connection is decrypted into a socket pair, whose other end is served as any client is: nothing else knows of it.

use std::{net::TcpStream, path::Path};

use smol::Async;

/// Why clients can't be served over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It was left out.
    #[error("this build can't serve wss://; build plaintapd with --features tls, or listen at ws://")]
    NotBuilt,
    /// Files were named for what was left out.
    #[error(
        "this build has no TLS, so that {0} does nothing; build plaintapd with --features tls, or leave it out"
    )]
    NotBuiltFor(&'static str),
    /// Files were named, and there is nothing to use them for.
    #[error(
        "{0} is for wss:// places, and there is none; give --ecaptureq wss://ADDRESS:PORT/, or leave it out"
    )]
    NoPlace(&'static str),
    /// Something is missing.
    #[error("wss:// needs --tls-cert and --tls-key, PEM files of a certificate and its key")]
    NoCertificate,
    /// A file is of no use.
    #[error("{path} is no PEM file with {wanted}: {why}")]
    File {
        /// The file.
        path: String,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate and its key don't fit, or are of a kind that is not known.
    #[error("--tls-cert, --tls-key and --tls-client-ca make no TLS server: {0}")]
    Config(String),
}

/// The files that a person named.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The certificate chain.
    pub certificate: Option<&'a Path>,
    /// Its key.
    pub key: Option<&'a Path>,
    /// Whose certificates clients must have; none: they need none.
    pub client_ca: Option<&'a Path>,
}

impl Files<'_> {
    /// An error where files were named that nothing will use, as none of the places is one of `wss://`.
    pub fn unused(&self) -> Result<(), TlsError> {
        let flags =
            [("--tls-cert", self.certificate), ("--tls-key", self.key), ("--tls-client-ca", self.client_ca)];
        match flags.into_iter().find(|(_, path)| path.is_some()) {
            None => Ok(()),
            Some((flag, _)) if cfg!(feature = "tls") => Err(TlsError::NoPlace(flag)),
            Some((flag, _)) => Err(TlsError::NotBuiltFor(flag)),
        }
    }
}

#[cfg(not(feature = "tls"))]
mod built {
    use std::convert::Infallible;

    use super::*;

    /// Serves TLS; not in this build.
    #[derive(Clone, Debug)]
    pub struct Tls(Infallible);

    impl Tls {
        /// Never works in this build.
        pub fn load(_files: Files<'_>) -> Result<Self, TlsError> {
            Err(TlsError::NotBuilt)
        }

        /// Shakes hands on `socket`.
        pub async fn accept(&self, _socket: Async<TcpStream>) -> std::io::Result<Decrypted> {
            match self.0 {}
        }
    }

    /// A connection whose bytes are decrypted.
    #[derive(Debug)]
    pub struct Decrypted(Infallible);

    impl Decrypted {
        /// Moves bytes both ways until one side ends.
        pub async fn pump(self, _plain: Async<TcpStream>) {
            match self.0 {}
        }
    }
}

#[cfg(feature = "tls")]
mod built {
    use std::{io, net::Shutdown, sync::Arc};

    use futures_rustls::{
        TlsAcceptor,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier},
        server::TlsStream,
    };
    use nix::sys::socket::{setsockopt, sockopt};
    use smol::{
        future,
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    };

    use super::*;
    use crate::server::progress::PATIENCE;

    /// Serves TLS.
    #[derive(Clone)]
    pub struct Tls(TlsAcceptor);

    impl std::fmt::Debug for Tls {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Tls")
        }
    }

    impl Tls {
        /// Reads what it needs from `files`.
        pub fn load(files: Files<'_>) -> Result<Self, TlsError> {
            let (Some(certificate), Some(key)) = (files.certificate, files.key) else {
                return Err(TlsError::NoCertificate);
            };
            let wrong = |path: &Path, wanted| {
                let path = path.display().to_string();
                move |why: futures_rustls::pki_types::pem::Error| TlsError::File {
                    path,
                    wanted,
                    why: why.to_string(),
                }
            };
            let certificates = |path: &Path| -> Result<Vec<_>, TlsError> {
                let all = CertificateDer::pem_file_iter(path).map_err(wrong(path, "certificates"))?;
                all.collect::<Result<_, _>>().map_err(wrong(path, "certificates"))
            };
            let config = |why: &dyn std::fmt::Display| TlsError::Config(why.to_string());
            let builder = match files.client_ca {
                None => ServerConfig::builder().with_no_client_auth(),
                Some(path) => {
                    let mut roots = RootCertStore::empty();
                    for certificate in certificates(path)? {
                        roots.add(certificate).map_err(|why| config(&why))?;
                    }
                    let verifier =
                        WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|why| config(&why))?;
                    ServerConfig::builder().with_client_cert_verifier(verifier)
                }
            };
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(wrong(key, "a private key"))?;
            let server = builder.with_single_cert(chain, key).map_err(|why| config(&why))?;
            Ok(Self(Arc::new(server).into()))
        }

        /// Shakes hands on `socket`.
        pub async fn accept(&self, socket: Async<TcpStream>) -> io::Result<Decrypted> {
            // Who is given up takes nothing as a rule; the kernel would keep what was for it for minutes.
            let patience = (PATIENCE * 2).as_millis() as u32;
            let _ = setsockopt(&socket, sockopt::TcpUserTimeout, &patience);
            self.0.accept(socket).await.map(Decrypted)
        }
    }

    /// A connection whose bytes are decrypted.
    #[derive(Debug)]
    pub struct Decrypted(TlsStream<Async<TcpStream>>);

    impl Decrypted {
        /// Moves bytes both ways until one side ends.
        pub async fn pump(self, plain: Async<TcpStream>) {
            let (read, write) = split(self.0);
            let inward = async {
                let _ = carry(read, &plain).await;
                let _ = plain.get_ref().shutdown(Shutdown::Write);
            };
            let outward = async {
                let mut write = write;
                let _ = carry(&plain, &mut write).await;
                let _ = write.close().await;
            };
            // Once there is nothing to send any more, nobody reads what comes.
            future::or(outward, async {
                inward.await;
                future::pending().await
            })
            .await;
        }
    }

    /// Moves what comes at once, so that nobody waits for more.
    async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..length]).await?;
            to.flush().await?;
        }
    }
}

pub use built::{Decrypted, Tls};

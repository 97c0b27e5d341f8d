//! What the tests need of the machine. A missing thing is an error that names it and says what to do.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;

/// Where a program of the product is: in `$PLAINTAP_BIN_DIR`, else the workspace's `target/release`.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match env::var_os("PLAINTAP_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
    };
    let path = folder.join(name);
    path.canonicalize().with_context(|| {
        let path = path.display();
        format!("{path} is missing: build it (cargo build --release), or name its folder in PLAINTAP_BIN_DIR")
    })
}

/// Loading eBPF programs needs root.
pub fn root() -> Result<()> {
    ensure!(Uid::effective().is_root(), "these tests load eBPF programs: run them as root");
    Ok(())
}

/// A library to trace, and the package that has it.
pub fn library(path: &str) -> Result<&str> {
    let package = if path == crate::OPENSSL { "libssl3" } else { "android-libboringssl" };
    ensure!(Path::new(path).exists(), "{path} is missing: apt-get install {package}");
    Ok(path)
}

/// A program on the search path, and the package that has it.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is missing: apt-get install {package}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let text = program("no-such-program", "no-such-package").unwrap_err().to_string();
        assert_eq!(text, "no-such-program is missing: apt-get install no-such-package");
        let text = binary("no-such-binary").unwrap_err().to_string();
        assert!(text.contains("no-such-binary is missing: build it"), "{text}");
    }
}

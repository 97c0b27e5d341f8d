//! Compiles `driver/driver.c`, the TLS driver, with the system's C compiler (`$CC`, else `cc`), as the tests' own
//! program: its path reaches `src/driver.rs` as `PLAINTAP_TLS_DRIVER`. `PLAINTAP_MULTIARCH` names Debian's library folder.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "driver/driver.c";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CC");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let driver = PathBuf::from(env::var("OUT_DIR")?).join("tls-driver");
    let status = Command::new(&compiler)
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-pthread", "-o"])
        .arg(&driver)
        .args([SOURCE, "-ldl"])
        .status()
        .map_err(|error| {
            format!("{compiler}: {error}: install a C compiler (apt-get install gcc libc6-dev)")
        })?;
    if !status.success() {
        return Err(format!("{compiler} could not compile {SOURCE}: {status}").into());
    }
    println!("cargo::rustc-env=PLAINTAP_TLS_DRIVER={}", driver.display());
    println!("cargo::rustc-env=PLAINTAP_MULTIARCH={}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    Ok(())
}

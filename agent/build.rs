//! Hands the eBPF object for the target's CPU to the compiler, as `OUT_DIR/probes.o`.
//!
//! Normally the prebuilt one, so that building needs no LLVM. `PLAINTAP_BPF_OBJECT` names another file, and
//! `PLAINTAP_BPF_BUILD=1` builds the sources with bpf/build.sh.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=PLAINTAP_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=PLAINTAP_BPF_BUILD");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let bpf = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../bpf");
    let object = match env::var_os("PLAINTAP_BPF_OBJECT") {
        Some(path) => path.into(),
        None => bpf.join(format!("prebuilt/{arch}.o")),
    };
    if env::var_os("PLAINTAP_BPF_BUILD").is_some_and(|value| value == "1") {
        // Its own target folder: this one is locked by the build that runs us.
        let status = Command::new("bash")
            .arg(bpf.join("build.sh"))
            .env("CARGO_TARGET_DIR", PathBuf::from(env::var("OUT_DIR")?).join("bpf"))
            .env_remove("RUSTC")
            .status()?;
        if !status.success() {
            return Err("bpf/build.sh failed".into());
        }
    }
    // Newer Androids have pages of 16 KiB, and linkers for it ask for 4 KiB: Android's own before NDK r28, and any for
    // x86_64. For arm64 the others ask for 64 KiB. Source: developer.android.com/guide/practices/page-sizes.
    let target = |name| env::var(format!("CARGO_CFG_TARGET_{name}"));
    if target("OS")? == "android" || (target("ENV")? == "musl" && arch == "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,max-page-size=16384");
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let to = PathBuf::from(env::var("OUT_DIR")?).join("probes.o");
    fs::copy(&object, &to).map_err(|error| {
        format!("no eBPF object for {arch} at {}: {error} (bash bpf/build.sh makes them)", object.display())
    })?;
    Ok(())
}

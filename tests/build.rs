//! Compiles the C programs of `driver/` with the system's C compiler (`$CC`, else `cc`), as the tests' own programs: their
//! paths reach `src/` in the variables below. `PLAINTAP_MULTIARCH` names Debian's library folder.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// Sources, the programs made of them, and the variables that name those.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("driver/driver.c", "tls-driver", "PLAINTAP_TLS_DRIVER"),
    ("driver/storm.c", "tls-storm", "PLAINTAP_STORM"),
    ("driver/cases.c", "tls-cases", "PLAINTAP_TLS_CASES"),
    ("driver/engine.c", "tls-engine", "PLAINTAP_TLS_ENGINE"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rerun-if-changed=driver/common.h");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    for (source, name, variable) in PROGRAMS {
        println!("cargo::rerun-if-changed={source}");
        let program = PathBuf::from(env::var("OUT_DIR")?).join(name);
        let status = Command::new(&compiler)
            .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(&program)
            .args([source, "-ldl"])
            .status()
            .map_err(|error| {
                format!("{compiler}: {error}: install a C compiler (apt-get install gcc libc6-dev)")
            })?;
        if !status.success() {
            return Err(format!("{compiler} could not compile {source}: {status}").into());
        }
        println!("cargo::rustc-env={variable}={}", program.display());
    }
    println!("cargo::rustc-env=PLAINTAP_MULTIARCH={}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    Ok(())
}

//! Writes `vectors/*.bin` and `vectors/*.json` anew: `cargo run -p plaintap-proto --example vectors`.

#[path = "../vectors/mod.rs"]
mod vectors;

use std::fs;

fn main() -> std::io::Result<()> {
    for vector in vectors::all() {
        fs::write(vector.path("bin"), &vector.bytes)?;
        fs::write(vector.path("json"), vector.json())?;
    }
    Ok(())
}

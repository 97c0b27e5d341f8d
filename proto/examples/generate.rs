//! Writes `src/generated.rs` anew from `ecaptureq.proto`: `cargo run -p plaintap-proto --example generate`.

#[path = "../tests/generator/mod.rs"]
mod generator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(generator::COMMITTED, generator::generate()?)?;
    Ok(())
}

//! From `ecaptureq.proto` to Rust text, for the example that writes it and the test that compares it.

use std::error::Error;

/// Where the generated text is kept.
pub const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/generated.rs");

/// The Rust types of `ecaptureq.proto`, compiled without protoc.
pub fn generate() -> Result<String, Box<dyn Error>> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let descriptors = protox::compile(["ecaptureq.proto"], [folder])?;
    let out = tempfile::tempdir()?;
    prost_build::Config::new().bytes(["."]).out_dir(out.path()).compile_fds(descriptors)?;
    Ok(std::fs::read_to_string(out.path().join("event.rs"))?)
}

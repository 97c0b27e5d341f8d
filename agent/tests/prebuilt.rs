//! The eBPF objects that the agent embeds were made from the sources that stand beside them.

use std::process::Command;

#[test]
fn the_prebuilt_objects_carry_the_digest_of_their_sources() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../bpf/build.sh");
    let output = Command::new("bash").args([script, "--digest"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

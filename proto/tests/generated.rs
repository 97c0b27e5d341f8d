//! The committed Rust types are those of `ecaptureq.proto`.

mod generator;

#[test]
fn the_committed_types_are_generated_from_the_proto_file() {
    let committed = std::fs::read_to_string(generator::COMMITTED).unwrap();
    let generated = generator::generate().unwrap();
    assert!(
        committed == generated,
        "src/generated.rs is stale: cargo run -p plaintap-proto --example generate"
    );
}

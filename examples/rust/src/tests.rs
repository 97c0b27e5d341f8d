//! The client against `proto/vectors`, and against what is broken; and the generated code against its source.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;

const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ecaptureq.rs");

fn proto() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto")
}

fn vectors() -> BTreeMap<String, PathBuf> {
    let paths = fs::read_dir(proto().join("vectors")).unwrap().map(|file| file.unwrap().path());
    let binary = paths.filter(|path| path.extension().is_some_and(|ending| ending == "bin"));
    let vectors: BTreeMap<_, _> =
        binary.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)).collect();
    assert!(!vectors.is_empty());
    vectors
}

#[test]
fn every_field_is_decoded() {
    let files = protox::compile(["ecaptureq.proto"], [proto()]).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
    let kind = pool.get_message_by_name("event.LogEntry").unwrap();
    for (name, path) in vectors() {
        let json = fs::read_to_string(path.with_extension("json")).unwrap();
        let mut json = serde_json::Deserializer::from_str(&json);
        let wanted = DynamicMessage::deserialize(kind.clone(), &mut json).unwrap();
        let decoded = LogEntry::decode(fs::read(path).unwrap().as_slice()).unwrap();
        assert_eq!(decoded, wanted.transcode_to::<LogEntry>().unwrap(), "{name}");
    }
}

#[test]
fn every_vector_is_printed_as_expected() {
    let expected = fs::read_to_string(proto().join("../examples/vectors.txt")).unwrap();
    let lines =
        vectors().into_iter().map(|(name, path)| format!("{name} {}\n", line(&fs::read(path).unwrap())));
    assert_eq!(lines.collect::<String>(), expected);
}

#[test]
fn no_cut_or_changed_message_crashes() {
    for path in vectors().into_values() {
        let message = fs::read(path).unwrap();
        for length in 0..message.len() {
            let mut changed = message.clone();
            changed[length] ^= 0xff;
            for broken in [&message[..length], &changed] {
                assert!(line(broken).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            }
        }
    }
}

/// With `GENERATE=1`, writes them.
#[test]
fn the_types_are_generated_from_the_proto_file() {
    let out = tempfile::tempdir().unwrap();
    let files = protox::compile(["ecaptureq.proto"], [proto()]).unwrap();
    prost_build::Config::new().out_dir(out.path()).compile_fds(files).unwrap();
    let generated = fs::read_to_string(out.path().join("event.rs")).unwrap();
    if env::var_os("GENERATE").is_some() {
        fs::write(GENERATED, &generated).unwrap();
    }
    assert!(generated == fs::read_to_string(GENERATED).unwrap(), "stale: GENERATE=1 cargo test");
}

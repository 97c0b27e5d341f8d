//! The analysis against real files of both CPUs, and against one of our own making that is broken in every way.
#![cfg(target_arch = "x86_64")]

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use object::elf::{EM_AARCH64, EM_X86_64};
use proptest::prelude::*;

use super::*;
use crate::discover::find::Budget;

/// A file of the packages that `ci/setup.sh test` unpacks, or the test fails with what is missing.
fn copy(path: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let path = target.join(path);
    assert!(path.exists(), "{} is missing: bash ci/setup.sh test", path.display());
    path
}

fn inferred(path: &Path, machine: u16) -> Option<Inferred> {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let bytes = InFile { file: &file, offset: 0, length, budget: &Budget::default() };
    let layout = Layout::of_file_for(bytes, machine).ok()?;
    let sources = sources(bytes, &layout)?;
    match machine {
        EM_AARCH64 => infer_for::<cpu::Arm64>(bytes, &layout, &sources).ok(),
        _ => infer_for::<cpu::X86_64>(bytes, &layout, &sources).ok(),
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; bash ci/setup.sh test installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const X86_64: &str = "copies/lib/python3.11/site-packages";
const AARCH64: &str = "copies-aarch64";
const NETTY_X86_64: &str = "copies-java/netty-tcnative-boringssl-static-2.0.84.Final-linux-x86_64.jar/\
    META-INF/native/libnetty_tcnative_linux_x86_64.so";
const NETTY_AARCH64: &str = "copies-java/netty-tcnative-boringssl-static-2.0.84.Final-linux-aarch_64.jar/\
    META-INF/native/libnetty_tcnative_linux_aarch_64.so";
const CONSCRYPT: &str = "copies-java/conscrypt-android-2.5.3.aar/jni";
const CONSCRYPT_DESKTOP: &str = "copies-java/conscrypt-openjdk-uber-2.5.2.jar/\
    META-INF/native/libconscrypt_openjdk_jni-linux-x86_64.so";
const CURL: &str = "curl_cffi/_wrapper.abi3.so";
const OPENSSL: &str = "cryptography/hazmat/bindings/_rust.abi3.so";

#[test]
fn functions_are_where_nm_has_them() {
    let installed = "/usr/lib/x86_64-linux-gnu";
    for (path, machine, flavour) in [
        (copy(X86_64).join(CURL), EM_X86_64, Flavour::BoringSsl),
        (copy(AARCH64).join(CURL), EM_AARCH64, Flavour::BoringSsl),
        (copy(NETTY_X86_64), EM_X86_64, Flavour::BoringSsl),
        (copy(NETTY_AARCH64), EM_AARCH64, Flavour::BoringSsl),
        (copy(CONSCRYPT).join("x86_64/libconscrypt_jni.so"), EM_X86_64, Flavour::BoringSsl),
        (copy(CONSCRYPT).join("arm64-v8a/libconscrypt_jni.so"), EM_AARCH64, Flavour::BoringSsl),
        (format!("{installed}/android/libssl.so.0").into(), EM_X86_64, Flavour::BoringSsl),
        (copy(X86_64).join(OPENSSL), EM_X86_64, Flavour::OpenSsl),
        (copy(AARCH64).join(OPENSSL), EM_AARCH64, Flavour::OpenSsl),
        (format!("{installed}/libssl.so.3").into(), EM_X86_64, Flavour::OpenSsl),
    ] {
        let name = path.to_str().unwrap();
        let found = inferred(&path, machine).unwrap_or_else(|| panic!("{name}: nothing"));
        assert_eq!(found.flavour, flavour, "{name}");
        // Such as have only dynamic symbols are no error.
        let symbols = run("nm", &[name]) + &run("nm", &["-D", name]);
        for (function, address) in &found.functions {
            let is_it = |line: &&str| {
                let symbol = line.split(' ').nth(2).and_then(|symbol| symbol.split('@').next());
                symbol == Some(function.name())
            };
            if *function == Function::BioWrite {
                // Some compilers make a function of its beginning, which has another name.
                let start = format!("{address:016x} ");
                let is_it =
                    |line: &str| line.starts_with(&start) && line.to_lowercase().contains("bio_write");
                assert!(symbols.lines().any(is_it), "{name}: {address:x}");
                continue;
            }
            let line = symbols.lines().find(is_it).unwrap_or_else(|| panic!("{name}: {function:?}"));
            assert!(
                line.starts_with(&format!("{address:016x} ")),
                "{name}: {function:?} {address:x}, nm: {line}"
            );
        }
        let names: Vec<&str> = found.functions.iter().map(|(function, _)| function.name()).collect();
        let expected = match flavour {
            // AOSP has the third in a libcrypto.
            Flavour::BoringSsl if name.starts_with(installed) => &["SSL_read", "SSL_write"][..],
            Flavour::BoringSsl => &["SSL_read", "SSL_write", "BIO_write"],
            _ => &["SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex", "SSL_do_handshake", "SSL_clear"],
        };
        assert_eq!(names, expected, "{name}");
    }
}

#[test]
fn functions_without_symbols_begin_where_an_entry_of_the_stacks_unwinder_does() {
    for (path, machine) in [
        (copy(CONSCRYPT_DESKTOP), EM_X86_64),
        (copy(X86_64).join("grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so"), EM_X86_64),
        (copy(AARCH64).join("grpc/_cython/cygrpc.cpython-311-aarch64-linux-gnu.so"), EM_AARCH64),
    ] {
        let found = inferred(&path, machine).unwrap();
        let entries = run("readelf", &["--debug-dump=frames", path.to_str().unwrap()]);
        for (function, address) in found.functions {
            assert!(entries.contains(&format!(" pc={address:016x}..")), "{path:?}: {function:?} {address:x}");
        }
    }
}

#[test]
fn what_holds_neither_library_has_no_functions() {
    let awscrt = copy(X86_64).join("_awscrt.abi3.so");
    for path in [&awscrt, Path::new("/usr/lib/x86_64-linux-gnu/libcrypto.so.3"), Path::new("/bin/sh")] {
        assert_eq!(inferred(path, EM_X86_64), None, "{path:?}");
    }
}

/// Functions with the errors of BoringSSL's, without its symbols.
const SOURCE: &str = r#"
    typedef unsigned long size_t;
    struct state { char *data; size_t length; };
    struct ssl { void *pad[6]; struct state *state; int quic; };
    const char *label(void) { return "CLIENT_RANDOM"; }
    #define HIDDEN __attribute__((noinline, visibility("hidden")))
    HIDDEN void put_error(int library, int unused, int reason, const char *file, unsigned line) {
        __asm__ volatile("" : : "r"(library), "r"(unused), "r"(reason), "r"(file), "r"(line));
    }
    #define ERROR(reason, line) put_error(16, 0, reason, "/x/ssl/ssl_lib.cc", line)
    HIDDEN int fill(struct ssl *ssl) { __asm__ volatile("" : : "r"(ssl)); return 1; }
    HIDDEN int peek(struct ssl *ssl, void *buffer, int length) {
        if (ssl->quic) { ERROR(66, 963); return -1; }
        int result = fill(ssl);
        if (result <= 0) return result;
        __builtin_memcpy(buffer, ssl->state->data, length);
        return length;
    }
    HIDDEN int read(struct ssl *ssl, void *buffer, int length) {
        int result = peek(ssl, buffer, length);
        if (result <= 0) return result;
        ssl->state->data += result;
        ssl->state->length -= result;
        return result;
    }
    HIDDEN int write(struct ssl *ssl, const void *buffer, int length) {
        if (ssl->quic) { ERROR(66, 985); return -1; }
        if (!ssl->state) { ERROR(226, 990); return -1; }
        if (fill(ssl) < 0) { ERROR(215, 1005); return -1; }
        __asm__ volatile("" : : "r"(buffer));
        return length;
    }
    int use(struct ssl *ssl, char *buffer) { return read(ssl, buffer, 9) + write(ssl, buffer, 9) + 1; }
"#;

/// That source, changed perhaps, as a file; and what nm says of it.
fn built(source: &str, flags: &[&str]) -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.c", "a.so"].map(|name| folder.path().join(name));
    fs::write(&paths[0], source).unwrap();
    let [from, to] = paths.each_ref().map(|path| path.to_str().unwrap());
    run("cc", &[&["-shared", "-fPIC", "-O1", "-o", to, from], flags].concat());
    let symbols = run("nm", &[to]);
    let [_, library] = paths;
    (folder, library, symbols)
}

fn address(symbols: &str, name: &str) -> u64 {
    let line = symbols.lines().find(|line| line.ends_with(&format!(" t {name}"))).unwrap();
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

#[test]
fn a_read_beside_its_peek_is_told_from_it() {
    let (_folder, library, symbols) = built(SOURCE, &[]);
    let expected =
        vec![(Function::Read, address(&symbols, "read")), (Function::Write, address(&symbols, "write"))];
    assert_eq!(inferred(&library, EM_X86_64).unwrap().functions, expected);
}

/// Nobody calls the function that writes any more, but by a pointer.
fn with_a_pointer() -> String {
    let source = SOURCE.replace("+ write(ssl", "+ (*pointer)(ssl");
    source.replace("int use(", "int (*pointer)(struct ssl *, const void *, int) = write;\n int use(")
}

#[test]
fn without_unwind_entries_a_function_is_found_or_refused_and_never_taken_for_another() {
    let mut found = 0;
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        for protection in ["-fcf-protection=full", "-fcf-protection=none"] {
            for source in [SOURCE, &with_a_pointer()] {
                let flags = ["-fno-asynchronous-unwind-tables", protection, level];
                let (_folder, library, symbols) = built(source, &flags);
                let Some(inferred) = inferred(&library, EM_X86_64) else { continue };
                let expected = ["read", "write"].map(|name| address(&symbols, name));
                let addresses: Vec<u64> = inferred.functions.iter().map(|(_, address)| *address).collect();
                assert_eq!(addresses, expected, "{flags:?}");
                assert_eq!(source, SOURCE, "nobody calls it: {flags:?}");
                found += 1;
            }
        }
    }
    assert!(found >= 4, "{found}");
}

#[test]
fn evidence_that_fits_no_function_or_two_is_none() {
    for (from, to) in [
        // As SSL_key_update has them.
        ("ERROR(66, 985)", "ERROR(66, 995)"),
        ("ERROR(215, 1005)", "ERROR(214, 1005)"),
        ("ERROR(66, 963)", "ERROR(66, 863)"),
        ("/ssl/ssl_lib.cc", "/ssl/ssl_bil.cc"),
        ("ssl->state->data += result;", ""),
        (
            "int use(",
            "HIDDEN int other(struct ssl *ssl, void *b, int l) { if (ssl->quic) ERROR(66, 960); return 0; }\n int use(",
        ),
    ] {
        let source = SOURCE.replace(from, to).replace("ssl->state->length -= result;", "");
        assert_ne!(source, SOURCE.replace("ssl->state->length -= result;", ""), "{from}");
        let (_folder, library, _) = built(&source, &[]);
        let found = inferred(&library, EM_X86_64);
        assert_eq!(found, None, "{to}");
    }
}

static LIBRARY: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(built(SOURCE, &[]).1).unwrap());

proptest! {
    #[test]
    fn any_code_is_followed(code: Vec<u8>, address in 0..u64::MAX / 2) {
        for registers in [arm64::REGISTERS, x86_64::REGISTERS] {
            let mut follower = Follower::new(registers, &|address| address.is_multiple_of(3));
            cpu::X86_64::decode(&code, address, &mut |_, op| follower.take(op));
            cpu::Arm64::decode(&code, address, &mut |_, op| follower.take(op));
            follower.finish();
        }
        for end in [bounds::extent::<cpu::X86_64>(&code, address), bounds::extent::<cpu::Arm64>(&code, address)] {
            assert!(end.is_none_or(|end| (address..=address + code.len() as u64).contains(&end)));
        }
    }

    #[test]
    fn a_broken_file_is_looked_at_or_refused(
        changes in prop::collection::vec((0usize..16_384, any::<u8>()), 1..32),
        is_for_arm: bool,
    ) {
        let mut bytes = LIBRARY.clone();
        for (place, byte) in changes {
            let end = bytes.len();
            bytes[place % end] = byte;
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        if is_for_arm {
            bytes[18] = EM_AARCH64 as u8;
        }
        file.write_all(&bytes).unwrap();
        inferred(file.path(), if is_for_arm { EM_AARCH64 } else { EM_X86_64 });
    }
}

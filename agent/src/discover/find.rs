//! How the functions of a TLS library are found in a file.
//!
//! In its symbols, wherever they are: dynamic ones, all of them, or those of `.gnu_debugdata`. Where none are, by what a person
//! knows of the file, or else by its code.

use std::{fmt, fs::File};

use super::{
    Function, Options, debugdata,
    elf::{self, Bytes, InFile, Layout, Span},
    infer, other,
};

pub use super::elf::Budget;

/// Where the offsets of a file's functions come from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its dynamic symbols.
    Symbols,
    /// Its full symbol table.
    SymbolTable,
    /// The symbols of its `.gnu_debugdata`.
    DebugData,
    /// A table of offsets by build ID.
    Offsets,
    /// Its code.
    Inferred,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symbols => "symbols",
            Self::SymbolTable => "symbol-table",
            Self::DebugData => "debug-data",
            Self::Offsets => "offsets",
            Self::Inferred => "inferred",
        })
    }
}

/// Whose library it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Google's.
    BoringSsl,
    /// The OpenSSL project's.
    OpenSsl,
    /// Not known.
    Unknown,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BoringSsl => "BoringSSL",
            Self::OpenSsl => "OpenSSL",
            Self::Unknown => "unknown",
        })
    }
}

/// What was found in a file.
#[derive(Clone, Debug)]
pub struct Found {
    /// What to probe, each at its offset in the file in bytes; at least one carries plaintext, or it is `BIO_write`.
    pub functions: Vec<(Function, u64)>,
    /// Where the offsets come from.
    pub how: How,
    /// Whose library it is.
    pub flavour: Flavour,
    /// Its version, as it says itself.
    pub version: Option<String>,
    /// Its build ID, in hexadecimal.
    pub build_id: Option<String>,
}

impl Found {
    /// Whether plaintext goes through any of the functions: it is more than a libcrypto.
    pub fn carries(&self) -> bool {
        self.functions.iter().any(|(function, _)| function.carries())
    }
}

/// Why nothing can be probed in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no ELF file of this device's kind: this instead.
    Foreign(&'static str),
    /// It is sound, and has nothing to probe.
    NoFunctions,
    /// It has TLS of another make: this.
    Other(&'static str),
    /// It has BoringSSL or OpenSSL in it, and nothing tells where their functions are, for this reason.
    Unnamed(&'static str),
    /// It may have something to probe, and is too large to be looked through: so large.
    TooLarge(&'static str),
}

/// Functions with their offsets in bytes, or with their addresses.
type Functions = Vec<(Function, u64)>;

/// The ELF file inside a file: all of it, or an entry of an APK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// Looks for the functions in a part of `file`, of which no more is read than `budget` allows.
pub fn find(file: &File, part: Part, budget: &Budget, options: &Options) -> Result<Found, Why> {
    let found = look(InFile { file, offset: part.offset, length: part.length, budget }, options);
    // What was not read may have been what tells.
    if budget.is_spent() { Err(Why::TooLarge(elf::TOO_MUCH)) } else { found }
}

fn look(bytes: InFile<'_>, options: &Options) -> Result<Found, Why> {
    let layout = Layout::of_file(bytes).map_err(Why::Foreign)?;
    let named = by_symbols(bytes, &layout);
    let carries = |(functions, _): &(Functions, How)| functions.iter().any(|(it, _)| it.carries());
    let is_hidden = !matches!(named, Err(Why::Foreign(_)))
        && !named.as_ref().is_ok_and(carries)
        && layout.constants.is_some_and(|constants| has_tls(bytes, constants));
    let hidden = if is_hidden { unnamed(bytes, &layout, options) } else { Err(Why::NoFunctions) };
    let (mut functions, how, flavour) = match (hidden, named) {
        (Ok(found), _) => found,
        (Err(_), Ok((functions, how))) => {
            let flavour = flavour(&functions);
            (functions, how, flavour)
        }
        (Err(Why::NoFunctions), Err(Why::NoFunctions)) => {
            return Err(other::by_constants(bytes, &layout).map_or(Why::NoFunctions, Why::Other));
        }
        (Err(why), Err(Why::NoFunctions)) | (_, Err(why)) => return Err(why),
    };
    for (_, offset) in &mut functions {
        *offset = offset.checked_add(bytes.offset).ok_or(Why::Foreign(elf::BROKEN))?;
    }
    let version = layout.constants.filter(|_| flavour == Flavour::OpenSsl);
    let version = version.and_then(|constants| openssl_version(bytes, constants));
    Ok(Found { functions, how, flavour, version, build_id: layout.build_id })
}

/// The functions by the best of the symbol tables that has any which carry plaintext, or else by one that has `BIO_write`.
fn by_symbols(bytes: InFile<'_>, layout: &Layout) -> Result<(Functions, How), Why> {
    let (mut second, mut is_too_large) = (None, false);
    let mut take = |functions: Functions, how| {
        if functions.iter().any(|(function, _)| function.carries()) {
            return Some((functions, how));
        }
        if second.is_none() && functions.iter().any(|(function, _)| *function == Function::BioWrite) {
            second = Some((functions, how));
        }
        None
    };
    for (table, how) in [(layout.dynamic, How::Symbols), (layout.full, How::SymbolTable)] {
        let Some(table) = table else { continue };
        if table.is_too_large() {
            is_too_large = true;
            continue;
        }
        let functions = layout.functions(&bytes, table).map_err(Why::Foreign)?;
        if let Some(found) = take(functions, how) {
            return Ok(found);
        }
    }
    // Every library of an Android has some, so only where there is TLS to be found.
    if let Some(span) = layout.debug_data
        && layout.constants.is_some_and(|constants| has_tls(bytes, constants))
        && let Some(debug) = debugdata::unpack(&bytes, span)
        && let Ok(Layout { full: Some(table), .. }) = Layout::of_bytes(&debug)
        && let Some(found) =
            take(layout.functions(&debug.as_slice(), table).map_err(Why::Foreign)?, How::DebugData)
    {
        return Ok(found);
    }
    second.ok_or(if is_too_large { Why::TooLarge(elf::LARGE_TABLE) } else { Why::NoFunctions })
}

/// Whose library it is that has these functions.
fn flavour(functions: &[(Function, u64)]) -> Flavour {
    let has = |wanted| functions.iter().any(|(function, _)| *function == wanted);
    match (has(Function::SetHostName), has(Function::ReadEx)) {
        (true, _) => Flavour::BoringSsl,
        (false, true) => Flavour::OpenSsl,
        (false, false) => Flavour::Unknown,
    }
}

/// The functions of a file with a TLS library that has no symbols.
fn unnamed(bytes: InFile<'_>, layout: &Layout, options: &Options) -> Result<(Functions, How, Flavour), Why> {
    let known = layout.build_id.as_ref().and_then(|build_id| options.offsets.of(build_id));
    let (functions, how, flavour) = if let Some(functions) = known {
        if !functions.iter().all(|(_, address)| infer::begins(bytes, layout, *address)) {
            return Err(Why::Unnamed("the addresses given for its build ID are no functions' beginnings"));
        }
        (functions.to_vec(), How::Offsets, flavour(functions))
    } else {
        let sources = infer::sources(bytes, layout).ok_or(Why::NoFunctions)?;
        if options.no_inferred {
            return Err(Why::Unnamed("--no-inferred is given"));
        }
        let inferred = infer::infer(bytes, layout, &sources).map_err(|unclear| match unclear {
            infer::Unclear::NoLibrary => Why::NoFunctions,
            infer::Unclear::Functions => Why::Unnamed("its code does not tell them for certain"),
        })?;
        (inferred.functions, How::Inferred, inferred.flavour)
    };
    let offset = |(function, address)| Some((function, layout.file_offset(address)?));
    let functions: Option<Functions> = functions.into_iter().map(offset).collect();
    Ok((functions.ok_or(Why::Foreign(elf::BROKEN))?, how, flavour))
}

/// Whether the constants of a file are a TLS library's. Source: the key log's labels, which BoringSSL and OpenSSL write.
fn has_tls(bytes: InFile<'_>, constants: Span) -> bool {
    position(bytes, constants, b"CLIENT_RANDOM\0").is_some()
}

/// What OpenSSL calls itself, as `3.0.17`.
fn openssl_version(bytes: InFile<'_>, constants: Span) -> Option<String> {
    const NAME: &[u8] = b"\0OpenSSL ";
    let mut from = 0;
    // The name stands in other texts too.
    for _ in 0..16 {
        let rest = (constants.0.checked_add(from)?, constants.1.checked_sub(from)?);
        from = from.checked_add(position(bytes, rest, NAME)?)?.checked_add(NAME.len() as u64)?;
        let mut text = [0; 16];
        if !bytes.read(constants.0.checked_add(from)?, &mut text) {
            return None;
        }
        let version = text.split(|byte| *byte == b' ').next().and_then(|text| str::from_utf8(text).ok())?;
        let is_version = |text: &str| {
            text.contains('.')
                && text.starts_with(|char: char| char.is_ascii_digit())
                && text.chars().all(|char| char.is_ascii_alphanumeric() || ".-".contains(char))
        };
        if is_version(version) {
            return Some(version.to_owned());
        }
    }
    None
}

/// Where `wanted` stands in `text`.
pub fn all<'a>(text: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let last = wanted.last().copied().unwrap_or_default();
    let ends = text.iter().enumerate().filter(move |(_, byte)| **byte == last).map(|(place, _)| place);
    ends.filter_map(move |end| {
        let start = (end + 1).checked_sub(wanted.len())?;
        (text[start..=end] == *wanted).then_some(start)
    })
}

/// How many bytes of constants are looked through: a browser has some 20 MiB of them.
pub const MAX_CONSTANTS: u64 = 256 << 20;

/// Where `wanted` stands first in a span, counted from the span's beginning.
pub fn position(bytes: InFile<'_>, (start, length): Span, wanted: &[u8]) -> Option<u64> {
    let mut found = None;
    elf::pieces(&bytes, (start, length.min(MAX_CONSTANTS)), wanted.len() - 1, &mut |piece, offset| {
        found = all(piece, wanted).next().map(|place| offset + place as u64);
        found.is_none()
    })
    .ok()?;
    found
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use super::*;

    const LIBCRYPTO: &str = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";

    /// What a real program answers, or the test fails with what is missing.
    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output();
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error}; bash ci/setup.sh test installs it"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn find_in(path: &Path) -> Result<Found, Why> {
        let file = File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        find(&file, Part { offset: 0, length }, &Budget::default(), &Options::default())
    }

    /// A library of two functions without dynamic symbols for them, as a program that links TLS statically is.
    fn hidden(folder: &Path) -> std::path::PathBuf {
        let source = folder.join("hidden.c");
        let code = "static const char *label = \"CLIENT_RANDOM\"; const char *other(void) { return label; }\n\
            __attribute__((visibility(\"hidden\"))) int SSL_read(int a) { return a + other()[0]; }\n\
            __attribute__((visibility(\"hidden\"))) int SSL_write(int a) { return SSL_read(a) * 3; }\n\
            int my_SSL_read(int a) { return SSL_write(a); }\n";
        fs::write(&source, code).unwrap();
        let library = folder.join("libhidden.so");
        let paths = [&library, &source].map(|path| path.to_str().unwrap());
        run("cc", &["-shared", "-fPIC", "-O1", "-fno-inline", "-o", paths[0], paths[1]]);
        library
    }

    /// The addresses of both functions, as nm has them: code is at the same place in file and memory here.
    fn expected(library: &Path) -> Vec<(Function, u64)> {
        let symbols = run("nm", &[library.to_str().unwrap()]);
        let address = |name: &str| {
            let line = symbols.lines().find(|line| line.ends_with(&format!(" t {name}"))).unwrap();
            u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
        };
        vec![(Function::Read, address("SSL_read")), (Function::Write, address("SSL_write"))]
    }

    /// Builds a shared file of C text, and looks into it.
    fn of_c(text: &str) -> Result<Found, Why> {
        let folder = tempfile::tempdir().unwrap();
        let (source, file) = (folder.path().join("a.c"), folder.path().join("a.so"));
        fs::write(&source, text).unwrap();
        run("cc", &["-shared", "-o", file.to_str().unwrap(), source.to_str().unwrap()]);
        find_in(&file)
    }

    #[test]
    fn tls_of_other_makes_is_named() {
        let go =
            r#"__attribute__((section(".go.buildinfo"))) int info = 1; const char type[] = "*tls.Conn";"#;
        assert_eq!(of_c(go).unwrap_err(), Why::Other("Go (crypto/tls)"));
        assert_eq!(of_c(&go.replace("*tls.Conn", "*net.Conn")).unwrap_err(), Why::NoFunctions);
        let rust = r#"const char place[] = "/home/x/.cargo/registry/src/index/rustls-0.23.31/src/lib.rs";"#;
        assert_eq!(of_c(rust).unwrap_err(), Why::Other("rustls"));
    }

    #[test]
    fn a_real_go_program_that_speaks_tls_is_named() {
        let go = run("go", &["env", "GOROOT"]);
        assert_eq!(find_in(&Path::new(go.trim()).join("bin/go")).unwrap_err(), Why::Other("Go (crypto/tls)"));
    }

    #[test]
    fn full_symbols_are_read_where_the_dynamic_ones_have_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let library = hidden(folder.path());
        let found = find_in(&library).unwrap();
        assert_eq!((found.how, &found.functions), (How::SymbolTable, &expected(&library)));
        run("strip", &[library.to_str().unwrap()]);
        assert_eq!(find_in(&library).unwrap_err(), Why::NoFunctions);
    }

    #[test]
    fn mini_debug_info_is_read_where_there_are_no_other_symbols() {
        let folder = tempfile::tempdir().unwrap();
        let library = hidden(folder.path());
        let expected = expected(&library);
        let path = library.to_str().unwrap();
        let debug = folder.path().join("debug");
        let debug = debug.to_str().unwrap();
        run("objcopy", &["--only-keep-debug", path, debug]);
        // Android's: blocks of 64 KiB.
        run("xz", &["--block-size=64KiB", debug]);
        run("strip", &[path]);
        run("objcopy", &["--add-section", &format!(".gnu_debugdata={debug}.xz"), path]);
        let found = find_in(&library).unwrap();
        assert_eq!((found.how, found.functions), (How::DebugData, expected));
    }

    #[test]
    fn a_part_of_a_file_is_looked_into_as_the_file_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let library = hidden(folder.path());
        let (alone, content) = (find_in(&library).unwrap(), fs::read(&library).unwrap());
        let outer = folder.path().join("outer");
        fs::write(&outer, [&[b'x'; 4096], &content[..], b"more"].concat()).unwrap();
        let file = File::open(&outer).unwrap();
        let part = Part { offset: 4096, length: content.len() as u64 };
        let found = find(&file, part, &Budget::default(), &Options::default()).unwrap();
        let moved: Vec<_> =
            alone.functions.iter().map(|(function, offset)| (*function, offset + 4096)).collect();
        assert_eq!((found.functions, found.build_id), (moved, alone.build_id));
    }

    /// curl_cffi's BoringSSL, and the same without its symbols.
    fn with_and_without_symbols(folder: &Path) -> [std::path::PathBuf; 2] {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(std::path::PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
        let full = target.join("copies/lib/python3.11/site-packages/curl_cffi/_wrapper.abi3.so");
        assert!(full.exists(), "{} is missing: bash ci/setup.sh test", full.display());
        let stripped = folder.join("stripped.so");
        run("strip", &["-o", stripped.to_str().unwrap(), full.to_str().unwrap()]);
        [full, stripped]
    }

    #[test]
    fn a_stripped_copy_is_found_at_the_same_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let [full, stripped] = with_and_without_symbols(folder.path()).map(|path| find_in(&path).unwrap());
        assert_eq!((full.how, stripped.how), (How::SymbolTable, How::Inferred));
        assert_eq!((stripped.flavour, stripped.functions.len()), (Flavour::BoringSsl, 3));
        let carrying = stripped.functions.iter().filter(|(function, _)| function.carries());
        assert!(carrying.clone().count() == 2 && carrying.into_iter().all(|it| full.functions.contains(it)));
    }

    #[test]
    fn what_a_person_knows_comes_before_guesses_and_must_be_functions_beginnings() {
        let folder = tempfile::tempdir().unwrap();
        let [full, stripped] = with_and_without_symbols(folder.path());
        let symbols = run("nm", &[full.to_str().unwrap()]);
        let address = |name: &str| {
            let line = symbols.lines().find(|line| line.ends_with(&format!(" t {name}"))).unwrap();
            line.split(' ').next().unwrap().to_owned()
        };
        let full = find_in(&full).unwrap();
        let file = File::open(&stripped).unwrap();
        let part = Part { offset: 0, length: file.metadata().unwrap().len() };
        let with = |write: &str, no_inferred| {
            let table = folder.path().join("offsets");
            let build_id = full.build_id.clone().unwrap();
            fs::write(&table, format!("{build_id} SSL_free={} SSL_write={write}\n", address("SSL_free")))
                .unwrap();
            let offsets = table.to_str().unwrap().parse().unwrap();
            find(&file, part, &Budget::default(), &Options { offsets, no_inferred, ..Options::default() })
        };
        let found = with(&address("SSL_write"), true).unwrap();
        assert_eq!((found.how, found.functions.len()), (How::Offsets, 2));
        assert!(found.functions.iter().all(|function| full.functions.contains(function)));
        let inside = format!("{:x}", u64::from_str_radix(&address("SSL_write"), 16).unwrap() + 1);
        assert!(
            matches!(with(&inside, false), Err(Why::Unnamed(why)) if why.contains("no functions' beginnings"))
        );
        let guesses =
            find(&file, part, &Budget::default(), &Options { no_inferred: true, ..Options::default() });
        assert!(matches!(guesses, Err(Why::Unnamed(why)) if why.contains("--no-inferred")));
    }

    #[test]
    fn what_was_not_looked_through_is_told_and_not_taken_for_a_file_without_tls() {
        const SIZE: u64 = 1 << 40;
        // The second section holds the strings.
        let mut content = super::super::tests::library(&["SSL_read"]);
        let sections = u64::from_le_bytes(content[40..48].try_into().unwrap()) as usize;
        content[sections + 64 + 32..][..8].copy_from_slice(&(SIZE / 2).to_le_bytes());
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        file.set_len(SIZE).unwrap();
        let budget = Budget::default();
        let look = || find(&file, Part { offset: 0, length: SIZE }, &budget, &Options::default());
        assert_eq!(look().unwrap_err(), Why::TooLarge(elf::LARGE_TABLE));
        budget.take(usize::MAX);
        assert_eq!(look().unwrap_err(), Why::TooLarge(elf::TOO_MUCH));
    }

    #[test]
    fn openssl_says_its_version() {
        if cfg!(target_arch = "x86_64") {
            let file = File::open(LIBCRYPTO).unwrap();
            let length = file.metadata().unwrap().len();
            let bytes = InFile { file: &file, offset: 0, length, budget: &Budget::default() };
            let version = openssl_version(bytes, Layout::of_file(bytes).unwrap().constants.unwrap()).unwrap();
            assert!(
                run("openssl", &["version"]).contains(&format!("Library: OpenSSL {version} ")),
                "{version}"
            );
        }
    }
}

//! The usual places of BoringSSL and OpenSSL on Android and Linux.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::file::fits;

/// Patterns below the root; `*` stands for any part of one name.
const PLACES: [&str; 14] = [
    // Android: Java's TLS, and since 11 in an APEX of its own; Cronet; whatever else brings its own. Every active APEX stands
    // under its name and under its name and version: the same files, of which one is taken. 32-bit ones too, to be told of.
    "apex/*/lib64/libssl.so",
    "apex/*/lib64/*libssl*.so",
    "apex/*/lib64/libcronet*.so",
    "apex/*/lib64/libconscrypt*.so",
    "apex/*/lib/libssl.so",
    // Then the system's native TLS, and the device maker's.
    "system/lib*/libssl.so",
    "system_ext/lib*/libssl.so",
    "vendor/lib*/libssl*.so",
    "product/lib*/libssl*.so",
    // Debian's packages of AOSP's BoringSSL.
    "usr/lib/*/android/libssl.so*",
    // What stands apart from the system: a browser, a runtime, a database.
    "opt/*/libssl.so*",
    "opt/*/lib*/libssl.so*",
    "opt/*/*/lib*/libssl.so*",
    "usr/local/lib*/libssl.so*",
];

/// The names of OpenSSL's library on Linux, in the folders of the dynamic linker.
const NAMES: [&str; 2] = ["libssl.so.3", "libssl.so.1.1"];

/// The folders of the dynamic linker below the root, on a distribution and on a Buildroot image, whatever its
/// configuration says.
const FOLDERS: [&str; 5] = ["usr/lib", "usr/lib/*", "usr/lib64", "lib", "lib64"];

/// Says where else the dynamic linker looks, with the names of files that say more. Source: ldconfig(8).
const CONFIGURATION: [&str; 3] = ["etc/ld.so.conf", "etc/ld.so.conf.d/*.conf", "etc/ld-musl-*.path"];
/// The most that is read of each.
const MAX_CONFIGURATION: u64 = 64 << 10;

/// The files below `root` that stand in a usual place, in the order of the places.
pub fn candidates(root: &Path) -> Vec<PathBuf> {
    let mut patterns: Vec<String> = PLACES.map(str::to_owned).into();
    for folder in FOLDERS.into_iter().map(str::to_owned).chain(configured(root)) {
        patterns.extend(NAMES.iter().map(|name| format!("{folder}/{name}")));
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in patterns.iter().flat_map(|pattern| expand(root, pattern)) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// The folders that the dynamic linker's configuration names, without the leading slash.
fn configured(root: &Path) -> Vec<String> {
    let mut folders = Vec::new();
    for path in CONFIGURATION.iter().flat_map(|pattern| expand(root, pattern)) {
        let mut text = String::new();
        let Ok(file) = File::open(path) else { continue };
        let _ = file.take(MAX_CONFIGURATION).read_to_string(&mut text);
        let lines = text.split(['\n', ':']).map(|line| line.split('#').next().unwrap_or_default().trim());
        // A line that includes other files begins with a word.
        let lines = lines.filter_map(|line| line.strip_prefix('/'));
        // No pattern of anybody else's: it may lead everywhere.
        folders.extend(lines.filter(|line| !line.contains('*')).map(str::to_owned));
    }
    folders
}

/// The existing paths that match `pattern` below `root`, sorted.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/') {
        let next = |folder: PathBuf| -> Vec<PathBuf> {
            if !part.contains('*') {
                return vec![folder.join(part)];
            }
            let matches = |name: &str| fits(part.as_bytes(), name.as_bytes());
            let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<String> = names.filter(|name| matches(name)).collect();
            names.sort();
            names.into_iter().map(|name| folder.join(name)).collect()
        };
        paths = paths.into_iter().flat_map(next).collect();
    }
    paths.retain(|path| path.is_file());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates_of(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = candidates(root.path());
        let mut found: Vec<String> = found
            .iter()
            .map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap().into())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn only_files_in_a_usual_place_are_candidates() {
        let wanted = [
            "apex/com.android.conscrypt/lib/libssl.so",
            "apex/com.android.conscrypt/lib64/libssl.so",
            "apex/com.android.conscrypt@340/lib64/libssl.so",
            "apex/com.android.tethering/lib64/libcronet.119.0.so",
            "apex/com.android.tethering/lib64/stable_cronet_libssl.so",
            "opt/thing/lib/libssl.so.3",
            "system/lib/libssl.so",
            "system/lib64/libssl.so",
            "usr/lib/libssl.so.3",
            "usr/lib/x86_64-linux-gnu/android/libssl.so.0",
            "usr/lib/x86_64-linux-gnu/libssl.so.1.1",
            "vendor/lib64/libssl_vendor.so",
        ];
        let others =
            ["usr/lib/x86_64-linux-gnu/libssl.so.9", "apex/com.android.tethering/lib64/libx.so", "libssl.so"];
        let files: Vec<_> = wanted.iter().chain(&others).map(|file| (*file, "")).collect();
        assert_eq!(candidates_of(&files), wanted);
    }

    #[test]
    fn the_dynamic_linkers_own_folders_are_usual_places() {
        let files = [
            ("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n"),
            ("etc/ld.so.conf.d/mine.conf", "# mine\n/srv/one/lib # here\n\n/srv/none\nrelative\n"),
            ("etc/ld-musl-x86_64.path", "/srv/two:/usr/lib"),
            ("srv/one/lib/libssl.so.3", ""),
            ("srv/two/libssl.so.1.1", ""),
            ("relative/libssl.so.3", ""),
            ("usr/lib/libssl.so.3", ""),
        ];
        let found = ["srv/one/lib/libssl.so.3", "srv/two/libssl.so.1.1", "usr/lib/libssl.so.3"];
        assert_eq!(candidates_of(&files), found);
    }

    proptest::proptest! {
        #[test]
        fn any_configuration_has_an_answer(text in "[/a*.#:\n ]{0,100}") {
            candidates_of(&[("etc/ld.so.conf", &text), ("a/libssl.so.3", "")]);
        }
    }
}

//! The usual places of BoringSSL and OpenSSL on Android and Linux.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Patterns below the root; `*` stands for any part of one name.
const PLACES: [&str; 13] = [
    // Android: Java's TLS, and since 11 in an APEX of its own; then the system's native TLS; then Cronet.
    "apex/com.android.conscrypt/lib64/libssl.so",
    "system/lib64/libssl.so",
    "apex/com.android.tethering/lib64/libcronet*.so",
    "apex/com.android.tethering/lib64/*libssl.so",
    // Debian's packages of AOSP's BoringSSL.
    "usr/lib/*/android/libssl.so*",
    // OpenSSL, on a distribution and on a Buildroot image.
    "usr/lib/libssl.so.3",
    "usr/lib/libssl.so.1.1",
    "usr/lib/*/libssl.so.3",
    "usr/lib/*/libssl.so.1.1",
    "usr/lib64/libssl.so.3",
    "usr/lib64/libssl.so.1.1",
    "lib/libssl.so.3",
    "usr/local/lib*/libssl.so.3",
];

/// The files below `root` that stand in a usual place, in the order of the places.
pub fn candidates(root: &Path) -> Vec<PathBuf> {
    PLACES.iter().flat_map(|pattern| expand(root, pattern)).collect()
}

/// The existing paths that match `pattern` below `root`, sorted.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/') {
        let next = |folder: PathBuf| -> Vec<PathBuf> {
            let Some((before, after)) = part.split_once('*') else {
                return vec![folder.join(part)];
            };
            let matches = |name: &str| name.strip_prefix(before).is_some_and(|rest| rest.ends_with(after));
            let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<String> = names.filter(|name| matches(name)).collect();
            names.sort();
            names.into_iter().map(|name| folder.join(name)).collect()
        };
        paths = paths.into_iter().flat_map(next).collect();
    }
    paths.retain(|path| path.exists());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_in_a_usual_place_are_candidates() {
        let root = tempfile::tempdir().unwrap();
        let wanted = [
            "apex/com.android.conscrypt/lib64/libssl.so",
            "apex/com.android.tethering/lib64/libcronet.119.0.so",
            "usr/lib/x86_64-linux-gnu/android/libssl.so.0",
            "usr/lib/libssl.so.3",
        ];
        let others =
            ["usr/lib/x86_64-linux-gnu/libssl.so.9", "apex/com.android.tethering/lib64/libx.so", "libssl.so"];
        for file in wanted.iter().chain(&others) {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = candidates(root.path());
        assert_eq!(found, wanted.map(|file| root.path().join(file)));
    }
}

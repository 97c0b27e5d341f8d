#!/usr/bin/env bash
# Makes what Buildroot takes: OUTDIR/plaintap-buildroot.tar.gz, a BR2_EXTERNAL tree that has plaintapd's sources with it.
#
#   bash buildroot/build.sh OUTDIR
#
# The sources are those that the agent is built from: it and our crates that it needs, its eBPF objects as they are built, and
# the crates of others in VENDOR/, where Buildroot's cargo infrastructure looks for them. Nothing is fetched when an image is
# built. The same commit gives the same bytes.
set -euo pipefail
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
esac
from=$PWD
# shellcheck source=ci/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../ci/lib.sh"
script_name=buildroot/build.sh

[[ ${1:-} && $# -eq 1 ]] || die "OUTDIR: see --help" 2
out=$1
[[ $out == /* ]] || out=$from/$out
use_cargo demo || die "no cargo of $(oldest_rust) or newer: bash ci/setup.sh demo"
version=$(workspace_version)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pack FOLDER ARCHIVE: sorted, with one date and nobody's names.
pack() {
  tar -c --sort=name --format=ustar --mtime=@315532800 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    -C "$(dirname "$1")" "$(basename "$1")" | gzip -9n >"$2.new"
  mv "$2.new" "$2"
}

sources=$work/plaintapd-$version
mkdir "$sources"
git ls-files -z agent proto bpf/abi bpf/prebuilt Cargo.toml Cargo.lock LICENSE-APACHE LICENSE-MIT |
  tar -c --null -T - | tar -x -C "$sources"
# Tests stay behind, and with them the crates that only they need.
rm -rf "$sources"/{agent,proto}/tests
/usr/bin/python3 -B - "$sources" <<'PYTHON'
import pathlib, re, sys
root = pathlib.Path(sys.argv[1])
manifest = root / "Cargo.toml"
text = re.sub(r"(?m)^(members|default-members) = .*$", r'\1 = ["agent", "bpf/abi", "proto"]', manifest.read_text())
text = re.sub(r"(?m)^exclude = .*\n", "", text)
manifest.write_text(re.sub(r"(?ms)^\[profile\.dev\.package\.[^\n]*\n.*?(?=^\[|\Z)", "", text))
for part in "agent", "proto", "bpf/abi":
    manifest = root / part / "Cargo.toml"
    text = re.sub(r"(?ms)^\[dev-dependencies\]\n.*?(?=^\[|\Z)", "", manifest.read_text())
    manifest.write_text(re.sub(r"(?ms)^\[\[test\]\]\n.*?(?=^\[|\Z)", "", text))
PYTHON

mkdir "$sources/.cargo"
(cd "$sources" && cargo vendor VENDOR >.cargo/config.toml 2>"$work/log") ||
  die "cargo can't fetch the crates: $(grep -m 1 '^error' "$work/log" || tail -n 1 "$work/log")"
/usr/bin/python3 -B buildroot/vendor.py "$sources" "$root/Cargo.lock"

tree=$work/plaintap-buildroot
mkdir -p "$tree"
git ls-files -z buildroot | tar -c --null -T - | tar -x -C "$tree" --strip-components=1
rm "$tree/build.sh" "$tree/vendor.py"
cp LICENSE-APACHE LICENSE-MIT docs/buildroot.md "$tree/"
mkdir "$tree/dl"
pack "$sources" "$tree/dl/plaintapd-$version.tar.gz"
sed -i "s/^\(PLAINTAPD_VERSION = \).*/\1$version/" "$tree/package/plaintapd/plaintapd.mk"
(cd "$tree/dl" && sha256sum "plaintapd-$version.tar.gz") | sed 's/^/sha256  /' >>"$tree/package/plaintapd/plaintapd.hash"
mkdir -p "$out"
pack "$tree" "$out/plaintap-buildroot.tar.gz"
stat -c '%n: %s bytes' "$out/plaintap-buildroot.tar.gz"

#!/usr/bin/env bash
# Makes what a release consists of, in dist/: plaintapd for aarch64 and x86_64 and plaintap for x86_64, each one static file that
# runs on any Linux; the Magisk module and the tree for Buildroot, which bring plaintapd into a device's system; bills of
# materials (CycloneDX), all licence texts, and SHA256SUMS.
#
#   bash ci/package.sh             as root the first time: it installs what is missing
#   bash ci/package.sh --check     builds in two other folders, and fails where the bytes differ
#
# Nothing in dist/ tells when, where or by whom it was built: the same sources and tools give the same bytes.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

case "$*" in
  '' | --check) ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 0 ;;
  *) die "unknown arguments: $*; see --help" 2 ;;
esac

if [[ ${1:-} == --check ]]; then
  git diff --quiet HEAD || die "there are changes that are not committed: what would be compared is the last commit"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  for folder in one another/one; do
    heading "building in a folder of its own ($folder)"
    git clone -q . "$work/$folder"
    # zig alone is taken over: it is the same file for all.
    mkdir -p "$work/$folder/target/device"
    [[ ! -d $target/device ]] || cp -al "$target"/device/zig-[0-9]* "$work/$folder/target/device/" 2>/dev/null || true
    env -u CARGO_TARGET_DIR bash "$work/$folder/ci/package.sh"
  done
  diff -r "$work/one/dist" "$work/another/one/dist" || die "two builds of the same sources differ (see above)"
  say "${green}both builds are the same, byte for byte$plain"
  exit
fi

# What an earlier release had is none of this one's.
rm -rf dist
mkdir dist
heading "plaintapd for devices"
bash ci/build-device.sh aarch64
bash ci/build-device.sh x86_64
heading "plaintap for the computer"
bash ci/build-device.sh x86_64 plaintap

heading "plaintapd in a device's system"
bash android/magisk/build.sh dist
bash buildroot/build.sh dist

heading "what they are made of"
musl_version=$(sed -n 's/^#define VERSION "\(.*\)"$/\1/p' "${zig%/*}/lib/libc/musl/src/internal/version.h")
libraries=("rust-std $(rust_version $device_rustc) MIT OR Apache-2.0" "musl ${musl_version:?is not told} MIT")
device=$target/device
for arch in aarch64 x86_64; do
  /usr/bin/python3 -B ci/sbom.py sbom plaintapd "$device"/{plaintapd-$arch,plaintap-bpf}.units -- "${libraries[@]}" >dist/plaintapd-$arch.cdx.json
done
/usr/bin/python3 -B ci/sbom.py sbom plaintap "$device/plaintap-x86_64.units" -- "${libraries[@]}" >dist/plaintap-x86_64.cdx.json
{
  /usr/bin/python3 -B ci/sbom.py licences plaintapd "$device"/{plaintapd-aarch64,plaintapd-x86_64,plaintap-bpf}.units
  printf '\n%s\n\n' "$(printf '=%.0s' {1..80})"
  /usr/bin/python3 -B ci/sbom.py licences plaintap "$device/plaintap-x86_64.units"
  printf '\n%s\n\n' "$(printf '=%.0s' {1..80})"
  say "Rust's standard library, but for the crates named above: MIT OR Apache-2.0, as LICENSE-MIT and LICENSE-APACHE here have them; https://www.rust-lang.org/"
  say "musl, the C library: MIT, as LICENSE-MIT here; Copyright (c) 2005-2020 Rich Felker, et al.; https://musl.libc.org/"
} >dist/LICENSES.txt
cp LICENSE-APACHE LICENSE-MIT dist/
(cd dist && sha256sum -- * >"$OLDPWD/dist.sums" && mv "$OLDPWD/dist.sums" SHA256SUMS)
(cd dist && sha256sum --check --quiet SHA256SUMS)
(cd dist && stat -c "%10s  %n" -- *)

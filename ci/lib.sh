#!/usr/bin/env bash
# What the scripts in ci/ share: how they speak, which cargo they use, where builds go. Sourced, never run.
# shellcheck disable=SC2034 # not every script uses every colour

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
[[ $target == /* ]] || target=$PWD/$target
cd "$root" || exit

if [[ -t 1 ]]; then
  bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
  bold='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*"; }
heading() { printf '%s%s%s\n' "$bold" "$*" "$plain"; }

# die MESSAGE [EXIT-CODE]: one line that names the thing and the remedy. A script elsewhere sets $script_name.
die() {
  printf '%s%s: %s%s\n' "$red" "${script_name:-ci/$(basename "$0")}" "$1" "$plain" >&2
  exit "${2:-1}"
}

# The oldest Rust that the workspace builds with, said once in Cargo.toml.
oldest_rust() { sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' "$root/Cargo.toml"; }

# The version of all the crates, said once in Cargo.toml.
workspace_version() { sed -n 's/^version = "\([0-9][^"]*\)"$/\1/p' "$root/Cargo.toml"; }

# at_least VERSION WANTED
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# The version that a cargo or rustc tells, or nothing. rustup's own cargo answers only if it has a toolchain.
rust_version() { "$1" --version 2>/dev/null | awk '{ print $2; exit }'; }

# cargo_suits CARGO demo|test: new enough, and for the tests with its own rustfmt and clippy.
cargo_suits() {
  local version
  version=$(rust_version "$1") || return 1
  [[ -n $version ]] && at_least "$version" "$(oldest_rust)" || return 1
  [[ $2 == demo ]] || { "$1" fmt --version && "$1" clippy --version; } >/dev/null 2>&1
}

# use_cargo demo|test: puts the cargo to use first on PATH, or fails: the person's own (rustup's), else Debian's.
use_cargo() {
  local own=${CARGO_HOME:-$HOME/.cargo}/bin cargo path=$PATH
  for cargo in "$(command -v cargo || true)" "$own/cargo" /usr/bin/cargo; do
    [[ -x $cargo ]] || continue
    # cargo looks for cargo-clippy and cargo-fmt in its own folder first, unless that folder is on PATH.
    PATH=$(dirname "$cargo"):$path:$own
    if cargo_suits "$cargo" "$1"; then
      export PATH
      return 0
    fi
  done
  PATH=$path
  return 1
}

# Debian's newest Rust, beside whatever cargo is in use: its library's sources match its compiler.
device_cargo=/usr/bin/cargo device_rustc=/usr/bin/rustc device_sources=/usr/lib/rustlib/src/rust
device_rust() {
  local version
  version=$(rust_version $device_rustc) && [[ -n $version && $(rust_version $device_cargo) == "$version" ]] &&
    [[ $(readlink $device_sources) == *"/rustc-$version" ]]
}

# What links programs for devices, and brings them musl: ci/build-device.sh fetches it.
zig_version=0.17.1
zig=$target/device/zig-$zig_version/ziglang/zig

# The one way that the programs are built, so that demo and tests share the result.
build_release() { cargo build --release --locked -p plaintapd -p plaintap "$@"; }

# until_true SECONDS COMMAND...: waits for a thing, with a bound.
until_true() {
  local end=$((SECONDS + $1 + 1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.05
  done
}

# several_times COMMAND...: what fetches. A registry or a proxy may have a bad moment.
several_times() {
  local pause
  for pause in 5 20; do
    "$@" && return
    say "$1 failed, and is tried again in $pause s"
    sleep "$pause"
  done
  "$@"
}

# aligned PROGRAM: fails where it can't be loaded on newer phones, which have pages of 16 KiB.
aligned() {
  local alignment alignments
  mapfile -t alignments < <(readelf -lW "$1" | awk '$1 == "LOAD" { print $NF }')
  ((${#alignments[@]})) || die "$1 has no segment"
  for alignment in "${alignments[@]}"; do
    ((alignment % 16384 == 0)) || die "$1 has a segment aligned to $alignment, which pages of 16 KiB can't hold"
  done
}

#!/usr/bin/env bash
# Sets up what is missing and runs every check and test, as root: the end-to-end tests load eBPF programs.
# Ends at the first step that fails, with its name. Cheap steps come first.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

done_steps=0
step() {
  local name=$1 start=$SECONDS
  shift
  heading "== $name"
  # No `if`, no `||`: they would switch `set -e` off inside of a step that is a function.
  running=$name
  "$@"
  running=
  done_steps=$((done_steps + 1))
  say "== $name: $((SECONDS - start)) s"
}

running=
ended() {
  local status=$?
  if ((status)); then
    printf '%sFAILED: %s (exit code %d) after %d s%s\n' "$red" "${running:-ci/test.sh}" "$status" "$SECONDS" "$plain"
  fi
}
trap ended EXIT

((EUID == 0)) || die "the end-to-end tests load eBPF programs: run this as root" 3

step "set up" bash ci/setup.sh test
use_cargo test || die "no cargo with rustfmt and clippy, though ci/setup.sh found one"

step "format" cargo fmt --all --check
step "licences and sources of the crates" /usr/bin/python3 -B ci/licenses.py
step "eBPF objects are what their sources build to" bash bpf/build.sh --check
step "lints" cargo clippy --locked --all-targets --workspace --exclude plaintap-bpf -- -D warnings
step "release build" build_release
# Unit and end-to-end tests in one go: selected apart, their packages would want the same crates with other features,
# and build them twice. The end-to-end tests drive the release build.
export PLAINTAP_BIN_DIR=$target/release
# Each run of the differential test lasts a minute.
PLAINTAP_STORM_SECONDS=60 step "unit and end-to-end tests" cargo test --locked
step "device build: aarch64" bash ci/build-device.sh

say "${green}all $done_steps steps passed in $SECONDS s$plain"

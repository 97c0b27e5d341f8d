#!/usr/bin/env bash
# Sets up what is missing and runs every check and test, as root: the end-to-end tests load eBPF programs.
# Ends at the first step that fails, with its name. Cheap steps come first.
#
#   bash ci/test.sh             everything
#   bash ci/test.sh --quick     while working: without the runs of a minute each, and without the virtual machines
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

quick=
case "$*" in
  '') ;;
  --quick) quick=yes ;;
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0" && exit 0 ;;
  *) die "unknown arguments: $*; see --help" 2 ;;
esac

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

formatted() {
  cargo fmt --all --check
  cargo fmt --manifest-path fuzz/Cargo.toml --check
  # The fuzz targets' lock file is not touched by work on the rest, and would be missed half an hour later.
  cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
}
# All there is, and the plain client, which has less in it.
lints() {
  cargo clippy --locked --all-targets --features plaintap/relay,plaintap-tests/relay --workspace --exclude plaintap-bpf -- -D warnings
  cargo clippy --locked --all-targets -p plaintap -- -D warnings
}
# What is compiled for devices only.
device_lints() {
  local triple
  for triple in aarch64-unknown-linux-musl aarch64-linux-android; do
    # Debian's compiler, whose library's sources are here, and the lints that go with it.
    env PATH="/usr/bin:$PATH" CARGO_TARGET_DIR="$target/device" RUSTC=$device_rustc RUSTC_BOOTSTRAP=1 \
      $device_cargo clippy --locked -Zbuild-std=std,panic_abort --target "$triple" -p plaintapd -p plaintap --lib --bins -- -D warnings
  done
}
# The real agent, a plaintap that can relay, and a real nats-server.
relay() {
  cargo build --locked -p plaintap --features relay
  mkdir -p "$target/relay"
  ln -sf ../debug/plaintap ../release/plaintapd "$target/relay/"
  PLAINTAP_BIN_DIR=$target/relay cargo test --locked --no-fail-fast -p plaintap -p plaintap-tests \
    --features plaintap/relay,plaintap-tests/relay --lib --test generate --test relay
}
step "format" formatted
step "licences and sources of the crates" /usr/bin/python3 -B ci/licenses.py
step "eBPF objects are what their sources build to" bash bpf/build.sh --check
step "lints" lints
step "release build" build_release
# Unit and end-to-end tests in one go: selected apart, their packages would want the same crates with other features,
# and build them twice. The end-to-end tests drive the release build.
export PLAINTAP_BIN_DIR=$target/release
# The end-to-end tests mostly wait, for the kernel above all: each probe's end takes it a tenth of a second.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}
if [[ $quick ]]; then
  step "unit and end-to-end tests, without the differential test" cargo test --locked --workspace \
    --exclude plaintap-bpf --exclude plaintap-bench --lib --bins --test e2e
  step "device build: aarch64" bash ci/build-device.sh
  say "${green}$done_steps steps passed in $SECONDS s$plain; left out: the differential test, the page, fuzzing, arm64 kernels 5.10, 6.1 and 6.12"
  exit
fi
# Each run of the differential test lasts a minute.
PLAINTAP_STORM_SECONDS=60 step "unit and end-to-end tests" cargo test --locked --no-fail-fast
step "the page, in node and Chromium" bash tests/web/test.sh
step "the reference clients, in four languages" bash tests/examples/test.sh
step "relaying into NATS, a cargo feature" relay
step "TLS for clients, a cargo feature" cargo test --locked -p plaintapd --features tls --test tls
step "device build: aarch64" bash ci/build-device.sh
step "lints for devices: aarch64, Linux and Android" device_lints
step "linked for Android, against stubs" bash ci/link-android.sh
step "baked in: the Magisk module and the Buildroot package" bash tests/baked/test.sh
step "fuzzing, 5 s a target" bash ci/fuzz.sh 5
step "end-to-end tests on arm64 kernels 5.10, 6.1 and 6.12" bash tests/vm/test.sh
step "the real adbd on arm64 kernels 5.10, 6.1 and 6.12" bash tests/vm/adb.sh
step "SELinux on arm64 kernels 5.10 and 6.12" bash tests/vm/selinux.sh
step "baked in, on an arm64 kernel" bash tests/vm/baked.sh

say "${green}all $done_steps steps passed in $SECONDS s$plain"

#!/usr/bin/env bash
# Builds the end-to-end tests of tests/ for the guests: the same sources, as a static aarch64 program.
#
#   bash tests/vm/build.sh          makes target/vm/tests/: e2e, and the list of programs that it starts
#   bash tests/vm/build.sh bench    makes target/vm/tests/plaintap-bench, for ci/bench.sh device
#
# As ci/build-device.sh, which brings the compiler and the linker, but with a panic that unwinds: the test harness goes
# on after a test that fails. Optimised a little, since an emulated CPU is slow, and without debug information.
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
[[ $# == 0 || ($# == 1 && $1 == bench) ]] || usage 2 >&2

triple=aarch64-unknown-linux-musl
linker=$target/device/cc-$triple build=$vm/build said=$vm/build.json
[[ -x $linker ]] || die "$linker is missing: run bash ci/build-device.sh first"
command -v aarch64-linux-gnu-gcc >/dev/null || bash tests/vm/fetch.sh

mkdir -p "$build" "$vm/tests"
# for_guest COMMAND ARGUMENT...: cargo for the guests. The tests' build.rs compiles the TLS drivers with $CC: for glibc, as
# Debian's libraries that they load.
for_guest() {
  env -u RUSTFLAGS -u CARGO_BUILD_TARGET \
    CC=aarch64-linux-gnu-gcc \
    CARGO_TARGET_DIR="$build" RUSTC=$device_rustc RUSTC_BOOTSTRAP=1 \
    ZIG_GLOBAL_CACHE_DIR="$target/device/zig-cache" ZIG_LOCAL_CACHE_DIR="$target/device/zig-cache" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER="$linker" \
    CARGO_ENCODED_RUSTFLAGS=$'-Ctarget-feature=+crt-static\x1f-Clink-self-contained=no' \
    CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_STRIP=symbols CARGO_INCREMENTAL=0 \
    $device_cargo "$@" --locked -Zbuild-std=std,panic_unwind --target "$triple"
}

if [[ ${1:-} == bench ]]; then
  for_guest build -p plaintap-bench
  cp "$build/$triple/debug/plaintap-bench" "$vm/tests/plaintap-bench"
  exit
fi
for_guest test --no-run -p plaintap-tests --test e2e --message-format=json-render-diagnostics >"$said"

# What cargo's messages say: the test program, then the programs that build.rs compiled. Their paths are compiled in, so
# a guest must have them at the same places.
/usr/bin/python3 - "$said" >"$vm/tests/paths" <<'END'
import json, sys
tests, programs = [], []
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "e2e":
        tests.append(message["executable"])
    if message["reason"] == "build-script-executed" and "plaintap-tests" in message["package_id"]:
        programs += [value for _, value in message["env"] if value.startswith(message["out_dir"] + "/")]
print(*tests, *programs, sep="\n")
END
mapfile -t paths <"$vm/tests/paths"
((${#paths[@]} > 1)) || die "cargo told of no e2e test program or no TLS driver"
cp "${paths[0]}" "$vm/tests/e2e.new"
mv "$vm/tests/e2e.new" "$vm/tests/e2e"
printf '%s\n' "${paths[@]:1}" >"$vm/tests/programs"

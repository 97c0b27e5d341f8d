#!/usr/bin/env bash
# Builds the eBPF programs into bpf/prebuilt/: an object for each CPU architecture, and the digest of their sources.
#
#   bash bpf/build.sh            build and keep
#   bash bpf/build.sh --check    build aside, and fail if the kept objects or their digest differ
#   bash bpf/build.sh --digest   only compare the digest (needs no toolchain)
#
# Needs a rustc that has `core` for bpfel-unknown-none, and LLVM's llc of at least its version: on Debian, the packages
# rustc-web libstd-rust-web-dev-bpf llvm-22. RUSTC and LLVM_BIN name others.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-build}
case $mode in build | --check | --digest) ;; *)
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
  ;;
esac

fail() {
  echo "bpf/build.sh: $*" >&2
  exit 1
}

# What an object is made from; Cargo.lock counts through the exact version of aya-ebpf in probes/Cargo.toml.
digest() {
  find bpf/abi bpf/probes bpf/build.sh -type f -not -path '*/target/*' -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

if [ "$mode" = --digest ] || [ "$mode" = --check ]; then
  [ "$(cat bpf/prebuilt/SOURCES.sha256 2>/dev/null)" = "$(digest)" ] ||
    fail "bpf/prebuilt is older than its sources: run bash bpf/build.sh"
  [ "$mode" = --check ] || exit 0
fi

RUSTC=${RUSTC:-/usr/bin/rustc}
LLVM_BIN=${LLVM_BIN:-/usr/lib/llvm-22/bin}
CARGO=$(command -v cargo || command -v /usr/lib/rust-web/bin/cargo || command -v cargo-web) || fail "no cargo found"
[ -x "$RUSTC" ] || fail "no $RUSTC: apt-get install rustc-web, or set RUSTC"
[ -x "$LLVM_BIN/llc" ] || fail "no $LLVM_BIN/llc: apt-get install llvm-22, or set LLVM_BIN"
"$RUSTC" --print target-libdir --target bpfel-unknown-none | xargs -I{} sh -c 'ls {}/libcore-*.rlib' >/dev/null 2>&1 ||
  fail "$RUSTC has no core for bpfel-unknown-none: apt-get install libstd-rust-web-dev-bpf"

target=${CARGO_TARGET_DIR:-$PWD/target}/bpf
out=bpf/prebuilt
[ "$mode" = build ] || out=$target/check
mkdir -p "$target" "$out"
cargo_home=${CARGO_HOME:-$HOME/.cargo}

for arch in x86_64 aarch64; do
  env -u CARGO_ENCODED_RUSTFLAGS RUSTC="$RUSTC" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target/$arch" \
    CARGO_CFG_BPF_TARGET_ARCH=$arch \
    RUSTFLAGS="--cfg bpf_target_arch=\"$arch\" -Clinker=true --remap-path-prefix=$PWD=/probe --remap-path-prefix=$cargo_home=/cargo" \
    "$CARGO" rustc --quiet --locked --release --target bpfel-unknown-none -p plaintap-bpf --bin plaintap-bpf -- \
    --emit=obj="$target/$arch.bc"
  "$LLVM_BIN/llc" -mcpu=v1 -filetype=obj -O3 -o "$target/$arch.o" "$target/$arch.bc"
  "$LLVM_BIN/llvm-objcopy" --strip-debug --remove-section=.BTF --remove-section=.BTF.ext \
    --remove-section=.rel.BTF --remove-section=.rel.BTF.ext "$target/$arch.o" "$out/$arch.o"
done

if [ "$mode" = --check ]; then
  for arch in x86_64 aarch64; do
    cmp "$out/$arch.o" "bpf/prebuilt/$arch.o" || fail "bpf/prebuilt/$arch.o is not what its sources build to"
  done
else
  digest >bpf/prebuilt/SOURCES.sha256
fi

#!/usr/bin/env bash
# Builds a program as one static file: dist/PROGRAM-ARCH.
#
#   bash ci/build-device.sh                     plaintapd for aarch64: phones, tablets, most boards
#   bash ci/build-device.sh x86_64              plaintapd for x86_64: emulators, Buildroot images for a PC
#   bash ci/build-device.sh x86_64 plaintap     plaintap, for any Linux computer
#
# musl's C library makes it run on Android's kernel as it is. Debian has no Rust library for musl, so cargo builds one
# from its sources (rust-web-src), which also leaves out what `panic = "abort"` needs no more: 40 % of the size. zig
# (from PyPI) brings musl itself and the linker. No path of this machine gets into the program, and building the same
# sources with the same tools gives the same bytes.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

arch=${1:-aarch64}
case $arch in aarch64 | x86_64) ;; *) die "can't build for '$arch': aarch64 or x86_64" 2 ;; esac

name=${2:-plaintapd}
case $name in plaintapd | plaintap) ;; *) die "can't build '$name': plaintapd or plaintap" 2 ;; esac

# The budget that the agent has kept on devices from its first version on.
largest=$((1024 * 1024))
triple=$arch-unknown-linux-musl
device=$target/device

bash ci/setup.sh device

packages=$device/zig-$zig_version
if [[ ! -x $zig ]]; then
  say "fetching zig $zig_version from PyPI (100 MB)"
  rm -rf "$packages" "$packages.new"
  several_times /usr/bin/python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps \
    --target "$packages.new" "ziglang==$zig_version" || die "pip can't fetch ziglang==$zig_version from PyPI"
  mv "$packages.new" "$packages"
fi

# rustc calls its linker by one name, without arguments of ours.
linker=$device/cc-$triple
printf '#!/bin/sh\nexec "%s" cc -target %s-linux-musl "$@"\n' "$zig" "$arch" >"$linker"
chmod +x "$linker"
export ZIG_GLOBAL_CACHE_DIR=$device/zig-cache ZIG_LOCAL_CACHE_DIR=$device/zig-cache

# Joined by a byte that no path holds. The last prefix that fits wins. `self-contained=no`: zig brings crt1.o and libc.
# A panic aborts, so nobody unwinds: the tables for it would be a sixth of the program.
flags=(
  -Ctarget-feature=+crt-static
  -Cforce-unwind-tables=no
  -Clink-self-contained=no
  --remap-path-prefix="$root=/plaintap"
  --remap-path-prefix="$target=/target"
  --remap-path-prefix="${CARGO_HOME:-$HOME/.cargo}=/cargo"
)
linker_variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$triple")_LINKER
cargo_for_devices() {
  env -u RUSTFLAGS -u CARGO_BUILD_TARGET \
    CARGO_TARGET_DIR="$device" RUSTC=$device_rustc RUSTC_BOOTSTRAP=1 "$linker_variable=$linker" \
    CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f' && printf '%s' "${flags[*]}")" \
    $device_cargo build --release --locked "$@"
}
build=('-Zbuild-std=std,panic_abort' -Zbuild-std-features=optimize_for_size --target "$triple" -p "$name" --bin "$name")
cargo_for_devices "${build[@]}"
# What is in it, for ci/package.sh; and what is in the eBPF objects, which plaintapd embeds.
cargo_for_devices "${build[@]}" -Zunstable-options --unit-graph >"$device/$name-$arch.units"
cargo_for_devices --target bpfel-unknown-none -p plaintap-bpf --bin plaintap-bpf -Zunstable-options --unit-graph >"$device/plaintap-bpf.units"

mkdir -p dist
program=dist/$name-$arch
cp "$device/$triple/release/$name" "$program.new"
mv "$program.new" "$program"

# What it must be: for that CPU, asking for no loader and no library, without our paths, small.
machine=$(readelf -h "$program" | sed -n 's/^ *Machine: *//p')
case $arch/$machine in
  aarch64/AArch64 | x86_64/*X86-64) ;;
  *) die "$program is for '$machine', not $arch" ;;
esac
if readelf -lW "$program" | grep -qw INTERP || readelf -dW "$program" | grep -qw NEEDED; then
  die "$program is not statically linked"
fi
for path in "$root/" "$target/" "${CARGO_HOME:-$HOME/.cargo}/"; do
  if grep -qaF -e "$path" "$program"; then die "$program holds this machine's path $path"; fi
done
size=$(stat -c %s "$program")
if [[ $(uname -m) == "$arch" ]]; then run=(); else run=("qemu-$arch"); fi
told=$(timeout 20 "${run[@]}" "./$program" --version) || die "$program --version fails ($?)"

printf '%s: %s, static, %d bytes (%s MiB), says "%s"\n' "$program" "$machine" "$size" \
  "$(awk "BEGIN { printf \"%.2f\", $size / 1048576 }")" "$told"
[[ $name != plaintapd ]] || aligned "$program"
[[ $name/$arch != plaintapd/aarch64 ]] || ((size <= largest)) || die "$program has $size bytes, more than the $largest that are allowed"

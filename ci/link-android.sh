#!/usr/bin/env bash
# Links plaintapd for aarch64-linux-android, as far as that goes without Android's NDK: against libraries that have a name and
# nothing else. What comes out runs nowhere. It shows that all crates fit together for this target, which of Android's
# libraries it asks for, that its log goes to liblog, and that pages of 16 KiB can hold it.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

triple=aarch64-linux-android
android=$target/android stubs=$target/android/stubs program=$target/android/$triple/debug/plaintapd
# All that Rust's target asks for, and liblog.
libraries=(libc.so libdl.so liblog.so libm.so)
[[ -x $zig ]] || die "there is no linker: run bash ci/build-device.sh first"
export ZIG_GLOBAL_CACHE_DIR=$target/device/zig-cache ZIG_LOCAL_CACHE_DIR=$target/device/zig-cache

rm -rf "$stubs"
mkdir -p "$stubs"
for library in "${libraries[@]}"; do
  "$zig" cc -target aarch64-linux-musl -shared -nostdlib -Wl,-soname,"$library" -o "$stubs/$library" -x c /dev/null
done

# rustc speaks to a compiler, as NDKs have one, and this is but a linker. What unwinds the stack is left out: a panic ends the
# program, and asks for nothing of it. As the stubs hold nothing, none of them would count as needed.
linker=$android/cc
cat >"$linker" <<LINKER
#!/usr/bin/env bash
arguments=()
for argument; do
  case \$argument in
    -nodefaultlibs | -lgcc | -lunwind | -Wl,--as-needed) ;;
    -Wl,*) IFS=, read -ra more <<<"\${argument#-Wl,}" && arguments+=("\${more[@]}") ;;
    *) arguments+=("\$argument") ;;
  esac
done
exec "$zig" ld.lld "\${arguments[@]}" -L "$stubs" --unresolved-symbols=ignore-all --entry=main
LINKER
chmod +x "$linker"
env -u RUSTFLAGS -u CARGO_BUILD_TARGET \
  CARGO_TARGET_DIR="$android" RUSTC=$device_rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_AARCH64_LINUX_ANDROID_LINKER="$linker" \
  CARGO_PROFILE_DEV_PANIC=abort CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
  $device_cargo build --locked -Zbuild-std=std,panic_abort --target $triple -p plaintapd --bin plaintapd

mapfile -t needed < <(readelf -dW "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | sort -u)
for library in "${needed[@]}"; do
  [[ " ${libraries[*]} " == *" $library "* ]] || die "$program asks for $library"
done
[[ " ${needed[*]} " == *" liblog.so "* ]] || die "$program does not ask for liblog.so"
readelf --dyn-syms -W "$program" | grep -w UND | grep '__android_log_' >/dev/null || die "nothing in $program goes to liblog"
aligned "$program"
say "plaintapd for $triple: links against stubs of ${needed[*]}, for pages of 16 KiB; it was run nowhere"

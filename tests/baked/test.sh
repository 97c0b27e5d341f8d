#!/usr/bin/env bash
# What makes plaintapd part of a system, as far as this computer can try it: the Magisk module's scripts and zip, and the
# Buildroot package. tests/vm/baked.sh tries both on an arm64 kernel.
#
#   bash tests/baked/test.sh     needs dist/plaintapd-aarch64, or makes it; a network only to fetch crates
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"
script_name=tests/baked/test.sh
case "$*" in
  '') ;;
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
  *) die "unknown arguments: $*; see --help" 2 ;;
esac

work=$(mktemp -d)
agent=
# shellcheck disable=SC2317 # the trap calls it
end() {
  [[ -z $agent ]] || kill -KILL "$agent" 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
package=buildroot/package/plaintapd

# has FILE LINE: that line, whole.
has() { grep -qxF -e "$2" "$1" || die "not in $(basename "$1"): $2"; }

scripts() {
  shellcheck -x -P . android/magisk/*.sh android/magisk/META-INF/com/google/android/update-binary $package/S90plaintapd \
    buildroot/build.sh tests/baked/*.sh tests/vm/{baked.sh,conversation,magisk-guest,buildroot-guest}
  local script
  for script in android/magisk/{action,customize,plaintap,service,supervise,uninstall}.sh $package/S90plaintapd; do
    busybox ash -n "$script" || die "$script: busybox does not read it"
  done
  say "scripts: shellcheck and busybox ash read them"
}

# S90plaintapd against programs of that name that end late, or not when they are asked to.
late() {
  local box=$work/box script=$work/S90
  mkdir -p "$box/default"
  ln -s "$(command -v busybox)" "$box/start-stop-daemon"
  # A shell under that name, and what it runs.
  cp "$(readlink -f /bin/bash)" "$box/plaintapd"
  echo "PLAINTAPD_ARGS='$box/ours $box/up'" >"$box/default/plaintapd"
  sed "s|/usr/bin/|$box/|g; s|/var/run|$box|; s|/etc/default|$box/default|g; s|gone 300|gone 20|; s|30 s|2 s|" \
    $package/S90plaintapd >"$script"
  s90() { PATH=$box:$PATH busybox ash "$script" "$1" >"$work/said" 2>&1; }
  # lives PID: no zombie either.
  lives() { grep -q . "/proc/$1/cmdline" 2>/dev/null; }
  # comes ON-TERM: starts one that does this when it is asked to end.
  comes() {
    rm -f "$box/up"
    # shellcheck disable=SC2016 # that shell's words
    printf 'trap "%s" TERM; echo >"$1"; while :; do sleep 0.1; done\n' "$1" >"$box/ours"
    s90 start || die "S90plaintapd can't start it: $(<"$work/said")"
    until [[ -e $box/up ]]; do sleep 0.1; done
    agent=$(<"$box/plaintapd.pid")
  }

  comes 'sleep 1; exit'
  s90 stop || die "S90plaintapd can't stop what ends late: $(<"$work/said")"
  { ! lives "$agent" && [[ ! -e $box/plaintapd.pid ]]; } || die "S90plaintapd's stop does not wait"
  ! grep killed "$work/said" || die "S90plaintapd kills what ends late"

  comes ''
  local old=$agent
  s90 restart || die "S90plaintapd can't restart what does not end: $(<"$work/said")"
  agent=$(<"$box/plaintapd.pid")
  grep -q 'killed: OK' "$work/said" || die "S90plaintapd does not say that it kills: $(<"$work/said")"
  { lives "$agent" && ! lives "$old"; } || die "S90plaintapd's restart leaves none, or the old one"

  # One that can't be killed, as the kernel may hold it.
  sed -i 's/--signal KILL/--signal CONT/; s/gone 100/gone 5/' "$script"
  ! s90 stop || die "S90plaintapd takes what goes on for stopped: $(<"$work/said")"
  ! s90 restart || die "S90plaintapd starts a second one: $(<"$work/said")"
  [[ $(<"$box/plaintapd.pid") == "$agent" ]] || die "S90plaintapd forgets what goes on"
  kill -KILL "$agent"
  agent=
  say "S90plaintapd: waits, kills and says so, and starts no second one"
}

magisk() {
  [[ -x dist/plaintapd-aarch64 ]] || bash ci/build-device.sh
  local one=$work/one another=$work/another
  bash android/magisk/build.sh "$one" https://example.org/plaintap/ >/dev/null
  bash android/magisk/build.sh "$another" https://example.org/plaintap >/dev/null
  diff -r "$one" "$another" || die "two builds of the module differ"
  /usr/bin/python3 -B - "$one" <<'PYTHON'
import json, pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
module = zipfile.ZipFile(folder / "plaintap-magisk.zip")
names = set(module.namelist())
for name in "module.prop", "customize.sh", "service.sh", "action.sh", "uninstall.sh", "plaintapd", "LICENSE-MIT":
    assert name in names, f"the zip has no {name}"
assert "build.sh" not in names, "the zip has build.sh"
told = dict(line.split("=", 1) for line in module.read("module.prop").decode().splitlines())
update = json.loads((folder / "plaintap-magisk.json").read_text())
assert told["updateJson"] == "https://example.org/plaintap/plaintap-magisk.json", told
assert (told["version"], int(told["versionCode"])) == (update["version"], update["versionCode"]), (told, update)
flags = [line for line in module.read("plaintapd.conf").decode().splitlines() if line and not line.startswith("#")]
assert "--on-demand" in flags and "--memory-limit 8M" in flags, flags
assert not any(flag.startswith(("--package", "--uid", "--pid", "--comm")) for flag in flags), flags
PYTHON
  say "Magisk: the zip is whole, the same from two builds, on demand, and names no app"
}

# The file's own rules, as Buildroot's check-package has them.
conventions() {
  local file
  for file in buildroot/{Config.in,external.mk} "$package"/*; do
    ! grep -nE '[[:space:]]$' "$file" || die "$file: blanks at the end of a line"
    [[ -z $(tail -c 1 "$file") ]] || die "$file: no newline at its end"
  done
  # A help text: a tab, two blanks, at most 62 characters.
  awk '/^\thelp$/ { help = 1; next } /^[a-z]/ { help = 0 }
    help && !/^$/ && (!/^\t  / || length($0) > 65) { print FILENAME ": " $0; bad = 1 } END { exit bad }' \
    $package/Config.in || die "Config.in: a help text that Buildroot would not take"
  sed -n '1p;5p' $package/plaintapd.mk | awk '!/^#+$/ || length($0) != 80 { bad = 1 } END { exit bad }' ||
    die "plaintapd.mk: not the header that Buildroot wants"
  ! sed -n '6,$p' $package/plaintapd.mk | grep -nE '^ +[^ ]' || die "plaintapd.mk: blanks in place of a tab"
  has $package/plaintapd.hash "sha256  $(sha256sum LICENSE-APACHE | cut -c -64)  LICENSE-APACHE"
  has $package/plaintapd.hash "sha256  $(sha256sum LICENSE-MIT | cut -c -64)  LICENSE-MIT"
  sed "s|/usr/bin/plaintapd|/bin/true|" $package/plaintapd.service >"$work/plaintapd.service"
  systemd-analyze verify "$work/plaintapd.service" || die "plaintapd.service: see above"
  # Which is there before any network, and is watched.
  ! grep -q '^\(After\|Wants\|Requires\)=.*network' $package/plaintapd.service || die "plaintapd.service waits for the network"
  has $package/plaintapd.service WatchdogSec=60
  has $package/plaintapd.service Type=notify
  grep -q '^ExecStart=.* --on-demand ' $package/plaintapd.service || die "plaintapd.service is not on demand"
  grep -q '^PLAINTAPD_ARGS=.*--on-demand ' $package/S90plaintapd || die "S90plaintapd is not on demand"
  has $package/plaintapd.conf "--memory-limit 8M"
  say "Buildroot: the package keeps to its conventions, and systemd takes the unit"
}

buildroot() {
  bash buildroot/build.sh "$work" >/dev/null
  tar -x -f "$work/plaintap-buildroot.tar.gz" -C "$work"
  local tree=$work/plaintap-buildroot version archive
  version=$(workspace_version)
  archive=plaintapd-$version.tar.gz

  bash tests/baked/make.sh "$tree" >"$work/by-hand"
  bash tests/baked/make.sh "$tree" BR2_PACKAGE_PLAINTAPD_START_AT_BOOT=y >"$work/at-boot"
  ! grep -h warning: "$work/by-hand" "$work/at-boot" || die "make warns of the package (see above)"
  has "$work/by-hand" "PLAINTAPD_VERSION = $version"
  has "$work/by-hand" "PLAINTAPD_SITE = file://$tree/dl"
  has "$work/by-hand" "PLAINTAPD_SOURCE = $archive"
  has "$work/by-hand" "installs ./etc/plaintapd.conf 600"
  ! grep -q '^installs .*\(init.d\|systemd\)' "$work/by-hand" || die "a service is installed that nobody asked for"
  has "$work/at-boot" "installs ./etc/init.d/S90plaintapd 755"
  has "$work/at-boot" "installs ./usr/lib/systemd/system/plaintapd.service 644"
  has "$tree/package/plaintapd/plaintapd.hash" "sha256  $(sha256sum "$tree/dl/$archive" | cut -c -64)  $archive"
  say "Buildroot: make reads the tree, and installs a service only when asked to"

  tar -x -f "$tree/dl/$archive" -C "$work"
  use_cargo demo || die "no cargo of $(oldest_rust) or newer: bash ci/setup.sh test"
  # As Buildroot builds it: from the package's folder, optimised for speed, without a network, with nothing of this computer's.
  (cd "$work/plaintapd-$version/agent" && unshare -n env -u CARGO_TARGET_DIR CARGO_HOME="$work/cargo-home" \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=2 timeout 900 cargo build --quiet --offline --release --manifest-path Cargo.toml \
    --locked --bin plaintapd) || die "the sources don't build without a network"
  local program=$work/plaintapd-$version/target/release/plaintapd
  [[ $("$program" --version) == "plaintapd $version" ]] || die "what is built says $("$program" --version)"
  say "Buildroot: builds offline, $(stat -c %s "$program") bytes at opt-level 2"
}

scripts
late
magisk
conventions
buildroot

#!/usr/bin/env bash
# plaintapd baked in, on a real arm64 kernel: what is installed on a phone by Magisk, and what is in a Buildroot image, starts
# at boot by itself, and what is said over TLS inside appears in a client outside, with nothing typed by hand.
#
#   bash tests/vm/baked.sh [magisk|buildroot]...     both, if none is named
#
# Magisk's and Buildroot's parts are ours as they are built; the systems around them are stand-ins (tests/vm/magisk-guest
# and tests/vm/buildroot-guest say what they are).
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

# How many seconds a machine may take for all of it, and a client to see what is said.
timeout=240
kernel=6.12

layouts=()
while (($#)); do
  case $1 in
    -h | --help) usage 0 ;;
    magisk | buildroot) layouts+=("$1") ;;
    *) usage 2 >&2 ;;
  esac
  shift
done
((${#layouts[@]})) || layouts=(magisk buildroot)

bash tests/vm/fetch.sh
[[ -x dist/plaintapd-aarch64 ]] || bash ci/build-device.sh
plaintap=${PLAINTAP_BIN_DIR:-$target/release}/plaintap
[[ -x $plaintap ]] || die "$plaintap is missing: cargo build --release --locked -p plaintap"

work=$(mktemp -d)
started=()
# shellcheck disable=SC2317 # the trap calls it
end() {
  local status=$? pid
  trap - EXIT
  for pid in "${started[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  wait
  if ((status)); then
    mkdir -p "$vm/baked-failed"
    cp "$work"/*.log "$vm/baked-failed/" 2>/dev/null || true
    say "what was said is in $vm/baked-failed/"
  fi
  rm -rf "$work"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# secret: something that nobody else says.
secret() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }
secret >"$work/secret"
secret >"$work/other"
# Longer than what a token must have.
{ secret && secret; } >"$work/token"
mapfile -t ports < <(free_ports 2)
port=${ports[0]} bell=${ports[1]}

sees() { grep -qF "GET /$(<"$work/secret") " "$work/$1-watch.log" 2>/dev/null; }
is_gone() { ! kill -0 "$1" 2>/dev/null; }
ended_or_seen() { is_gone "$machine" || sees "$1"; }
# The guest stops talking when it hears this; until then nobody listens there.
ring() { { echo seen >"/dev/tcp/127.0.0.1/$bell"; } 2>/dev/null; is_gone "$machine"; }

# show LAYOUT RUN-OPTION...: runs its guest; outside, a client watches until it has seen the secret.
show() {
  local layout=$1 watcher code=0
  shift
  heading "== $layout, kernel $kernel"
  bash tests/vm/run.sh "$kernel" --timeout "$timeout" --port "$port=28257" --port "$bell=7000" \
    --file dist/plaintapd-aarch64=/test/plaintapd --file "$work/token=/test/token" --file "$work/secret=/test/secret" \
    --file "$work/other=/test/other" --file tests/vm/conversation=/test/conversation "$@" >"$work/$layout.log" 2>&1 &
  machine=$!
  started+=("$machine")
  "$plaintap" watch --no-color "ws://127.0.0.1:$port/?token=$(<"$work/token")" >"$work/$layout-watch.log" 2>&1 </dev/null &
  watcher=$!
  started+=("$watcher")
  until_true "$timeout" ended_or_seen "$layout" || true
  if sees "$layout"; then
    say "what was said inside appears outside"
    until_true "$timeout" ring || true
  fi
  wait "$machine" || code=$?
  kill -TERM "$watcher" 2>/dev/null || true
  wait "$watcher" || true
  cat "$work/$layout.log"
  ((code == 0)) || die "$layout: the guest ended with $code"
  sees "$layout" || die "$layout: what was said inside did not appear outside"
  ! grep -qF "$(<"$work/other")" "$work/$layout-watch.log" || die "$layout: an app appears outside that was not named"
}

show_magisk() {
  bash android/magisk/build.sh "$work"
  show magisk --file "$work/plaintap-magisk.zip=/test/plaintap-magisk.zip" --file tests/vm/magisk-guest=/test/guest \
    -- sh /test/guest
}

# The file as the package has it, with what its comments say for clients on a network.
show_buildroot() {
  local package=buildroot/package/plaintapd
  sed 's/^#--/--/' $package/plaintapd.conf >"$work/plaintapd.conf"
  show buildroot --file "$work/plaintapd.conf=/etc/plaintapd.conf" --file tests/vm/buildroot-guest=/test/guest \
    --file $package/S90plaintapd=/etc/init.d/S90plaintapd --file tests/vm/inittab=/etc/inittab \
    --file tests/vm/rcS=/etc/init.d/rcS --file tests/vm/rcS=/etc/init.d/rcK -- sh /test/guest
}

for layout in "${layouts[@]}"; do
  start=$SECONDS
  "show_$layout"
  say "$layout: ok ($((SECONDS - start)) s)"
done

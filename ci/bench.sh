#!/usr/bin/env bash
# Measures what plaintapd costs, as root, and prints Markdown: docs/performance.md holds such a run and says what it means.
#
#   bash ci/bench.sh capture    per SSL_write and SSL_read, beside no probe and an empty one; then where the ring overflows
#   bash ci/bench.sh stream     what 1, 8 and 64 clients get at most, how late, and what that costs the agent
#   bash ci/bench.sh client     how fast plaintap takes 1 GB of stream, and in how much memory
#   bash ci/bench.sh idle       memory, wakeups and CPU time of plaintapd when nothing happens
#   bash ci/bench.sh device     start-up to the first event, memory at rest and at work: here, and on an emulated arm64 kernel 6.12
#   bash ci/bench.sh relay      DEVICES ("10 100 300 1000 1000@5", of 20 or @N events a second) into one relay and nats-server
#   bash ci/bench.sh soak       MINUTES (30) of mixed load, clients and libraries that come and go: fails if anything grows
#
# ROUNDS (7) is how often each case has its turn; MILLISECONDS (5000) how long a stream's latency is measured, and a sixth of its rest;
# BYTES (1000000000) is how much client is sent; SECONDS_EACH (20) how long each number of devices is measured. PLAINTAP_BIN_DIR
# names the folder of a built plaintapd and plaintap; for relay, of a plaintap with that feature.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}
[[ $# == 1 && $1 =~ ^(capture|stream|client|idle|device|soak|relay)$ ]] || usage
((EUID == 0)) || die "plaintapd loads eBPF programs: run this as root" 3

libraries=/usr/lib/x86_64-linux-gnu
rounds=${ROUNDS:-7}
work=$(mktemp -d)
agent_pid=
ended() {
  [[ -z $agent_pid ]] || kill "$agent_pid" 2>/dev/null || true
  rm -rf "$work"
}
trap ended EXIT

use_cargo demo || die "no cargo: run ci/setup.sh"
if [[ -z ${PLAINTAP_BIN_DIR:-} ]]; then
  if [[ $1 == relay ]]; then cargo build --quiet --release --locked -p plaintap --features relay; else build_release --quiet; fi
  PLAINTAP_BIN_DIR=$target/release
fi
# A copy: a build that goes on meanwhile must not change what is measured.
measured=plaintapd
[[ $1 != relay ]] || measured=plaintap
cp "$PLAINTAP_BIN_DIR/$measured" "$work/$measured"

about() {
  say "$(date -u +%F), kernel $(uname -r), $(nproc) CPUs ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), load $(cut -d' ' -f1-3 /proc/loadavg)"
  say
}

# library NAME: a copy of the library NAME and of its libcrypto, which no other program's probes are on.
library() {
  local source=$libraries/$1 folder name
  folder=$work/$(basename "$(dirname "$source")")
  [[ -e $source ]] || die "$source is missing: run ci/setup.sh"
  mkdir -p "$folder"
  for name in "$source" "${source/libssl/libcrypto}"; do cp "$name" "$folder/"; done
  say "$folder/$(basename "$1")"
}

bench() { "$target/release/plaintap-bench" "$1" "$work/plaintapd" "$work/tls-load" "$work" "${@:2}"; }

# The load and its certificate.
prepare() {
  cargo build --quiet --release --locked -p plaintap-bench
  "${CC:-cc}" -O2 -Wall -Wextra -o "$work/tls-load" bench/load.c -ldl -lpthread
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" \
    -days 2 -subj /CN=localhost 2>/dev/null
}

stream() {
  prepare
  local boringssl
  boringssl=$(library android/libssl.so.0)
  about
  bench stream "$boringssl" "${MILLISECONDS:-5000}"
}

# shipped ARCH: the static plaintapd as it ships, which has another allocator than the one that cargo builds here.
shipped() {
  bash ci/build-device.sh "$1" >"$work/build.log" 2>&1 || die "$(tail -n 3 "$work/build.log")"
}

soak() {
  prepare
  shipped x86_64
  cp dist/plaintapd-x86_64 "$work/plaintapd"
  about
  bench soak "${MINUTES:-30}" "$(library android/libssl.so.0)" "$(library libssl.so.3)"
}

device() {
  local log=$work/guest.log boringssl=/usr/lib/aarch64-linux-gnu/android/libssl.so.0
  prepare
  shipped x86_64
  shipped aarch64
  cp dist/plaintapd-x86_64 "$work/plaintapd"
  bash tests/vm/build.sh bench >"$log" 2>&1 || die "$(tail -n 3 "$log")"
  aarch64-linux-gnu-gcc -O2 -o "$work/tls-load-aarch64" bench/load.c -ldl -lpthread
  about
  bench device "$(library android/libssl.so.0)" "$rounds"
  bash tests/vm/run.sh 6.12 --timeout 590 --file dist/plaintapd-aarch64=/usr/bin/plaintapd \
    --file "$target/vm/tests/plaintap-bench=/usr/bin/plaintap-bench" --file "$work/tls-load-aarch64=/usr/bin/tls-load" \
    --file "$work/cert.pem=/etc/bench/cert.pem" --file "$work/key.pem=/etc/bench/key.pem" \
    -- plaintap-bench device /usr/bin/plaintapd /usr/bin/tls-load /etc/bench "$boringssl" "$rounds" >"$log" 2>&1 ||
    die "in the guest: $(tail -n 3 "$log")"
  # Its rows go below the table's head.
  grep '^| aarch64' "$log"
  say
  stat -c '- %n: %s bytes' dist/plaintapd-x86_64 dist/plaintapd-aarch64
}

capture() {
  prepare
  local boringssl openssl
  boringssl=$(library android/libssl.so.0)
  openssl=$(library libssl.so.3)
  about
  heading "### BoringSSL, over memory"
  say
  bench cost "$rounds" "$boringssl" memory
  say
  heading "### BoringSSL, over loopback TCP"
  say
  bench cost "$rounds" "$boringssl" tcp
  say
  heading "### OpenSSL, over memory"
  say
  bench cost "$rounds" "$openssl" memory
  say
  heading "### Each step of the probes, BoringSSL over memory"
  say
  bench steps "$rounds" "$boringssl" bpf/prebuilt/x86_64.o
  say
  heading "### Loss by rate, default ring, BoringSSL over memory"
  say
  bench loss "$boringssl" 1000
}

# rings PID: KiB that a process has in memory of what it shares with the kernel side, the ring and arrays.
rings() { awk '/^[0-9a-f]+-/ { ring = /bpf-map|bpf_ringbuf|anon_inode/ } /^Rss:/ && ring { sum += $2 } END { print sum + 0 }' "/proc/$1/smaps"; }
status() { awk -v field="$2:" '$1 == field { print $2 }' "/proc/$1/status"; }
switches() { cat /proc/"$1"/task/*/status | awk '/^voluntary_ctxt_switches/ { sum += $2 } END { print sum }'; }

# cpu PID: nanoseconds that a process's threads have run.
cpu() { cat /proc/"$1"/task/*/schedstat | awk '{ sum += $1 } END { printf "%.0f\n", sum }'; }

# took PID FILE: waits for the process's end, and leaves in FILE its peak memory in KiB after each fifth of a second.
took() {
  while status "$1" VmHWM 2>/dev/null; do sleep 0.2; done | sed '/^$/d' >"$2"
}

client() {
  local bytes=${BYTES:-1000000000} size command start url seconds peaks=$work/peaks
  cargo build --quiet --release --locked -p plaintap-bench
  "$target/release/plaintap-bench" recording "$work/stream.pb" "$bytes"
  size=$(stat -c %s "$work/stream.pb")
  about
  say "| plaintap | MB of stream | seconds | MB/s | peak MiB, first half | peak MiB | written MB |"
  say "|---|---:|---:|---:|---:|---:|---:|"
  for command in "watch --json" "watch" "inspect --compact" "record -o out.pb" "record -o out.jsonl" \
    "record -o out.pcapng" "record -o out.har"; do
    : >"$work/replay"
    "$PLAINTAP_BIN_DIR/plaintap" replay "$work/stream.pb" --speed max --once --listen ws://127.0.0.1:0/ 2>"$work/replay" &
    agent_pid=$!
    until_true 20 grep -q 'ws://' "$work/replay" || die "plaintap replay does not listen: $(cat "$work/replay")"
    url=$(grep -o 'ws://[^ ]*' "$work/replay" | head -n 1)
    start=$(date +%s%N)
    # shellcheck disable=SC2086 # the words of a command
    (cd "$work" && exec "$PLAINTAP_BIN_DIR/plaintap" $command --no-reconnect "$url" >"$work/out.text" 2>"$work/notes") &
    local pid=$!
    took "$pid" "$peaks"
    wait "$pid" || die "plaintap $command failed: $(tail -n 1 "$work/notes")"
    seconds=$((($(date +%s%N) - start) / 1000000))
    wait "$agent_pid" || die "plaintap replay failed: $(tail -n 1 "$work/replay")"
    agent_pid=
    awk -v command="$command" -v size="$size" -v ms="$seconds" -v out="$(cat "$work"/out.* | wc -c)" '
      { peak[NR] = $1 }
      END { printf "| %s | %.0f | %.1f | %.0f | %.1f | %.1f | %.0f |\n", command, size / 1e6, ms / 1e3, size / 1e3 / ms,
        peak[int((NR + 1) / 2)] / 1024, peak[NR] / 1024, out / 1e6 }' "$peaks"
    rm -f "$work"/out.*
  done
}

relay() {
  command -v nats-server >/dev/null || die "no nats-server: apt-get install nats-server"
  "$work/plaintap" relay --help >/dev/null 2>&1 || die "$PLAINTAP_BIN_DIR/plaintap can't relay: build it with --features relay"
  cargo build --quiet --release --locked -p plaintap-bench
  local devices
  read -ra devices <<<"${DEVICES:-10 100 300 1000 1000@5}"
  # The relay has a descriptor for each device, and so has what starts them.
  ulimit -n "$(ulimit -Hn)"
  about
  # timeout leads the group of all that is started, and passes a signal on to it.
  timeout "${BOUND:-3000}" "$target/release/plaintap-bench" relay "$work/plaintap" "$work" "${SECONDS_EACH:-20}" "${devices[@]}" &
  agent_pid=$!
  wait "$agent_pid" || die "see above"
  agent_pid=
  say
  say "Load at the end: $(cut -d' ' -f1-3 /proc/loadavg)."
}

idle() {
  local seconds=${SECONDS_IDLE:-30} half pid child before=() ran=() forks names=(attaching serving) pids
  : >"$work/log"
  # The system's libraries as by default, but of this shell alone, which uses none: others may be busy.
  "$work/plaintapd" --ecaptureq ws://127.0.0.1:0/ --pid $$ 2>"$work/log" &
  agent_pid=$!
  until_true 60 grep -q 'listening url=' "$work/log" || die "plaintapd does not listen: $(tail -n 1 "$work/log")"
  child=$(cat "/proc/$agent_pid/task/$agent_pid/children")
  pids=("$agent_pid" "${child% }")
  # What it does once after starting is not what it does when idle.
  sleep 3
  for pid in "${pids[@]}"; do before+=("$(switches "$pid")") ran+=("$(cpu "$pid")"); done
  forks=$(awk '/^processes/ { print $2 }' /proc/stat)
  sleep "$seconds"
  forks=$(($(awk '/^processes/ { print $2 }' /proc/stat) - forks))
  about
  say "Others started $forks threads and processes in these $seconds s; $(find /proc -maxdepth 1 -name '[0-9]*' | wc -l) processes run."
  say
  say "| half | RssAnon KiB | RssFile KiB | RssShmem KiB | of these, ring and maps KiB | wakeups in $seconds s | CPU seconds an hour |"
  say "|---|---:|---:|---:|---:|---:|---:|"
  for half in 0 1; do
    pid=${pids[half]}
    say "| ${names[half]} | $(status "$pid" RssAnon) | $(status "$pid" RssFile) | $(status "$pid" RssShmem) | $(rings "$pid") | $(($(switches "$pid") - before[half])) | $(awk "BEGIN { printf \"%.2f\", ($(cpu "$pid") - ${ran[half]}) * 3600 / $seconds / 1e9 }") |"
  done
}

"$1"

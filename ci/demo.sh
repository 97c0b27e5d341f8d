#!/usr/bin/env bash
# The main job, shown: plaintapd reads what two real BoringSSL programs tell each other over TLS, plaintap shows it.
#
# Sets up what is missing, builds, lets Debian's `bssl-tool` be an HTTPS server and its client, and exits 0 only if
# request and response were seen in the clear, at both ends, with process, pid, addresses and direction. Needs root.
# Ends whatever it started.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

(($# == 0)) || die "takes no arguments" 2

# How many seconds anything may take that should take none.
patience=10

# What a machine must have to be looked at. Exit codes are plaintapd's own: 3 not permitted, 4 the kernel lacks something.
preflight() {
  ((EUID == 0)) || die "eBPF needs root: run this as root (sudo bash ci/demo.sh)" 3
  [[ $(uname -s) == Linux ]] || die "eBPF needs Linux: run this there" 4
  [[ -e bpf/prebuilt/$(uname -m).o ]] || die "there is no eBPF object for $(uname -m): run this on x86_64 or aarch64" 4
  [[ -r /proc/filesystems ]] || die "/proc is not mounted: mount -t proc proc /proc" 4
  grep -qw bpf /proc/filesystems || die "this kernel has no eBPF: boot one with CONFIG_BPF_SYSCALL=y" 4
  [[ -e /sys/bus/event_source/devices ]] || die "/sys is not mounted: mount -t sysfs sysfs /sys" 4
  [[ -e /sys/bus/event_source/devices/uprobe ]] ||
    die "this kernel has no uprobes: boot one with CONFIG_UPROBE_EVENTS=y" 4
  # CAP_SYS_ADMIN, bit 21: containers are root without it.
  (((0x$(awk '/^CapEff/ { print $2 }' /proc/self/status) >> 21) & 1)) ||
    die "root may not load eBPF here: run this outside of the container, or in a privileged one" 3
}

started=()
work=$(mktemp -d)
cleanup() {
  local status=$? pid
  trap - EXIT
  # From the last to the first, each by its pid, and waited for.
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    pid=${started[i]}
    kill -TERM "$pid" 2>/dev/null || continue
    until_true 60 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
  done
  # Bash says here what was killed.
  wait 2>/dev/null
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

gone() { [[ ! -e /proc/$1 || $(awk '/^State:/ { print $2 }' "/proc/$1/status" 2>/dev/null) == Z ]]; }

# failed MESSAGE FILE...: with what the programs said.
failed() {
  local message=$1 file
  shift
  for file; do
    [[ ! -s $file ]] || { say "--- $(basename "$file")"; cat "$file"; } >&2
  done
  die "$message"
}

# Whether FILE has TEXT, or the process that should write it is gone.
has_or_gone() { grep -qsF -e "$2" "$1" || gone "$3"; }

# Whether a socket listens on PORT. Source: /proc/net/tcp, whose state 0A is LISTEN.
listens() { grep -qE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") [0-9A-F:]+ 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; }
listens_or_gone() { listens "$1" || gone "$2"; }

heading "1/5 setting up what is missing"
preflight
bash ci/setup.sh demo
use_cargo demo || die "no cargo of $(oldest_rust) or newer, though ci/setup.sh found one"
library=$(compgen -G '/usr/lib/*/android/libssl.so.0') || die "no libssl.so.0 of android-libboringssl under /usr/lib"

heading "2/5 building plaintapd and plaintap with $(cargo --version | cut -d' ' -f1,2)"
build_release --quiet

heading "3/5 starting plaintapd, which attaches to BoringSSL, and plaintap watch --raw, its client"
# This library only: what other programs of this machine say over TLS is none of a demo's business.
"$target/release/plaintapd" --ecaptureq ws://127.0.0.1:0/ --library "$library" 2>"$work/plaintapd.log" &
agent=$!
started+=("$agent")
until_true $patience has_or_gone "$work/plaintapd.log" 'listening url=ws://' $agent || true
url=$(sed -n 's/.* listening url=\(ws:[^ ]*\).*/\1/p' "$work/plaintapd.log")
if [[ -z $url ]]; then
  if gone $agent; then wait $agent && status=0 || status=$?; else status=1; fi
  die "plaintapd did not start: $(tail -n 1 "$work/plaintapd.log")" "$((status ? status : 1))"
fi
"$target/release/plaintap" watch --raw "$url" >"$work/watch" 2>"$work/watch.log" &
watch=$!
started+=("$watch")
until_true $patience has_or_gone "$work/plaintapd.log" 'client connected' $watch || true
grep -qF 'client connected' "$work/plaintapd.log" ||
  failed "plaintap watch does not reach plaintapd" "$work/watch.log" "$work/plaintapd.log"
sed 's/^./    &/' "$work/plaintapd.log"

heading "4/5 a conversation over TLS: bssl-tool's client asks bssl-tool's server"
for try in 1 2 3 4 5; do
  # Another program may have the port, or take it before the server does.
  port=$((20000 + RANDOM % 10000))
  ! listens $port || continue
  bssl-tool server -www -accept $port >"$work/server.log" 2>&1 &
  server=$!
  started+=("$server")
  until_true $patience listens_or_gone $port $server || true
  ! gone $server || continue
  listens $port || failed "bssl-tool server does not listen on port $port" "$work/server.log"
  break
done
listens "$port" || failed "bssl-tool server found no free port in $try attempts" "$work/server.log"

# The client ends when its input does, so that stays open until the answer is there.
mkfifo "$work/request"
bssl-tool client -connect "127.0.0.1:$port" <"$work/request" >"$work/answer" 2>"$work/client.log" &
client=$!
started+=("$client")
# For reading too, as that never waits for the client; and without it, writing is an error, not this script's end.
exec {request}<>"$work/request"
trap '' PIPE
path=/plaintap-demo-$RANDOM$RANDOM
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n' "$path" >&"$request" || true
until_true $patience has_or_gone "$work/answer" 'HTTP/1.0 200 OK' $client || true
exec {request}>&-
grep -qF 'HTTP/1.0 200 OK' "$work/answer" ||
  failed "bssl-tool's client got no answer" "$work/client.log" "$work/server.log"
say "    server: pid $server, 127.0.0.1:$port    client: pid $client, GET $path"

# seen PID VERB ARROW TEXT: whether plaintap showed that process PID read or wrote a payload that begins with TEXT.
# A block is `TIME COMM[PID] VERB CLIENT ARROW SERVER PROTOCOL, SIZE`, and the payload, indented by two.
seen() {
  awk -v who="bssl-tool[$1]" -v verb="$2" -v arrow="$3" -v server="127.0.0.1:$port" -v text="  $4" '
    /^[^ ]/ { at = $2 == who && $3 == verb && $4 ~ /^127\.0\.0\.1:[1-9]/ && $5 == arrow && $6 == server ? NR + 1 : 0 }
    at == NR && at && index($0, text) == 1 { found = 1 }
    END { exit !found }
  ' "$work/watch"
}
everything_seen() {
  seen "$client" wrote '->' "GET $path HTTP/1.1" && seen "$server" read '->' 'GET ' &&
    seen "$server" wrote '<-' 'HTTP/1.0 200 OK' && seen "$client" read '<-' 'HTTP/1.0 200 OK'
}

heading "5/5 what plaintap watch --raw shows of it"
until_true $patience everything_seen || true
sed 's/^./    &/' "$work/watch"
everything_seen || failed "the plaintext was not seen whole" "$work/watch.log" "$work/plaintapd.log"
say "${green}seen: request and response in the clear, at both ends, with process, pid, addresses and direction$plain"

#!/usr/bin/env bash
# A device at the end of a cable: the real adbd in a virtual machine with an arm64 kernel, the real adb client outside, and
# plaintap outside too. What is said over TLS inside must appear outside.
#
#   bash tests/vm/adb.sh [KERNEL]...     5.10, 6.1, 6.12; all of them if none is named
#
# Shown for each: push, start as root, forwards to a TCP port and to an abstract socket, through an adbd that is root and
# one that is Android's shell, as whom a client arrives; an app's user is refused; the device is stopped for a while and its
# clock set, forwards are cut and made again under load, and nothing is lost; `plaintap adb` and `plaintap doctor`, with root by
# su and without; and the five commands of docs/android.md. On the last kernel also `plaintap relay` of every device that is
# plugged in, with an agent that it puts there and keeps running.
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

# How many seconds anything may take on an emulated CPU.
patience=60

machines=()
while (($#)); do
  case $1 in
    -h | --help) usage 0 ;;
    5.10 | 6.1 | 6.12) machines+=("$1") ;;
    *) usage 2 >&2 ;;
  esac
  shift
done
((${#machines[@]})) || machines=("${kernels[@]}")

for program in adb nats-server; do
  command -v $program >/dev/null || die "no $program: bash ci/setup.sh test installs it" 3
done
bash tests/vm/fetch.sh
[[ -x dist/plaintapd-aarch64 ]] || bash ci/build-device.sh
plaintap=${PLAINTAP_BIN_DIR:-$target/release}/plaintap
[[ -x $plaintap ]] || die "$plaintap is missing: cargo build --release --locked -p plaintap"
# One that can relay.
use_cargo demo || die "no cargo: run ci/setup.sh"
cargo build --quiet --locked -p plaintap --features relay
relaying=$target/debug/plaintap

work=$(mktemp -d)
# Its own server, which knows nothing of this computer's devices, and its own keys.
export HOME=$work/home
mkdir "$HOME"
unset ADB_SERVER_SOCKET ANDROID_SERIAL
ports=()
mapfile -t ports < <(free_ports 5)
export ANDROID_ADB_SERVER_PORT=${ports[0]}
root_device=127.0.0.1:${ports[1]} shell_device=127.0.0.1:${ports[2]} app_device=127.0.0.1:${ports[3]}

started=()
# shellcheck disable=SC2317 # the trap calls it
end() {
  local status=$? pid
  trap - EXIT
  for pid in "${started[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  timeout 10 adb kill-server >/dev/null 2>&1 || true
  wait
  if ((status)) && [[ -n ${machine:-} ]]; then
    mkdir -p "$vm/adb-failed" && cp "$work"/*.{log,json,err} "$vm/adb-failed/" 2>/dev/null || true
    say "what was said is in $vm/adb-failed/"
  fi
  rm -rf "$work"
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# inside COMMAND: as root in the guest.
inside() { timeout "$patience" adb -s "$root_device" shell "$@"; }
# background NAME COMMAND...: outside; its output is NAME.json, its notes are NAME.err, its process is $last.
background() {
  local name=$1
  shift
  # At once, and not when the process gets to it: what is there may be of an earlier one, and is waited for.
  : >"$work/$name.json" 2>"$work/$name.err"
  "$@" >>"$work/$name.json" 2>>"$work/$name.err" </dev/null &
  last=$!
  started+=("$last")
}
has() { grep -qF -e "$2" "$work/$1" 2>/dev/null; }
# expect FILE TEXT: waits for it.
expect() { until_true "$patience" has "$1" "$2" || die "$machine: no '$2' in $1: $(tail -n 3 "$work/$1" | cut -c 1-300)"; }
# ended PID NAME CODE: waits for its end, with that exit code.
ended() {
  local code=0
  until_true "$patience" gone "$1" || die "$machine: $2 does not end"
  wait "$1" || code=$?
  ((code == $3)) || die "$machine: $2 ended with $code, not $3: $(tail -n 3 "$work/$2.err")"
}
gone() { ! kill -0 "$1" 2>/dev/null; }
connected() { timeout 10 adb connect "$1" 2>&1 | grep -q "connected to"; }
usable() { [[ $(timeout 10 adb -s "$1" get-state 2>/dev/null) == device ]]; }
attach_cable() { until_true "$patience" connected "$1" && until_true "$patience" usable "$1"; }
agent_runs() { [[ -n $(inside pidof plaintapd) ]]; }
agent_is_gone() { ! agent_runs; }
serves() { inside "wget -q -O /dev/null http://127.0.0.1:28257/"; }

# forward DEVICE REMOTE: has a free port lead there; the port.
forward() { timeout 10 adb -s "$1" forward tcp:0 "$2"; }

# converse SECRET: a program inside says it over TLS to another.
converse() { inside "(echo $1; sleep 1) | timeout 20 openssl s_client -connect 127.0.0.1:4433 -quiet -no_ign_eof >/dev/null 2>&1" || true; }
# app_converses SECRET: as org.example.app does.
app_converses() {
  timeout "$patience" adb -s "$app_device" shell "(echo $1; sleep 1) | timeout 20 openssl s_client -connect 127.0.0.1:4433 -quiet \
    -no_ign_eof >/dev/null 2>&1" || true
}
# seen SECRET FILE: whether an event carries it.
seen() { has "$2" "$(base64 -w 0 <<<"$1")"; }
expect_event() { until_true "$patience" seen "$1" "$2" || die "$machine: what was said inside does not appear in $2"; }

# load BLOCKS: a connection inside on which numbered blocks of 4 KiB are said, 20 a second and more.
load() {
  background load timeout 120 adb -s "$app_device" shell "i=0; while [ \$i -lt $1 ]; do i=\$((i + 1)); printf 'block%06d%4085s\n' \$i ''; \
    sleep 0.03; done | timeout 100 openssl s_client -connect 127.0.0.1:4433 -quiet -no_ign_eof >/dev/null 2>&1"
}
# whole FILE BLOCKS: whether one connection's written bytes are just these blocks, by their offsets.
whole() {
  /usr/bin/python3 -B - "$work/$1" "$2" <<'PYTHON'
import base64, collections, json, sys
want = b"".join(b"block%06d%4085s\n" % (number, b"") for number in range(1, int(sys.argv[2]) + 1))
written = collections.defaultdict(dict)
for line in open(sys.argv[1]):
    try:
        entry = json.loads(line)
    except ValueError:
        continue  # the last line, still being written
    event = entry.get("event_payload")
    if event and event.get("direction") in (2, "DIRECTION_WRITTEN", "written"):
        written[event["connection_id"]][int(event.get("stream_offset", 0))] = base64.b64decode(event["payload"])
for pieces in written.values():
    joined, end = b"", 0
    for offset in sorted(pieces):
        if offset != end:
            break
        joined += pieces[offset]
        end = offset + len(pieces[offset])
    if joined == want:
        sys.exit(0)
sys.exit(1)
PYTHON
}
expect_whole() { until_true "$patience" whole "$1" "$2" || die "$machine: $1 lacks some of what was said under load"; }

# replug DEVICE: the cable is pulled and put in again; adb forgets its forwards.
replug() {
  timeout 10 adb disconnect "$1" >/dev/null
  attach_cable "$1" || die "$machine: $1 does not come back"
}

start_machine() {
  : >"$work/empty"
  # The guest counts as Android by this file.
  background machine bash tests/vm/run.sh "$machine" --timeout 420 --port "${ports[1]}=5555" --port "${ports[2]}=5556" \
    --port "${ports[3]}=5557" --file "$work/empty=/system/build.prop" --file "$root/tests/vm/adb-guest=/usr/bin/adb-guest" \
    --file "$work/key.pem=/etc/key.pem" --file "$work/cert.pem=/etc/cert.pem" --monitor "$work/monitor" -- adb-guest
  guest=$last
  attach_cable "$root_device" && attach_cable "$shell_device" && attach_cable "$app_device" ||
    die "$machine: no adbd answers: $(tail -n 3 "$work/machine.json")"
  # Its input must not end, as it would end each connection then.
  inside 'setsid sh -c "tail -f /dev/null | openssl s_server -accept 4433 -cert /etc/cert.pem -key /etc/key.pem -quiet" \
    </dev/null >/dev/null 2>&1 &'
  until_true "$patience" inside 'netstat -ltn | grep -q :4433' || die "$machine: openssl s_server does not listen"
}

# As whom the agent says that clients arrived: both adbds' users, each at a port and at an abstract socket.
admitted() {
  local uid from
  inside 'cat /tmp/plaintapd.log' >"$work/admitted.log"
  for uid in 0 2000; do
    for from in 127.0.0.1: unix; do
      grep -q "client connected peer=${from}[0-9]* uid=$uid " "$work/admitted.log" ||
        die "$machine: no client came from $from as uid $uid: $(grep 'client connected' "$work/admitted.log")"
    done
  done
}

pushed_and_forwarded() {
  local device remote name names=() secret=secret-$RANDOM-by-hand
  timeout "$patience" adb -s "$shell_device" push dist/plaintapd-aarch64 /data/local/tmp/plaintapd >/dev/null
  inside 'chmod 755 /data/local/tmp/plaintapd; setsid /data/local/tmp/plaintapd --ecaptureq ws://127.0.0.1:28257/ \
    --ecaptureq ws+unix:@plaintap </dev/null >/tmp/plaintapd.log 2>&1 &'
  until_true "$patience" serves || die "$machine: plaintapd does not serve: $(inside 'tail -n 2 /tmp/plaintapd.log')"
  for device in "$root_device" "$shell_device"; do
    for remote in tcp:28257 localabstract:plaintap; do
      name=watch-${device##*:}-${remote%%:*}
      background "$name" "$plaintap" watch "ws://127.0.0.1:$(forward "$device" "$remote")/" --json --no-reconnect
      names+=("$name")
    done
  done
  for name in "${names[@]}"; do expect "$name.err" 'connected to'; done
  converse "$secret"
  for name in "${names[@]}"; do expect_event "$secret" "$name.json"; done
  admitted
  say "  adbd of uid 0 and 2000, tcp and abstract socket: what is said inside appears outside"

  for remote in tcp:28257 localabstract:plaintap; do
    background app "$plaintap" watch "ws://127.0.0.1:$(forward "$app_device" "$remote")/" --no-reconnect
    ended "$last" app 1
    expect app.err "uid 10123"
  done
  say "  an app's user is refused at both: $(sed 's/^plaintap: //' "$work/app.err" | cut -c 1-120)"
}

# machine_does COMMAND: stop or cont, to the machine as a whole; no clock runs in it while it is stopped.
machine_does() {
  /usr/bin/python3 -B - "$work/monitor" "$1" <<'PYTHON'
import json, socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.settimeout(10)
monitor.connect(sys.argv[1])
lines = monitor.makefile("rw")
lines.readline()
for command in "qmp_capabilities", sys.argv[2]:
    print(json.dumps({"execute": command}), file=lines, flush=True)
    answer = {}
    while not {"return", "error"} & answer.keys():
        answer = json.loads(lines.readline())
    if "error" in answer:
        sys.exit(str(answer))
PYTHON
}

# time_of SECRET FILE: the timestamp in seconds of an event that carries it.
time_of() {
  /usr/bin/python3 -B - "$(base64 -w 0 <<<"$1")" "$work/$2" <<'PYTHON'
import json, sys
line = next(line for line in open(sys.argv[2]) if sys.argv[1] in line)
print(int(json.loads(line)["event_payload"]["timestamp"]) // 10**9)
PYTHON
}

heartbeats() { grep -c HEARTBEAT "$work/slept.json"; }
more_heartbeats() { (($(heartbeats) > $1)); }

suspended() {
  local pid pids now secret=secret-$RANDOM-asleep moment step
  pids=$(inside pidof plaintapd)
  background slept "$plaintap" watch "ws://127.0.0.1:$(forward "$shell_device" tcp:28257)/" --json --heartbeats
  pid=$last
  expect slept.err 'connected to'
  converse "$secret-before"
  expect_event "$secret-before" slept.json
  machine_does stop
  sleep 20
  machine_does cont
  # As a device does that wakes up, asks somebody for the time, and is told something wrong at first.
  now=$(date +%s)
  for step in 100000 -30000000 0; do
    inside "date -s @$((now + step)) >/dev/null"
    converse "$secret-$step"
    expect_event "$secret-$step" slept.json
    moment=$(($(time_of "$secret-$step" slept.json) - now - step))
    ((moment >= 0 && moment < 2 * patience)) || die "$machine: an event's time is off by $moment s after the clock was set"
  done
  until_true "$patience" more_heartbeats "$(heartbeats)" || die "$machine: no heartbeat comes after the clock was set"
  [[ $(inside pidof plaintapd) == "$pids" ]] || die "$machine: plaintapd did not live through it"
  if grep "missed [0-9]" "$work/slept.err"; then die "$machine: something was missed"; fi
  kill -INT "$pid"
  ended "$pid" slept 0
  say "  stopped for 20 s, its clock set forward, back by a year and right: it goes on, and times follow the clock"
}

cut_under_load() {
  local port blocks=300 turn
  port=$(forward "$shell_device" tcp:28257)
  background forwarded "$plaintap" watch "ws://127.0.0.1:$port/" --json
  background direct "$plaintap" watch "adb:$shell_device" --json
  expect forwarded.err 'connected to'
  expect direct.err 'connected to'
  load "$blocks"
  for turn in 1 2 3; do
    # Some of it has to come before each cut, and some after the last one.
    until_true "$patience" some_came $((turn * 150000)) || die "$machine: nothing comes under load"
    replug "$shell_device"
    timeout 10 adb -s "$shell_device" forward "tcp:$port" tcp:28257 >/dev/null
  done
  expect_whole forwarded.json "$blocks"
  expect_whole direct.json "$blocks"
  [[ $(grep -c "connected again" "$work/forwarded.err") -ge 3 ]] || die "$machine: the forward was not cut three times"
  if grep -h "missed [0-9]" "$work/forwarded.err" "$work/direct.err"; then die "$machine: something was missed"; fi
  say "  cut three times under load, forwarded and direct: nothing lost of $((blocks * 4)) KiB"
  # shellcheck disable=SC2016 # the guest's shell expands it
  inside 'kill $(pidof plaintapd)'
  until_true "$patience" agent_is_gone || die "$machine: plaintapd does not end"
}
some_came() { (($(stat -c %s "$work/forwarded.json") > $1)); }

plaintap_adb() {
  local secret=secret-$RANDOM-by-plaintap pid forward
  timeout 60 "$plaintap" adb -s "$shell_device" --agent dist/plaintapd-aarch64 2>"$work/noroot.err" &&
    die "$machine: plaintap adb works without root"
  expect noroot.err "no root on $shell_device"
  inside 'chmod 4755 /usr/bin/busybox'
  background adb "$plaintap" adb -s "$shell_device" --agent dist/plaintapd-aarch64 --json -- --log-level debug
  pid=$last
  expect adb.err 'connected to'
  forward=$(sed -n 's|.*http://127.0.0.1:\([0-9]*\)/$|\1|p' "$work/adb.err")
  background viewer "$plaintap" watch "ws://127.0.0.1:$forward/" --json
  expect viewer.err 'connected to'
  converse "$secret-1"
  expect_event "$secret-1" adb.json
  replug "$shell_device"
  expect adb.err "connected again"
  expect viewer.err "connected again"
  converse "$secret-2"
  expect_event "$secret-2" adb.json
  expect_event "$secret-2" viewer.json
  timeout 120 "$plaintap" doctor "adb:$shell_device" --agent dist/plaintapd-aarch64 >"$work/doctor.log" ||
    die "$machine: plaintap doctor finds: $(grep failure "$work/doctor.log")"
  has doctor.log "plaintapd answers" || die "$machine: plaintap doctor does not see the agent"
  kill -INT "$pid"
  ended "$pid" adb 0
  agent_is_gone || die "$machine: plaintap adb left its agent"
  [[ $(timeout 10 adb forward --list) != *"tcp:$forward "* ]] || die "$machine: plaintap adb left its forward"
  say "  plaintap adb: root by su, its forward comes back with the cable, and Ctrl-C leaves nothing"

  # A client that is killed leaves its agent; the next one ends it.
  background killed "$plaintap" adb -s "$root_device" --agent dist/plaintapd-aarch64 --json
  pid=$last
  expect killed.err 'connected to'
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null || true
  background next "$plaintap" adb -s "$root_device" --agent dist/plaintapd-aarch64 --json --count 1
  pid=$last
  expect next.err 'connected to'
  expect next.err "had left on the device"
  converse "$secret-3"
  ended "$pid" next 0
  agent_is_gone || die "$machine: plaintap adb --count left its agent"
  say "  an agent that a killed client left is replaced"

  # Who reads it has enough just when it has, and is gone before the device is in order.
  # shellcheck disable=SC2016 # expanded by the inner shell
  background piped bash -c '"$@" | head -n 1; exit "${PIPESTATUS[0]}"' - \
    "$plaintap" adb -s "$root_device" --agent dist/plaintapd-aarch64 --json --count 1
  pid=$last
  expect piped.err 'connected to'
  converse "$secret-4"
  ended "$pid" piped 0
  agent_is_gone || die "$machine: plaintap adb in a pipeline left its agent"
  say "  nor does one stay whose reader is gone first"
}

# as_documented DEVICE WHICH: the five commands as they stand, by Android's shell, but for the port of this computer, which may be in use.
# WHICH of the two lists: 1 for who has su, 2 for an adbd that is root.
as_documented() {
  local device=$1 commands command port secret=secret-$RANDOM-by-the-book watching agent
  mapfile -t commands < <(awk -v wanted="$2" '/^## /{ours = $0 == "## The same in five"; next} !ours{next}
    /^    /{if (!within) lists++; within = 1; if (lists == wanted) print substr($0, 5); next} {within = 0}' docs/android.md)
  ((${#commands[@]} == 5)) || die "docs/android.md has ${#commands[@]} commands"
  inside 'rm -f /data/local/tmp/plaintapd'
  port=$(forward "$device" tcp:28257)
  export ANDROID_SERIAL=$device
  for command in "${commands[@]}"; do
    case $command in
      # Debian's adbd has no such service; this one is root from its start.
      'adb root') ;;
      *' &')
        background by-hand bash -c "exec ${command% &}"
        agent=$last
        ;;
      'plaintap watch')
        background documented env PATH="$(dirname "$plaintap"):$PATH" bash -c "exec $command ws://127.0.0.1:$port/ --json"
        watching=$last
        ;;
      *) timeout "$patience" bash -c "${command/tcp:28257/tcp:$port}" >/dev/null || die "$machine: $command" ;;
    esac
  done
  unset ANDROID_SERIAL
  # Typed at once: the agent may still load its programs.
  expect documented.err "connected to"
  converse "others-$secret"
  app_converses "$secret"
  expect_event "$secret" documented.json
  if seen "others-$secret" documented.json; then die "$machine: --package does not keep others out"; fi
  kill -INT "$watching"
  ended "$watching" documented 0
  inside 'killall plaintapd'
  until_true "$patience" agent_is_gone || die "$machine: killall does not end it"
  until_true "$patience" gone "$agent" || die "$machine: adb shell goes on without its command"
}
by_the_book() {
  as_documented "$shell_device" 1
  as_documented "$root_device" 2
  say "  the five commands of docs/android.md, by su and by an adbd that is root: the app's words appear, and nobody else's"
}

# As the person who watches a lab: which devices there are is adb's to say.
relayed() {
  local secret=secret-$RANDOM-relayed pid server place=nats://127.0.0.1:${ports[4]} device
  inside 'rm -f /data/local/tmp/plaintapd'
  for device in "$root_device" "$shell_device" "$app_device"; do timeout 10 adb disconnect "$device" >/dev/null; done
  background nats nats-server --addr 127.0.0.1 --port "${ports[4]}" --jetstream --store_dir "$work/nats"
  server=$last
  expect nats.err 'Server is ready'
  background relay "$relaying" relay --from 'adb:*' --install --agent dist/plaintapd-aarch64 --to "$place" --max-bytes 100M \
    -- --comm openssl --log-level debug
  pid=$last
  expect relay.err 'connected to='
  background stored "$relaying" watch "$place/?device=$root_device" --json
  attach_cable "$root_device" || die "$machine: the device does not come back"
  expect relay.err "installed and started plaintapd serial=$root_device"
  expect relay.err "source is there device=$root_device"
  expect stored.err 'connected to'
  converse "$secret-1"
  expect_event "$secret-1" stored.json
  # Not this one's cable, on which the test's own questions go: its agent.
  # shellcheck disable=SC2016 # the guest's shell expands it
  inside 'kill -9 $(pidof plaintapd)'
  until_true "$patience" twice relay.err "started plaintapd serial=$root_device" || die "$machine: the agent is not started again"
  until_true "$patience" twice relay.err "source is there device=$root_device" || die "$machine: the agent does not come back"
  converse "$secret-2"
  expect_event "$secret-2" stored.json
  timeout 10 adb disconnect "$root_device" >/dev/null
  expect relay.err "removes device=$root_device"
  kill -TERM "$pid"
  ended "$pid" relay 0
  kill -TERM "$server"
  ended "$server" nats 1
  attach_cable "$root_device" || die "$machine: the device does not come back"
  agent_runs || die "$machine: the relay's agent did not stay"
  # shellcheck disable=SC2016
  inside 'kill $(pidof plaintapd)'
  until_true "$patience" agent_is_gone || die "$machine: plaintapd does not end"
  say "  plaintap relay --install: a device is found when it is plugged in, its agent put there and started again when it is killed"
}
twice() { (($(grep -cF -e "$2" "$work/$1") >= 2)); }

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=guest \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
adb start-server >/dev/null 2>&1 || die "adb start-server fails"
for machine in "${machines[@]}"; do
  start=$SECONDS
  heading "== a device with arm64 kernel $machine"
  start_machine
  pushed_and_forwarded
  suspended
  cut_under_load
  plaintap_adb
  by_the_book
  if [[ $machine == "${kernels[-1]}" ]]; then relayed; fi
  inside 'echo >/tmp/end'
  ended "$guest" machine 0
  say "$machine: ok ($((SECONDS - start)) s)"
done

#!/usr/bin/env bash
# Tests the reference clients in examples/: their languages' formatters and linters, that their generated code is the
# .proto file's, their own tests against proto/vectors, and all of them side by side at a live agent, JavaScript's in
# Chromium too. That loads eBPF and so needs root. Wants `cargo build --release -p plaintapd`; its place may be given in PLAINTAP_BIN_DIR.
#
#   bash tests/examples/test.sh     needs what ci/setup.sh test installs
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/../../ci/lib.sh"

die() {
  printf '%stests/examples/test.sh: %s%s\n' "$red" "$1" "$plain" >&2
  exit 1
}

programs=${PLAINTAP_BIN_DIR:-$target/release}
python=$target/examples/python/bin
export GOBIN=$target/examples/go GOFLAGS=-mod=readonly
work=$(mktemp -d)
started=()
ended() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap ended EXIT

[[ -x $programs/plaintapd ]] || die "no $programs/plaintapd: cargo build --release -p plaintapd"
[[ -x $python/ruff && -x $GOBIN/protoc-gen-go && -d examples/javascript/node_modules &&
  -d tests/web/node_modules ]] ||
  die "the languages' tools are missing: bash ci/setup.sh test"
use_cargo test || die "no cargo with rustfmt and clippy: bash ci/setup.sh test"

heading "generated code"
protoc() { "$python/python" -m grpc_tools.protoc -I proto "$@" ecaptureq.proto; }
same() { cmp "$1" "$2" || die "$2 is not what proto/ecaptureq.proto makes: its README says how to make it"; }
protoc --python_out="$work"
same "$work/ecaptureq_pb2.py" examples/python/ecaptureq_pb2.py
protoc --plugin="$GOBIN/protoc-gen-go" --go_out="$work" --go_opt=paths=source_relative \
  --go_opt=Mecaptureq.proto=plaintap.example/client/ecaptureq
same "$work/ecaptureq.pb.go" examples/go/ecaptureq/ecaptureq.pb.go
protoc --plugin=examples/javascript/node_modules/.bin/protoc-gen-es --es_out="$work" --es_opt=target=js,import_extension=js
same "$work/ecaptureq_pb.js" examples/javascript/ecaptureq_pb.js
# Rust's is compared by one of its tests.

heading "Go"
(
  cd examples/go
  unformatted=$(gofmt -l .)
  [[ -z $unformatted ]] || die "gofmt -w $unformatted"
  go vet ./...
  go test ./...
  go build -o "$work/go-client" .
)
heading "Python"
(cd examples/python && "$python/ruff" format --check --quiet . && "$python/ruff" check --quiet . && "$python/python" -m unittest)
heading "JavaScript"
(cd examples/javascript && npx --no-install biome check --error-on-warnings . && node --test)
heading "Rust"
rust=(--locked --quiet --manifest-path examples/rust/Cargo.toml --target-dir "$target/examples/rust")
cargo fmt --manifest-path examples/rust/Cargo.toml --check
cargo clippy "${rust[@]}" --all-targets -- -D warnings
cargo test "${rust[@]}"
cargo build "${rust[@]}"

heading "how a stream ends"
"$python/python" tests/examples/closing.py >"$work/closing" 2>"$work/closing.err" &
started+=("$!")
until_true 20 test -s "$work/closing" || die "closing.py: $(cat "$work/closing.err")"
ends="ws://127.0.0.1:$(cat "$work/closing")"
# ends_right CLIENT...: whether it complains in one line of a cut and of "too slow", and of the agent's end not at all.
ends_right() {
  local code status wanted
  for code in 0 1001 4008; do
    status=0 wanted=$((code != 1001))
    timeout 20 "$@" "$ends/$code" >"$work/out" 2>"$work/err" || status=$?
    ((status == wanted && $(wc -l <"$work/out") == 1 && $(wc -l <"$work/err") == wanted)) ||
      die "$* at an end with $code: status $status, $(cat "$work/out" "$work/err")"
  done
  status=0
  timeout 20 "$@" "$ends/1001" >/dev/full 2>"$work/err" || status=$?
  ((status == 1 && $(wc -l <"$work/err") == 1)) || die "$* with a full disk: status $status, $(cat "$work/err")"
}
ends_right "$work/go-client"
ends_right "$python/python" examples/python/client.py
ends_right node examples/javascript/client.js
ends_right "$target/examples/rust/debug/plaintap-example-client"

heading "side by side, at a live agent"
gone() { ! kill -0 "$1" 2>/dev/null; }
has() { grep -qE -e "$2" "$1"; }
library=$(compgen -G '/usr/lib/*/android/libssl.so.0') || die "no libssl.so.0 of android-libboringssl under /usr/lib"

listens() { [[ -n $(ss -Hltn "sport = :$1") ]]; }
for _ in 1 2 3 4 5; do
  # Another program may have the port, or take it before the server does.
  port=$((20000 + RANDOM % 10000))
  ! listens $port || continue
  bssl-tool server -www -accept $port >"$work/server.log" 2>&1 &
  server=$!
  listens_or_gone() { listens "$port" || gone "$server"; }
  until_true 20 listens_or_gone || true
  ! gone $server || continue
  started+=("$server")
  break
done
listens "$port" || die "bssl-tool server found no free port: $(cat "$work/server.log")"
# The client ends when its input does, so that stays open; for reading too, as that never waits for the client.
mkfifo "$work/request"
exec {request}<>"$work/request"
bssl-tool client -connect "127.0.0.1:$port" <"$work/request" >"$work/answer" 2>"$work/client.log" &
client=$!
started+=("$client")
until_true 20 has "$work/client.log" '^Connected' || die "bssl-tool's client: $(cat "$work/client.log")"

"$programs/plaintapd" --ecaptureq ws://127.0.0.1:0/ --library "$library" --no-scan --pid "$server" --pid "$client" \
  2>"$work/agent.log" &
agent=$!
started+=("$agent")
until_true 60 has "$work/agent.log" ' listening url=ws://' || die "plaintapd: $(tail -n 1 "$work/agent.log")"
url=$(sed -n 's/.* listening url=\(ws:[^ ]*\).*/\1/p' "$work/agent.log")
declare -A follower
follow() {
  local name=$1
  shift
  "$@" "$url" >"$work/$name.out" 2>"$work/$name.err" &
  follower[$name]=$!
  started+=("$!")
}
follow go "$work/go-client"
follow python "$python/python" examples/python/client.py
follow javascript node examples/javascript/client.js
follow browser node tests/examples/browser.mjs
follow rust "$target/examples/rust/debug/plaintap-example-client"
languages=(go python javascript browser rust)
for name in "${languages[@]}"; do
  until_true 60 has "$work/$name.out" '^heartbeat count=0 ' || die "the client in $name: $(cat "$work/$name.err")"
done

# In one write, as the tool's client passes on what each of its reads brings; bash writes line by line.
printf 'GET /examples HTTP/1.0\r\n\r\n' >"$work/line"
cat "$work/line" >&"$request"
# What differs from run to run and from machine to machine: ports, ids, the order of both ends, and the cipher. The
# server waits in SSL_read when the probes come, so that one call goes unseen.
settled() {
  grep '^event ' "$1" | sed -E "s/seq=[0-9]+ //; s/:$port\b/:SERVER/; s/127\.0\.0\.1:[0-9]+/127.0.0.1:CLIENT/
    s/(Cipher: )[A-Z0-9_]+/\1CIPHER/; s/\[$client\/[0-9]+\]/[CLIENT]/; s/\[$server\/[0-9]+\]/[SERVER]/; s/connection=[0-9]+ //" | LC_ALL=C sort
}
expected=tests/examples/expected.txt
arrived() { [[ $(grep -c '^event ' "$1") -ge $(wc -l <"$expected") ]]; }
for name in "${languages[@]}"; do
  until_true 20 arrived "$work/$name.out" || true
  settled "$work/$name.out" >"$work/$name.events" || true
  diff "$expected" "$work/$name.events" || die "the client in $name printed something else than $expected has (see above)"
done
# The agent's end is the clients' end, with nothing to complain of.
exec {request}>&-
kill -TERM "$agent"
for name in "${languages[@]}"; do
  until_true 20 gone "${follower[$name]}" || die "the client in $name goes on after the agent's end"
  wait "${follower[$name]}" || die "the client in $name failed at the agent's end: $(cat "$work/$name.err")"
  [[ ! -s $work/$name.err ]] || die "the client in $name complains: $(cat "$work/$name.err")"
done
say "${green}the clients in ${languages[*]} print the same$plain"

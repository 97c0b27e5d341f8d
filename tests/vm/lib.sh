#!/usr/bin/env bash
# What the scripts in tests/vm/ share: which kernels there are, and where what was fetched and built is. Sourced, never run.
# shellcheck disable=SC2034 # not every script uses every value

# shellcheck source=ci/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"

kernels=(5.10 6.1 6.12)
vm=$target/vm

# die MESSAGE [EXIT-CODE]
die() {
  printf '%stests/vm/%s: %s%s\n' "$red" "$(basename "$0")" "$1" "$plain" >&2
  exit "${2:-1}"
}

# The header comment of the script that runs.
usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$root/tests/vm/$(basename "$0")"
  exit "$1"
}

# free_ports COUNT: so many that nobody listens on, a line each; none of those that the kernel gives to who asks for any, as
# whoever did would have it until it is used here.
free_ports() {
  /usr/bin/python3 -B - "$1" <<'PYTHON'
import random, socket, sys
first, last = map(int, open("/proc/sys/net/ipv4/ip_local_port_range").read().split())
left = [port for port in range(10000, 65536) if not first <= port <= last] or range(10000, 65536)
found = []
while len(found) < int(sys.argv[1]):
    try:
        found.append(socket.create_server(("127.0.0.1", random.choice(left))))
    except OSError:
        pass
print(*[one.getsockname()[1] for one in found], sep="\n")
PYTHON
}

# fetched NAME WANTED: whether target/vm/NAME is complete, and what is wanted now.
fetched() { [[ -f $vm/$1/.complete && $(<"$vm/$1/.complete") == "$2" ]]; }

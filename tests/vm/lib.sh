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

# fetched NAME WANTED: whether target/vm/NAME is complete, and what is wanted now.
fetched() { [[ -f $vm/$1/.complete && $(<"$vm/$1/.complete") == "$2" ]]; }

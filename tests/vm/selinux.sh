#!/usr/bin/env bash
# SELinux on real arm64 kernels: enforcing and permissive, in a domain that may use eBPF and in others, under a small policy.
#
#   bash tests/vm/selinux.sh [KERNEL]...     5.10, 6.1, 6.12; 5.10 and 6.12 if none is named
#
# Shown for each: in the domain that may, plaintapd captures; elsewhere plaintapd and its doctor say what was denied, to which
# domain, and end with 3; permissive, it captures in any.
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

machines=()
while (($#)); do
  case $1 in
    -h | --help) usage 0 ;;
    5.10 | 6.1 | 6.12) machines+=("$1") ;;
    *) usage 2 >&2 ;;
  esac
  shift
done
((${#machines[@]})) || machines=(5.10 6.12)

command -v checkpolicy >/dev/null || die "no checkpolicy: bash ci/setup.sh test installs it" 3
bash tests/vm/fetch.sh
[[ -x dist/plaintapd-aarch64 ]] || bash ci/build-device.sh
bash tests/vm/build.sh

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The oldest format that has all of it, which every kernel here reads. Unknown permissions are allowed.
checkpolicy -M -U allow -c 30 -o "$work/policy" tests/vm/selinux.conf
files=(--file "$work/policy=/etc/policy" --file tests/vm/selinux-guest=/usr/bin/selinux-guest
  --file dist/plaintapd-aarch64=/usr/bin/plaintapd --file "$vm/tests/e2e=/usr/bin/e2e")
while read -r program; do files+=(--file "$program=$program"); done <"$vm/tests/programs"
for machine in "${machines[@]}"; do
  start=$SECONDS
  heading "== SELinux on arm64 kernel $machine"
  bash tests/vm/run.sh "$machine" --boot lsm=selinux --timeout 240 "${files[@]}" -- selinux-guest ||
    die "$machine: SELinux: failed"
  say "$machine: ok ($((SECONDS - start)) s)"
done

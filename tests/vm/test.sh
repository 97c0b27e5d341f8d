#!/usr/bin/env bash
# Runs the end-to-end tests that depend on the kernel on real arm64 kernels, one machine after the other.
#
#   bash tests/vm/test.sh [--all] [MACHINE]...     as root the first time: it installs and fetches what is missing
#     MACHINE   5.10, 6.1, 6.12, or 6.12-max, whose CPU has pointer authentication and BTI; all of them if none is named
#     --all     every end-to-end test, in place of those that depend on the kernel: ten minutes
#
# They are the tests of tests/, the same as on the host's own kernel. Ends with a line for each machine.
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

# Modules of tests/tests/e2e, or single tests. Most of their time each waits for the kernel, which takes its own
# over every probe: so there are more of them at a time than CPUs.
tests=(addresses:: payloads:: losses::what_is_lost http::an_http lifecycle::killing_the_attaching_half
  engines::an_engine_has engines::an_engine_whose connections::a_connection_outlives
  hardships:: memory:: discovery::a_library_that_was discovery::a_library_in discovery::what_a_later on_demand::probes on_demand::what_the_ring)
# What another agent of the same user would change, which has the machine for itself: 5.10 counts all of their maps together.
alone=hardships::where_little_memory
# For the second CPU: what a probe sees and where it is put, in each library.
tests_max=(payloads::every_size addresses::ipv4_addresses_are_right_on_a_connection_older)
# For each machine, from switching on; on a busy host it takes three times as long.
timeout=400

machines=()
while (($#)); do
  case $1 in
    -h | --help) usage 0 ;;
    --all) tests=('') tests_max=('') timeout=1200 ;;
    5.10 | 6.1 | 6.12 | 6.12-max) machines+=("$1") ;;
    *) usage 2 >&2 ;;
  esac
  shift
done
((${#machines[@]})) || machines=("${kernels[@]}" 6.12-max)

bash tests/vm/fetch.sh
bash ci/build-device.sh
bash tests/vm/build.sh
e2e=$vm/tests/e2e

# listed FILTER...: how many tests there are beside the one that is alone; a filter that fits none is a mistake here.
listed() {
  local filter
  for filter; do
    qemu-aarch64 "$e2e" --list "$filter" | grep ': test$' >/dev/null || die "no test is named '$filter…'"
  done
  qemu-aarch64 "$e2e" --list --skip "$alone" "$@" | grep -c ': test$'
}

# run_on MACHINE: its tests; true if as many as there are have passed.
run_on() {
  local cpu=neoverse-n1 filters=("${tests[@]}") count log=$vm/test-$1.log program files=()
  if [[ $1 == *-max ]]; then
    # QEMU's own algorithm for pointer authentication: the architecture's takes an emulator five times as long.
    cpu=max,pauth-impdef=on filters=("${tests_max[@]}")
  fi
  count=$(listed "${filters[@]}")
  while read -r program; do files+=(--file "$program=$program"); done <"$vm/tests/programs"
  bash tests/vm/run.sh "${1%-max}" --cpu "$cpu" --timeout "$timeout" \
    --file dist/plaintapd-aarch64=/usr/bin/plaintapd --file "$e2e=/usr/bin/e2e" "${files[@]}" \
    -- env PLAINTAP_BIN_DIR=/usr/bin sh -c 'e2e "$0" && e2e --test-threads=4 --skip "$0" "$@"' "$alone" \
    "${filters[@]}" 2>&1 | tee "$log" &&
    grep -q "^test result: ok\. 1 passed; 0 failed; 0 ignored;" "$log" &&
    grep -q "^test result: ok\. $count passed; 0 failed; 0 ignored;" "$log"
}

results=() failed=no
for machine in "${machines[@]}"; do
  start=$SECONDS
  heading "== arm64 kernel $machine"
  if run_on "$machine"; then
    results+=("$machine: ok ($((SECONDS - start)) s)")
  else
    results+=("${red}$machine: FAILED ($((SECONDS - start)) s; $vm/test-$machine.log)$plain")
    failed=yes
  fi
done
printf '%s\n' "${results[@]}"
[[ $failed == no ]]

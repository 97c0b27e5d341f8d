#!/usr/bin/env bash
# Fuzzes what reads bytes from outside, with libFuzzer: fuzz/fuzz_targets/ has the targets.
#
#   bash ci/fuzz.sh [SECONDS [TARGET...]]    each target for so long (10); a crash ends it, with the file that caused it
#
# Builds with stable Rust: cargo-fuzz would use the same targets, with a sanitizer, on nightly. What was found interesting is kept
# in target/fuzz-corpus/, and begun with the next time.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 0; }
seconds=${1:-10}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "$seconds is no number of seconds" 2
shift || true

use_cargo demo || die "no cargo new enough: run bash ci/setup.sh test" 1
command -v c++ >/dev/null || die "no C++ compiler, which libFuzzer needs: run bash ci/setup.sh test" 1

# The coverage that libFuzzer steers by, from LLVM passes that stable rustc has too.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Ccodegen-units=1 -Cdebug-assertions=on -Coverflow-checks=on"
RUSTFLAGS=$(tr -s '\n ' ' ' <<<"$RUSTFLAGS")
cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir "$target/fuzz" \
  --target "$(rustc -vV | awk '/^host:/ { print $2 }')"

targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cd fuzz/fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
for name in "${targets[@]}"; do
  program=("$target"/fuzz/*/release/"$name")
  [[ -x ${program[0]} ]] || die "there is no target $name" 2
  corpus=$target/fuzz-corpus/$name
  mkdir -p "$corpus"
  say "fuzzing $name for $seconds s"
  "${program[0]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=0 \
    -artifact_prefix="$corpus/../$name-" "$corpus" >"$corpus.log" 2>&1 ||
    { tail -n 30 "$corpus.log" >&2 && die "$name found something; $corpus.log has all of it"; }
  tail -n 1 "$corpus.log"
done

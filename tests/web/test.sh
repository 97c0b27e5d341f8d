#!/usr/bin/env bash
# Tests the page: that the agent carries what its sources make, the modules under node's runner, and the page in Chromium
# over a real capture, which loads eBPF and so needs root. Wants `cargo build --release -p plaintapd`; its place may be given
# in PLAINTAP_BIN_DIR.
#
#   bash tests/web/test.sh     needs what ci/setup.sh test installs
set -euo pipefail
cd "$(dirname "$0")/../.."
node agent/web/build.mjs --check
[[ -d tests/web/node_modules ]] || { echo "tests/web/node_modules is missing: bash ci/setup.sh test" >&2; exit 1; }
(cd tests/web && npx --no-install biome lint --error-on-warnings --config-path=. ../../agent/web . ../programs)
node --test tests/web/

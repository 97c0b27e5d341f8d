#!/usr/bin/env bash
# Tests the page's modules under node's own runner, and that the page which the agent carries is made of them.
#
#   bash tests/web/test.sh     needs node 20 or newer
set -euo pipefail
cd "$(dirname "$0")/../.."
node agent/web/build.mjs --check
node --test tests/web/

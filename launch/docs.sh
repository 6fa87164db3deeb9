#!/usr/bin/env bash
# Builds the site of the documentation in build/site; a link or an anchor that leads nowhere is an error.
# To read it: python3 -m http.server --directory build/site
set -euo pipefail
cd "$(dirname "$0")/.."
# The extra dev has the builder too: nothing is set up again after launch/test.sh.
[ -x .venv/bin/zensical ] || bash launch/setup.sh docs
exec .venv/bin/adatad dev site "$@"

#!/usr/bin/env bash
# Makes the built-in data set, trains on it, evaluates and draws. Arguments go to tools/demo.py (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
export OMP_WAIT_POLICY=PASSIVE
exec .venv/bin/python tools/demo.py "$@"

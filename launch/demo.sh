#!/usr/bin/env bash
# Makes the built-in data set, trains on it, evaluates, draws, and detects in a new video. Arguments go to adatad demo
# (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
export OMP_WAIT_POLICY=PASSIVE
# torch reads either name, this one first.
if [ -z "${PYTORCH_CUDA_ALLOC_CONF+set}${PYTORCH_ALLOC_CONF+set}" ]; then
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
fi
exec .venv/bin/python -m adatad demo "$@"

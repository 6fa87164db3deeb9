#!/usr/bin/env bash
# Sets up .venv in the checkout with pinned versions, once. Usage: launch/setup.sh [EXTRA ...] (setup.cfg: dev, ...)
# ADATAD_TORCH_INDEX: another wheel index for torch. PYTHON: another interpreter, 3.11 or newer.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamps=.venv/installed
# What an installation depends on: a change of any of it installs again.
facts=$({ cat setup.cfg constraints.txt launch/setup.sh; pwd; } | cksum)

missing=0
for extra in base "$@"; do
  [ "$(cat "$stamps/$extra" 2>/dev/null)" = "$facts" ] || missing=1
done
[ "$missing" = 1 ] || exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "launch/setup.sh: $python is not Python 3.11 or newer; name one with PYTHON=..." >&2
  exit 1
}
echo "Setting up .venv with pinned versions; this takes some minutes, once."
# Without pip it is what an interrupted start left: made anew.
.venv/bin/python -m pip --version > /dev/null 2>&1 || "$python" -m venv --clear .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
# torch first, pinned: left to the other packages' ranges, pip would take the newest build there is.
"${pip[@]}" torch==2.13.0 ${ADATAD_TORCH_INDEX:+--index-url "$ADATAD_TORCH_INDEX"}
extras=$(IFS=,; echo "$*")
"${pip[@]}" --editable ".${extras:+[$extras]}"

mkdir -p "$stamps"
for extra in base "$@"; do echo "$facts" > "$stamps/$extra"; done

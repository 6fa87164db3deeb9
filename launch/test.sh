#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest. --full: also those that are left out for their time.
# ADATAD_SHARED: folder of the reference's goldens.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh dev
# Three test processes of one thread each fill two cores, as some tests wait. Slow tests begin in one of
# them (tests/conftest.py): worksteal lets a process that has none left take some of another's.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
exec .venv/bin/python -m pytest --numprocesses "${ADATAD_TEST_PROCESSES:-3}" --dist worksteal --durations 60 "$@"

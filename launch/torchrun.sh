#!/usr/bin/env bash
# Trains on all GPUs of this machine, one process each, or in one process without any. Arguments go to adatad train:
#   launch/torchrun.sh configs/demo/tia.yaml --engine fsdp
# ADATAD_PROCESSES: another number of processes. --dry-run: print the command and leave.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/workstation.sh

command=(.venv/bin/torchrun --standalone --nproc-per-node "$processes" tools/train.py "${arguments[@]}")
if [ "$dry_run" = 1 ]; then
  printf 'OMP_NUM_THREADS=%q OMP_WAIT_POLICY=%q' "$OMP_NUM_THREADS" "$OMP_WAIT_POLICY"
  [ -z "${PYTORCH_CUDA_ALLOC_CONF+set}" ] || printf ' PYTORCH_CUDA_ALLOC_CONF=%q' "$PYTORCH_CUDA_ALLOC_CONF"
  printf ' %q' "${command[@]}"
  echo
  exit
fi
bash launch/setup.sh
exec "${command[@]}"

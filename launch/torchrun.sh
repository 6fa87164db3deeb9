#!/usr/bin/env bash
# Trains on all GPUs of this machine, one process each, or in one process without any. Arguments go to tools/train.py:
#   launch/torchrun.sh configs/demo/tia.yaml --engine fsdp
# ADATAD_PROCESSES: another number of processes. --dry-run: print the command and leave.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
arguments=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then dry_run=1; else arguments+=("$argument"); fi
done

gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    # -1 and what comes after it hide GPUs.
    tr ',' '\n' <<< "${CUDA_VISIBLE_DEVICES%%-1*}" | grep -c '[^[:space:]]' || true
  else
    { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU ' || true
  fi
}

found=$(gpus)
processes=${ADATAD_PROCESSES:-$((found > 0 ? found : 1))}
case $processes in
  0 | *[!0-9]*)
    echo "launch/torchrun.sh: ADATAD_PROCESSES is '$processes'; it must be a number of processes, 1 or more" >&2
    exit 2
    ;;
esac

# Cores shared out evenly; idle threads sleep instead of taking cores from other processes.
cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

command=(.venv/bin/torchrun --standalone --nproc-per-node "$processes" tools/train.py "${arguments[@]}")
if [ "$dry_run" = 1 ]; then
  printf 'OMP_NUM_THREADS=%q OMP_WAIT_POLICY=%q' "$OMP_NUM_THREADS" "$OMP_WAIT_POLICY"
  printf ' %q' "${command[@]}"
  echo
  exit
fi
bash launch/setup.sh
exec "${command[@]}"

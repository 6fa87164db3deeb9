#!/usr/bin/env bash
# Trains on all GPUs of this machine under DeepSpeed's launcher; a machine without one trains in one process on its CPU.
# Arguments go to tools/train.py, for example: launch/deepspeed.sh SPEC --deepspeed ds_configs/zero3.json
# --dry-run prints the command instead. ADATAD_PROCESSES: ranks, instead of one for each GPU. CUDA_VISIBLE_DEVICES: GPUs
# to use.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
arguments=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then dry_run=1; else arguments+=("$argument"); fi
done

gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
where=(--num_gpus "${ADATAD_PROCESSES:-$((gpus > 0 ? gpus : 1))}")
# DeepSpeed ignores this variable when it is told a number.
if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ -z "${ADATAD_PROCESSES:-}" ]; then
  where=(--include "localhost:$CUDA_VISIBLE_DEVICES")
fi
command=(.venv/bin/deepspeed --log_level warning "${where[@]}" tools/train.py "${arguments[@]}")

if [ "$dry_run" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi

[ -x .venv/bin/deepspeed ] || bash launch/setup.sh deepspeed
export OMP_WAIT_POLICY=PASSIVE
# One thread a rank, unless something else is asked for: ranks share the CPU's cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
# Operators that DeepSpeed compiles belong to this installation. A build that was killed leaves a lock behind, and all
# later ones would wait for it.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}
[ -d "$TORCH_EXTENSIONS_DIR" ] && find "$TORCH_EXTENSIONS_DIR" -name lock -type f -mmin +60 -delete
# The launcher starts each rank with the python that it finds first.
export PATH=$PWD/.venv/bin:$PATH
exec "${command[@]}"

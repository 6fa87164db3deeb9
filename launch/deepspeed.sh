#!/usr/bin/env bash
# Trains on all GPUs of this machine under DeepSpeed's launcher; a machine without one trains in one process on its CPU.
# Arguments go to adatad train: launch/deepspeed.sh SPEC --deepspeed ds_configs/zero3.json
# ADATAD_PROCESSES: another number of processes. CUDA_VISIBLE_DEVICES: GPUs to use. --dry-run: print the command and leave.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/workstation.sh

where=(--num_gpus "$processes")
# DeepSpeed ignores this variable when it is told a number.
if [ "$found" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ -z "${ADATAD_PROCESSES:-}" ]; then
  where=(--include "localhost:$CUDA_VISIBLE_DEVICES")
fi
command=(.venv/bin/deepspeed --log_level warning "${where[@]}" tools/train.py "${arguments[@]}")
if [ "$dry_run" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi

bash launch/setup.sh deepspeed
[ "$found" -gt 0 ] || export DS_ACCELERATOR=cpu
# Operators that DeepSpeed compiles belong to this installation. A build that was killed leaves a lock behind, and all
# later ones would wait for it.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}
[ ! -d "$TORCH_EXTENSIONS_DIR" ] || find "$TORCH_EXTENSIONS_DIR" -name lock -type f -mmin +60 -delete
# The launcher starts each rank with the python that it finds first.
export PATH=$PWD/.venv/bin:$PATH
exec "${command[@]}"

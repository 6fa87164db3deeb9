#!/usr/bin/env bash
# Scores a checkpoint on the validation videos, on all GPUs of the job; each rank takes its share of the windows.
#   sbatch slurm/test.sh SPEC --checkpoint runs/thumos/b_768x160_adapter/id0/checkpoints/best [arguments of adatad test]
# A test that is preempted or loses a node is begun anew.
#SBATCH --job-name=adatad-test --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=4:00:00
#SBATCH --requeue --open-mode=append --output=slurm/logs/%x-%j.log
set -uo pipefail
home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}    # the checkout; paths in specs are relative to it
script=${ADATAD_CODE:-$home}/slurm/supervise.sh
if [ ! -f "$script" ]; then
  echo "slurm/test.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/supervise.sh
source "$script"
supervise test "$@"

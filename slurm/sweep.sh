#!/usr/bin/env bash
# Trains a spec once for each line of a list of overrides, as an array of jobs, and prints a table of the results when
# the last one is done (also runs/<spec name>/sweep-<list>.md).
#   sbatch --array=0-3 slurm/sweep.sh LIST SPEC [arguments of slurm/train.sh]
# A line of LIST: optimizer.backbone.custom.0.lr=2e-4 train.seed=1. Line n (from 0; comments and empty ones don't count)
# becomes the run with --id FIRST_ID + n.
#SBATCH --job-name=adatad-sweep --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%A_%a.log
set -uo pipefail
home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}    # the checkout; paths in specs are relative to it
script=${ADATAD_CODE:-$home}/slurm/supervise.sh
if [ ! -f "$script" ]; then
  echo "slurm/sweep.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/supervise.sh
source "$script"
supervise sweep "$@"

#!/usr/bin/env bash
# Detects in a list of videos; the tasks of an array share it, each with one GPU or more, and none is done twice.
#   sbatch --array=0-7 slurm/detect.sh MODEL SOURCE... --output FOLDER [arguments of adatad detect]
# What is done already stays: submitted again, with any number of tasks, it goes on; so does a task that is preempted.
#SBATCH --job-name=adatad-detect --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=8 --time=4:00:00
#SBATCH --requeue --open-mode=append --output=slurm/logs/%x-%A_%a.log
set -uo pipefail
home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}    # the checkout; paths in arguments are relative to it
script=${ADATAD_CODE:-$home}/slurm/supervise.sh
if [ ! -f "$script" ]; then
  echo "slurm/detect.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/supervise.sh
source "$script"
supervise detect "$@"

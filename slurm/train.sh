#!/usr/bin/env bash
# Trains a spec to its end, in as many attempts as it takes: before a time limit or a preemption all ranks save and
# leave, and the job is requeued; after a lost node it goes on from the last checkpoint.
#   sbatch [sbatch's options] slurm/train.sh SPEC [--launcher srun|torchrun|deepspeed] [arguments of adatad train]
# To be submitted in the checkout. Ranks a node: --ntasks-per-node, as many as --gpus-per-node. docs/cluster.md tells more.
#SBATCH --job-name=adatad --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%j.log
set -uo pipefail
home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}    # the checkout; paths in specs are relative to it
script=${ADATAD_CODE:-$home}/slurm/supervise.sh
if [ ! -f "$script" ]; then
  echo "slurm/train.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/supervise.sh
source "$script"
supervise train "$@"

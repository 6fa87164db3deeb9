#!/usr/bin/env bash
# Trains a spec to its end, in as many lives as it takes: before a time limit or a preemption all ranks save and leave,
# and the job asks for another life; after a lost node it goes on from the last checkpoint.
#   sbatch [sbatch's options] slurm/train.sh SPEC [--launcher srun|torchrun|deepspeed] [arguments of tools/train.py]
# To be submitted in the checkout. Ranks a node: --ntasks-per-node, as many as --gpus-per-node. docs/cluster.md tells more.
#SBATCH --job-name=adatad --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%j.log
set -uo pipefail
if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
  echo "slurm/train.sh: runs in a job of Slurm: sbatch slurm/train.sh SPEC; without Slurm: launch/torchrun.sh SPEC (docs/cluster.md)" >&2
  exit 2
fi
# Slurm signals the ranks itself; this shell need only outlive them. Never trap '': children would inherit "ignored".
ended=0
trap ended=1 TERM USR1

home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}    # the checkout; paths in specs are relative to it
LAUNCHER=${LAUNCHER:-srun}                        # what starts the ranks; --launcher says the same
PROGRAM=${PROGRAM:-}                              # instead of tools/train.py
HEALTH_CHECK=${HEALTH_CHECK:-1}                   # 0: don't look at the nodes before training
LEAVE_SECONDS=${LEAVE_SECONDS:-60}                # after one rank has left, until the others are ended
export MAX_IDLE_RESTARTS=${MAX_IDLE_RESTARTS:-3}  # restarts without a newer checkpoint before the job gives up
MAX_EXCLUDED_NODES=${MAX_EXCLUDED_NODES:-4}       # bad nodes before it does

cd "$home" || exit 2
scripts=${ADATAD_CODE:-$home}/slurm
if [ ! -f "$scripts/prolog.sh" ]; then
  echo "slurm/train.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/prolog.sh
source "$scripts/prolog.sh"
# shellcheck source=slurm/lives.sh
source "$scripts/lives.sh"

arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --launcher) LAUNCHER=${2:-}; shift; [ $# = 0 ] || shift ;;
    --launcher=*) LAUNCHER=${1#*=}; shift ;;
    --resume | --overwrite)
      echo "slurm/train.sh: $1 isn't for jobs: they go on from what their run directory holds; --id N starts another" >&2
      exit 2
      ;;
    *) arguments+=("$1"); shift ;;
  esac
done
case $LAUNCHER in
  srun | torchrun | deepspeed) ;;
  *) echo "slurm/train.sh: --launcher is '$LAUNCHER'; expected srun, torchrun or deepspeed" >&2; exit 2 ;;
esac

began=$("${python[@]}" -m adatad.cluster.life "${arguments[@]}") || exit
declare run spec code life logs health job stage_to
eval "$began"
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH} ADATAD_LIFE=$life
say "life $(basename "$life") of $run on $SLURM_JOB_NODELIST"

if [ "$HEALTH_CHECK" = 1 ]; then check_nodes; fi
if [ -n "$stage_to" ]; then stage_videos; fi

train=("${PROGRAM:-$code/tools/train.py}" "$spec" --resume auto)
# The sorter of logs must outlive the ranks too.
launch "${train[@]}" 2>&1 | (trap '' TERM USR1 INT; exec "${python[@]}" -m adatad.cluster.logs "$logs" "$LAUNCHER")
end_life "${PIPESTATUS[0]}"

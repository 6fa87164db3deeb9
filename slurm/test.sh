#!/usr/bin/env bash
# Scores a checkpoint on the validation videos, on all GPUs of the job; each rank takes its share of the windows.
#   sbatch slurm/test.sh SPEC --checkpoint runs/thumos/b_768x160_adapter/id0/checkpoints/best [arguments of tools/test.py]
# Settings are those of slurm/prolog.sh. A test that is preempted or loses a node is begun anew.
#SBATCH --job-name=adatad-test --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=4:00:00
#SBATCH --requeue --open-mode=append --output=slurm/logs/%x-%j.log
set -uo pipefail
if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
  echo "slurm/test.sh: runs in a job of Slurm: sbatch slurm/test.sh SPEC --checkpoint CHECKPOINT; without Slurm: tools/test.py (docs/cluster.md)" >&2
  exit 2
fi

home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}    # the checkout; paths in specs are relative to it
LEAVE_SECONDS=${LEAVE_SECONDS:-60}                # after one rank has left, until the others are ended

cd "$home" || exit 2
scripts=$home/slurm
if [ ! -f "$scripts/prolog.sh" ]; then
  echo "slurm/test.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
# shellcheck source=slurm/prolog.sh
source "$scripts/prolog.sh"
# shellcheck source=slurm/lives.sh
source "$scripts/lives.sh"
# Nobody here stops in good order: a signal ends the ranks.
held=()
step "$cpus" --kill-on-bad-exit=0 --wait="$LEAVE_SECONDS" \
  bash "$scripts/rank.sh" "${python[@]}" tools/test.py "$@"
rc=$?
# At the start of a preemption's grace Slurm signals the ranks alone; a job that then ended would not come back.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
if [ "$rc" = 143 ] && [ "$(job_state)" = RUNNING ]; then
  say "a signal ended the test: asking for another life"
  requeue && sleep 60
fi
exit "$rc"

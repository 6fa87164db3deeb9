#!/usr/bin/env bash
# Trains a spec once for each line of a list of overrides, as an array of jobs, and prints a table of the results when
# the last one is done (also runs/<spec name>/sweep-<list>.md).
#   sbatch --array=0-3 slurm/sweep.sh LIST SPEC [arguments of slurm/train.sh]
# A line of LIST: optimizer.backbone.custom.0.lr=2e-4 train.seed=1. Line n (from 0; comments and empty ones don't count)
# becomes the run with --id FIRST_ID + n. Settings are those of slurm/train.sh, and:
#SBATCH --job-name=adatad-sweep --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%A_%a.log
set -uo pipefail
trap : TERM USR1

home=${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
FIRST_ID=${FIRST_ID:-0}             # number of the first run

cd "$home" || exit 2
scripts=$home/slurm
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || [ $# -lt 2 ]; then
  echo "usage: sbatch --array=0-N slurm/sweep.sh LIST SPEC [arguments of slurm/train.sh] (in a job of Slurm)" >&2
  exit 2
fi
list=$1
shift
if [ ! -f "$scripts/train.sh" ]; then
  echo "slurm/sweep.sh: $home isn't the checkout: submit there, or set ADATAD_HOME" >&2
  exit 2
fi
if [ ! -f "$list" ]; then
  echo "slurm/sweep.sh: $list: no such file in $home" >&2
  exit 2
fi
mapfile -t rows < <(tr -d '\r' <"$list" | grep -Ev '^[[:space:]]*(#|$)')
row=${rows[$SLURM_ARRAY_TASK_ID]:-}
if [ -z "$row" ]; then
  echo "slurm/sweep.sh: $list has ${#rows[@]} lines: --array=0-$((${#rows[@]} - 1)), there is no $SLURM_ARRAY_TASK_ID" >&2
  exit 2
fi
# Words of the line, quotes and all, as a shell would read them.
if ! words=$(xargs -n 1 printf '%s\n' <<<"$row"); then
  echo "slurm/sweep.sh: $list, line $SLURM_ARRAY_TASK_ID (from 0): $row: can't be read, see above" >&2
  exit 2
fi
mapfile -t overrides <<<"$words"
bash "$scripts/train.sh" "$@" --set "${overrides[@]}" --id $((FIRST_ID + SLURM_ARRAY_TASK_ID))
rc=$?
if [ "$rc" = 0 ]; then
  # shellcheck source=slurm/prolog.sh
  source "$scripts/prolog.sh"
  "${python[@]}" -m adatad.cluster.sweep "$list" "$FIRST_ID" "$@"
fi
exit "$rc"

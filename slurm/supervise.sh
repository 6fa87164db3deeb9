# shellcheck shell=bash disable=SC2154
# Sourced by train.sh, test.sh, detect.sh and sweep.sh, which set `home`: finds the job's Python and puts the supervisor
# (adatad/cluster/supervisor.py, which lists its settings) in the place of the batch shell. Settings that are read here:
#   MODULES    modules to load, such as "gcc/13 cuda/12.6"
#   CONTAINER  an Apptainer image that holds Python and the packages; the host then needs a python3 of its own
#   VENV       else: the virtual environment (launch/setup.sh makes the checkout's .venv)

# supervise VERB ARGUMENTS: runs one attempt of the job; doesn't return.
supervise() {
  if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    local instead="launch/torchrun.sh ${2:-SPEC}"
    case $1 in test | detect) instead="adatad $1" ;; esac
    echo "slurm/$1.sh: runs in a job of Slurm: sbatch it (docs/cluster.md); without Slurm: $instead" >&2
    exit 2
  fi
  # Slurm may signal all processes of the batch script. The supervisor handles that before it starts any other.
  trap '' TERM USR1
  cd "$home" || exit 2
  home=$PWD
  if [ -n "${MODULES:-}" ]; then
    # shellcheck disable=SC2086
    module load $MODULES || exit 1
  fi
  local python=${VENV:-$home/.venv}/bin/python
  if [ -n "${CONTAINER:-}" ]; then
    # srun and scontrol are on the host, so that the supervisor is, too.
    [ -x "$python" ] || python=python3
    apptainer exec --nv "$CONTAINER" python3 -c pass || exit 2
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
    echo "slurm/$1.sh: $python doesn't start on $(hostname), or is older than 3.9: set VENV or CONTAINER (docs/cluster.md)" >&2
    exit 2
  fi
  # A requeued job goes on with the code of its first attempt, whatever has become of the checkout meanwhile.
  local code=${ADATAD_CODE:-$home} job kept=''
  if [ "$1" != test ] && [ "$1" != detect ] && [ "${SLURM_RESTART_COUNT:-0}" != 0 ]; then
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    kept=$(sed -n 3p "slurm/logs/.run-of-${SLURM_CLUSTER_NAME:-cluster}-${job:-$SLURM_JOB_ID}" 2>/dev/null)
    [ ! -f "$kept/adatad/cluster/supervisor.py" ] || code=$kept
  fi
  # sbatch --export=SOME leaves PATH out. Without PYTHONSAFEPATH Python would look into the checkout before all.
  export PATH PYTHONSAFEPATH=1 PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
  exec "$python" -m adatad.cluster.supervisor "$@"
}

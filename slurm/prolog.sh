# shellcheck shell=bash disable=SC2154
# Sourced by the scripts beside it: the environment of a job, the check of its nodes, and how ranks are started.

if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
  echo "$0: runs in a job of Slurm: sbatch ${0#"$PWD"/} (docs/cluster.md)" >&2
  exit 2
fi

MODULES=${MODULES:-}              # modules to load, such as "gcc/13 cuda/12.6"
CONTAINER=${CONTAINER:-}          # an Apptainer image that holds Python and the packages
VENV=${VENV:-$home/.venv}         # else: the virtual environment (launch/setup.sh makes it)
LOCAL_DISK=${LOCAL_DISK:-${TMPDIR:-/tmp}}  # a folder on each node's own disk, which must be writable
MIN_FREE_GIB=${MIN_FREE_GIB:-2}   # free on that disk, and of each GPU's memory
SLOW_FACTOR=${SLOW_FACTOR:-1.5}   # a node whose matrix product takes so much longer than the median is bad
MIN_GBIT=${MIN_GBIT:-0}           # all-reduce between nodes slower than this is an error
HEALTH_SECONDS=${HEALTH_SECONDS:-180}      # a node that hasn't answered by then is bad

if [ -n "$MODULES" ]; then
  # shellcheck disable=SC2086
  module load $MODULES || exit 1
fi
if [ -n "$CONTAINER" ]; then
  python=(apptainer exec --nv "$CONTAINER" python3)
else
  python=("$VENV/bin/python")
fi
if ! "${python[@]}" -c pass; then
  echo "slurm/prolog.sh: ${python[*]} doesn't start on $(hostname): set VENV or CONTAINER (docs/cluster.md)" >&2
  exit 2
fi

# Of sbatch --export=SOME: steps would drop what this script sets, and the path of commands.
unset SLURM_EXPORT_ENV
export PATH
# The code that was frozen with the job goes first, then the checkout's.
export PYTHONPATH=${ADATAD_CODE:-$home}${PYTHONPATH:+:$PYTHONPATH}
# Without it `python -m` would look into the working folder before all, which is the checkout.
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 COLUMNS=160
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
# Kept rows of some MiB would leave gaps in segments of a fixed size. torch reads either name, this one first.
if [ -z "${PYTORCH_CUDA_ALLOC_CONF+set}${PYTORCH_ALLOC_CONF+set}" ]; then
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
fi
command -v nvidia-smi >/dev/null || export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
# Anew in each life: the next one gets other nodes. The task's own number: arrays share nodes.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((15000 + SLURM_JOB_ID % 20000))

nodes=${SLURM_JOB_NUM_NODES:-1}
ranks=${SLURM_NTASKS_PER_NODE:-1}
cpus=${SLURM_CPUS_PER_TASK:-1}
# Signals wait until the trainer is there to note them, however long its imports take.
held=(env "--block-signal=TERM,USR1")
if ! "${held[@]}" true 2>/dev/null; then
  # env can since coreutils 8.31.
  block='import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})'
  held=("$VENV/bin/python")
  [ -z "$CONTAINER" ] || held=(python3)
  held+=(-c "$block; os.execvp(sys.argv[1], sys.argv[1:])")
  "${held[@]}" true || held=()
fi

say() { printf '%(%F %T)T job: %s\n' -1 "$*"; }

# srun takes no CPUs a task from the job by itself, eats standard input, and labels lines with the task's number.
step() { srun --label --cpus-per-task="$1" "${@:2}" </dev/null; }
a_task_a_node() { step $((ranks * cpus)) --ntasks="$nodes" --ntasks-per-node=1 "$@"; }

# Starts the ranks of a program of this repository: launch PROGRAM ARGUMENTS.
launch() {
  case $LAUNCHER in
    srun)
      step "$cpus" --kill-on-bad-exit=0 --wait="$LEAVE_SECONDS" \
        "${held[@]}" bash "$scripts/rank.sh" "${python[@]}" "$@"
      ;;
    torchrun)
      TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE="[rank\${rank}]:" \
        a_task_a_node --kill-on-bad-exit=0 --wait="$LEAVE_SECONDS" \
        "${held[@]}" "${python[@]}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$ranks" \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \
        --signals-to-handle=SIGTERM,SIGUSR1 --tee=3 "$@"
      ;;
    deepspeed)
      # Its launcher on every node, told which one it is on: nothing goes through ssh.
      scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$ranks/" >"$life.hosts"
      local runner=("${python[@]}" -m deepspeed.launcher.runner --hostfile="$life.hosts" --no_ssh)
      runner+=(--master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --log_level=warning)
      # shellcheck disable=SC2016
      a_task_a_node --kill-on-bad-exit=0 --wait="$LEAVE_SECONDS" "${held[@]}" \
        bash -c 'exec "${@:2:$1}" --node_rank="$SLURM_NODEID" "${@:$1+2}"' - "${#runner[@]}" "${runner[@]}" "$@"
      ;;
  esac
}

# Every node before training: names a bad one, and comes back without it.
check_nodes() {
  local bad rc
  # A GPU or a disk may hang whoever looks at it.
  a_task_a_node --kill-on-bad-exit=0 --wait="$HEALTH_SECONDS" timeout --kill-after=10 "$HEALTH_SECONDS" \
    "${python[@]}" -m adatad.cluster.health "$health" --disk "$LOCAL_DISK" --min-free-gib "$MIN_FREE_GIB" \
    --seconds "$HEALTH_SECONDS"
  rc=$?
  # What Slurm's own signals end isn't a node's fault.
  if [ "$rc" = 143 ] || [ "$rc" = 138 ]; then come_back "a signal during the health check"; fi
  mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  bad=$("${python[@]}" -m adatad.cluster.health "$health" --judge "${hosts[@]}" \
    --slow-factor "$SLOW_FACTOR" --min-gbit "$MIN_GBIT") && return
  if [ -z "$bad" ]; then
    echo "failed: health check" >"$life.end"
    exit 1
  fi
  come_back "bad node $bad" "$bad"
}

# Once on every node; what an earlier life copied there stays.
stage_videos() {
  a_task_a_node "${python[@]}" "$code/tools/stage.py" "$spec"
  case $? in
    0) ;;
    138 | 143) come_back "a signal while videos were copied" ;;
    *) say "videos couldn't be copied to $stage_to"; echo "failed: staging" >"$life.end"; exit 1 ;;
  esac
}

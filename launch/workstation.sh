# What torchrun.sh and deepspeed.sh have in common; they source it, with their own arguments.
# Sets: dry_run (1 after --dry-run), arguments (the others), found (GPUs that may be used), processes (to start).

dry_run=0
arguments=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then dry_run=1; else arguments+=("$argument"); fi
done

# CUDA shows a process one MIG instance, and NCCL doesn't join two of one GPU: they count as one.
gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    # -1 and what comes after it hide GPUs.
    awk -v RS=, '{ gsub(/[[:space:]]/, "") } $0 == "-1" { exit } /^MIG-/ { mig = 1 } $0 != "" { count++ }
      END { print mig ? 1 : count + 0 }' <<< "$CUDA_VISIBLE_DEVICES"
  else
    { nvidia-smi --list-gpus 2>/dev/null || true; } |
      awk '/^GPU / { count++ } /^ *MIG / { mig = 1 } END { print mig ? 1 : count + 0 }'
  fi
}

for ((i = 0; i < ${#arguments[@]}; i++)); do
  case "${arguments[i]} ${arguments[i + 1]-}" in
    --device=cpu\ * | --device\ cpu) export CUDA_VISIBLE_DEVICES= ;;
  esac
done
found=$(gpus)
processes=${ADATAD_PROCESSES:-$((found > 0 ? found : 1))}
case $processes in
  0 | *[!0-9]*)
    echo "$0: ADATAD_PROCESSES is '$processes'; it must be a number of processes, 1 or more" >&2
    exit 2
    ;;
esac

# Cores shared out evenly; idle threads sleep instead of taking cores from other processes.
threads=$(($(getconf _NPROCESSORS_ONLN) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# Kept rows of some MiB would leave gaps in segments of a fixed size. torch reads either name, this one first.
if [ -z "${PYTORCH_CUDA_ALLOC_CONF+set}${PYTORCH_ALLOC_CONF+set}" ]; then
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
fi

#!/usr/bin/env bash
# One rank that srun started: torch's variables from Slurm's, then the command.
set -eu
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
# --gpus-per-task shows a rank its own GPU alone, whatever the rank's number on the node.
case ${CUDA_VISIBLE_DEVICES:-} in
  *,* | '') ;;
  *) LOCAL_RANK=0 ;;
esac
exec "$@"

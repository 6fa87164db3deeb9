#!/usr/bin/env bash
# THUMOS-14: VideoMAE-H over 768 frames of 160 pixels, TIA adapters; published average mAP 74.95.
#   sbatch slurm/train_h_768.sh [arguments of slurm/train.sh]
#SBATCH --job-name=h_768 --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%j.log
exec bash "${ADATAD_CODE:-${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}}/slurm/train.sh" configs/thumos/h_768x160_adapter.yaml "$@"

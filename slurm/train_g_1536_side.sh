#!/usr/bin/env bash
# THUMOS-14: VideoMAEv2-g over 1,536 frames of 224 pixels, adapters beside it; published average mAP 74.65.
#   sbatch slurm/train_g_1536_side.sh [arguments of slurm/train.sh]
#SBATCH --job-name=g_1536_side --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=8 --time=24:00:00
#SBATCH --signal=USR1@180 --requeue --open-mode=append --output=slurm/logs/%x-%j.log
exec bash "${ADATAD_CODE:-${ADATAD_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}}/slurm/train.sh" configs/thumos/g_1536x224_side.yaml "$@"

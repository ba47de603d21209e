#!/usr/bin/env bash
# A run under SLURM, by torchrun: sbatch docs/examples/deploy/slurm.sh gsm8k_qwen3 --algo vimpo --name mine
# RLKIT_ENV names the virtual environment. The folder that you submit from holds runs/, and every node must see it.
# Without torchrun, a task for each GPU does as well: docs/several-nodes.md.
# A run that was stopped goes on with: sbatch docs/examples/deploy/slurm.sh --resume runs/mine
#SBATCH --job-name=rlkit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --output=rlkit-%j.log
set -euo pipefail

source "${RLKIT_ENV:-.venv}/bin/activate"
export OMP_NUM_THREADS=1

# torchrun gives a run that is told to stop 30 s for the step in hand. Where steps are longer, `checkpoint.grace_s=30` has
# it drop the step and save the one before.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$head:${RLKIT_PORT:-29500}" \
    -m rlkit run "$@"

#!/bin/bash
# Start a program by torchrun on all nodes of a job of Slurm: the command of `train.launch`. docs/scaling.md describes it.
#
# DIPTYCH_PROCESSES: processes on each node; by default one for each GPU that the job has there, or one.
set -euo pipefail
: "${SLURM_JOB_ID:?is empty: this runs in a job of Slurm, see deploy/slurm/run.sbatch}"

# The first node runs this script, and the processes find each other through it.
exec srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}" --kill-on-bad-exit=1 \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${DIPTYCH_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv-backend=c10d --rdzv-endpoint="$(hostname):$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id="$SLURM_JOB_ID" "$@"

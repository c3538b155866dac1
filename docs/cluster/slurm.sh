#!/bin/bash
# A run on several nodes of a SLURM cluster, one process for each GPU, which continues until it is complete:
#   sbatch docs/cluster/slurm.sh model=gpt2 data=text data.files='[/shared/book.txt]' \
#     data.prepared_dir=/shared/prepared run_dir=/shared/runs/book
# All nodes must see the repository, the text, data.prepared_dir and run_dir under the same names. Partition, account
# and module loads are the cluster's own: give them to sbatch, or add them here.
#SBATCH --job-name=newleaf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

# --kill-on-bad-exit: when one process dies, the others end too. TERM comes 120 s before the time is up, and at
# pre-emption: then all save after the same step and exit with 143.
srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python train.py "$@"' train "$@"
status=$?
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID" # the same command continues
fi
exit $status

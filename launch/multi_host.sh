#!/usr/bin/env bash
# One run of a sweep over the GPUs of several hosts, one process on each: jax.distributed makes them one mesh.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/multi_host.sh launch/sweeps/seed.json runs/compression_ablations M64_gist [--config.KEY=VALUE …]
#
# OUT must be a folder that all hosts see. The first process writes the results. Without SLURM, start the command that --list
# prints on each host with --distributed=ADDRESS:PORT,PROCESSES,ID.
#SBATCH --job-name=gistjax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
set -euo pipefail

sweep=$1 out=$2 name=$3
shift 3
command=$(python -m gistjax.sweep --sweep "$sweep" --out "$out" --only "$name" --list "$@")
echo "$command --distributed=auto"
eval "exec srun --kill-on-bad-exit=1 $command --distributed=auto"

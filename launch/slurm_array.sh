#!/usr/bin/env bash
# One job of an array for each run of a sweep; finished runs are skipped, interrupted ones resume when it is submitted again.
#
#   sbatch --array=0-11%4 --gpus=1 launch/slurm_array.sh launch/sweeps/seed.json runs/compression_ablations [--config.KEY=VALUE …]
#
# `python -m gistjax.sweep --sweep … --list | wc -l` says how many runs there are. Stages that start from others go into a
# job of their own behind them: --only NAME,… among the last arguments, and sbatch --dependency=afterok:JOB.
#SBATCH --job-name=gistjax
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

sweep=$1 out=$2
shift 2
mapfile -t commands < <(python -m gistjax.sweep --sweep "$sweep" --out "$out" --list "$@")
command=${commands[$SLURM_ARRAY_TASK_ID]:?there is no run of that number}
workdir=$(eval "words=($command)"; echo "${words[-1]#--workdir=}")
if [[ -f $workdir/metrics.json ]]; then
    echo "$workdir is finished"
    exit
fi
mkdir -p "$workdir"
echo "$command" | tee -a "$workdir/log.txt"
eval "exec $command" >>"$workdir/log.txt" 2>&1

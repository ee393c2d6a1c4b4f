#!/usr/bin/env bash
# Tasks alone, together and left out: trains, scores what was left out, compares and reports.
#
#   launch/tasks.sh DATA OUT [--config.KEY=VALUE …]
#
# DATA has the folders squad, squad_v2, hotpotqa, fairytaleqa and gsm8k (docs/data.md). It goes
# on where it was interrupted. The further words are for the trainings alone.
set -euo pipefail
data=$1 out=$2
shift 2
python -m gistjax.sweep --sweep launch/sweeps/tasks.json --out "$out" --config.data.path="$data" "$@"
for task in hotpotqa_supporting fairytaleqa_sections gsm8k; do
    python -m gistjax.evaluate --run "$out/without_$task" --config.data.tasks.$task=1 \
        --output "$out/without_$task/predictions_of_all.json" \
        > "$out/without_$task/metrics_of_all.json"
done
python -m gistjax.compare --of "$out/mixture_s42" --with "$out/full_context" --with "$out/closed_book" \
    > "$out/mixture_between_its_controls.json"
for seed in 42 43 44; do
    python -m gistjax.compare --of "$out/mixture_s$seed" --with "$out/only_squad_s$seed" \
        > "$out/cost_for_squad_s$seed.json"
done
python -m gistjax.report --runs "$out" --title "Tasks alone, together and left out"

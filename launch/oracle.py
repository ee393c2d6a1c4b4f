"""What would be won if each context had the budget that it needs, at the same bytes for all.

    for r in 1 2 4 8 16 32; do
        python -m gistjax.evaluate --run RUN --config.ratio=$r --output at_$r.json > /dev/null; done
    python -m launch.oracle --at 1=at_1.json --at 2=at_2.json … [--uniform 8]

Each paragraph's questions are halved at random, over and over. On one half each context gets a
ratio, where F1 rises most a byte, until as many entries are kept as at the uniform ratio; the other
half is scored. Few questions tell little of a context, so its own F1 also counts for a share, and
that of all contexts for the rest. Beside it: ratios by the length of the context alone, ratios at
random, and what would be won if the scored half itself were known. Then the same questions with the
unsure ones asked of all entries (ratio 1): those whose score at the uniform ratio is below a
threshold. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gistjax.errors import ConfigError, DataError, GistjaxError
from gistjax.evaluation.statistics import clustered_bootstrap

SPLITS = 50
SHARES = (0.0, 0.1, 0.5)  # of a context's own F1; "oracle" goes by that alone
LENGTHS = 10  # groups of contexts of about equal length
SAMPLES = 2_000
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def read_predictions(files: dict[float, Path]) -> dict[float, dict[str, dict[str, Any]]]:
    """Return the predictions of each ratio by the ids of questions, which all must have.

    Raises:
        DataError: if a file is none of `evaluate --output`, or has other questions.
    """
    found: dict[float, dict[str, dict[str, Any]]] = {}
    for ratio, file in sorted(files.items()):
        try:
            rows = json.loads(file.read_text("utf-8"))
            found[ratio] = {row["id"]: row for row in rows if row["context_tokens"] >= 0}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} is not what `gistjax.evaluate --output` writes "
                f"({type(error).__name__}: {error}): evaluate again."
            ) from error
        if found[ratio].keys() != next(iter(found.values())).keys():
            raise DataError(f"{file} has other questions than the others: evaluate them alike.")
    return found


def allocate(gain_CxR: np.ndarray, cost_CxR: np.ndarray, budget: float) -> np.ndarray:
    """Return the choice of each context, int `[C]`: the steps of steepest gain first.

    Args:
        gain_CxR: what each choice is worth.
        cost_CxR: what it costs, rising along the choices; the first ones together are affordable.
        budget: the most that all may cost.
    """
    steps = []
    for context, (gain_R, cost_R) in enumerate(zip(gain_CxR, cost_CxR, strict=True)):
        at = 0
        while at < len(gain_R) - 1:  # along the upper hull, whose slopes fall
            slope_R = (gain_R[at + 1 :] - gain_R[at]) / (cost_R[at + 1 :] - cost_R[at])
            best = int(np.argmax(slope_R))
            if slope_R[best] <= 0:
                break
            to = at + 1 + best
            steps.append((slope_R[best], context, to, cost_R[to] - cost_R[at]))
            at = to
    choice_C = np.zeros(len(gain_CxR), int)
    left, stopped = budget - cost_CxR[:, 0].sum(), set()
    for _, context, to, cost in sorted(steps, key=lambda step: -step[0]):
        if context in stopped:
            continue
        if cost > left:
            stopped.add(context)  # its later steps stand on this one
        else:
            choice_C[context], left = to, left - cost
    return choice_C


def by_length(gain_CxR: np.ndarray, cost_CxR: np.ndarray, length_C: np.ndarray, budget: float):
    """Return the choice of each context, int `[C]`, alike for those of about equal length."""
    rank_C = np.argsort(np.argsort(length_C, kind="stable"), kind="stable")
    group_C = rank_C * LENGTHS // len(length_C)
    groups = [group_C == group for group in np.unique(group_C)]
    gains, costs = ([x[group].sum(0) for group in groups] for x in (gain_CxR, cost_CxR))
    choice_G = allocate(np.array(gains), np.array(costs), budget)
    return choice_G[np.unique(group_C, return_inverse=True)[1]]


def measure(f1_NxR: np.ndarray, context_N: np.ndarray, length_C: np.ndarray, ratios, uniform):
    """Return what each way to allocate wins over the uniform ratio, by its name.

    Args:
        f1_NxR: of each question at each ratio.
        context_N: of each question, an index into `length_C`, the lengths in tokens.
        ratios: falling.
    """
    rng, C = np.random.default_rng(0), len(length_C)
    cost_CxR = np.stack([np.ceil(length_C / ratio) for ratio in ratios], 1)
    at = ratios.index(uniform)
    budget = cost_CxR[:, at].sum()
    won: dict[str, list[np.ndarray]] = {}
    used: dict[str, list[float]] = {}
    scored, everything = [], np.arange(C)
    for _ in range(SPLITS):
        order_N = rng.permutation(len(context_N))
        order_N = order_N[np.argsort(context_N[order_N], kind="stable")]
        first_C = np.searchsorted(context_N[order_N], everything)
        chosen_N = np.zeros(len(context_N), bool)
        chosen_N[order_N] = (np.arange(len(order_N)) - first_C[context_N[order_N]]) % 2 == 0
        seen_CxR, held_CxR = (
            np.stack([np.bincount(context_N[of], f1_NxR[of, r], C) for r in range(len(ratios))], 1)
            for of in (chosen_N, ~chosen_N)
        )
        asked_C = np.bincount(context_N[chosen_N], minlength=C)
        alike_CxR = np.outer(asked_C, seen_CxR.sum(0) / asked_C.sum())
        choices = {
            "oracle": allocate(seen_CxR, cost_CxR, budget),
            **{
                f"oracle, its own for {share:g}": allocate(
                    share * seen_CxR + (1 - share) * alike_CxR, cost_CxR, budget
                )
                for share in SHARES
            },
            "by length": by_length(seen_CxR, cost_CxR, length_C, budget),
            "at random": allocate(seen_CxR[rng.permutation(C)], cost_CxR, budget),
            "the scored half known": allocate(held_CxR, cost_CxR, budget),
        }
        for name, choice_C in choices.items():
            won.setdefault(name, []).append(held_CxR[everything, choice_C] - held_CxR[:, at])
            used.setdefault(name, []).append(cost_CxR[everything, choice_C].sum() / budget)
        scored.append(np.bincount(context_N[~chosen_N], minlength=C))
    of_C = np.mean(scored, 0)
    result = {}
    for name, differences in won.items():
        won_C = np.mean(differences, 0)
        low, high = clustered_bootstrap(won_C, everything, SAMPLES, 0, of=of_C)
        difference = won_C.sum() / of_C.sum()
        result[name] = {"difference": difference, "interval": [low, high]}
        result[name]["share of the entries"] = float(np.mean(used[name]))
    return result


def reread(unsure: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return for each threshold F1 where the answers below it are those of the whole cache."""
    score_N, f1_N, whole_N = (
        np.array([row[key] for row in rows])
        for rows, key in ((unsure, "score"), (unsure, "f1"), (whole, "f1"))
    )
    found = []
    for threshold in THRESHOLDS:
        again_N = score_N < threshold
        f1 = float(np.where(again_N, whole_N, f1_N).mean())
        share = {"from entries": float(1 - again_N.mean()), "f1": f1}
        found.append({"threshold": threshold, **share, "of all entries'": f1 / whole_N.mean()})
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print what allocations win."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--at", action="append", required=True, metavar="RATIO=FILE")
    parser.add_argument("--uniform", type=float, default=8.0)
    args = parser.parse_args(argv)
    try:
        files = {float(at.split("=", 1)[0]): Path(at.split("=", 1)[1]) for at in args.at}
    except (ValueError, IndexError) as error:
        raise ConfigError("--at is given as RATIO=FILE, as in --at 8=at_8.json.") from error
    if args.uniform not in files or len(files) < 2:
        raise ConfigError(f"--at must name two ratios or more, --uniform={args.uniform:g} too.")
    predictions = read_predictions(files)
    ratios = sorted(files, reverse=True)
    rows = list(predictions[args.uniform].values())
    names, context_N = np.unique([row["context_id"] for row in rows], return_inverse=True)
    length_C = np.zeros(len(names))
    length_C[context_N] = [row["context_tokens"] for row in rows]
    f1_NxR = np.array([[predictions[ratio][row["id"]]["f1"] for ratio in ratios] for row in rows])
    asked_N = np.bincount(context_N)[context_N] > 1  # the others cannot be halved
    kept, context_K = np.unique(context_N[asked_N], return_inverse=True)
    means = {f"{r:g}": float(f1) for r, f1 in zip(ratios, f1_NxR.mean(0), strict=True)}
    counts = {"questions": len(rows), "contexts": len(kept)}
    won = measure(f1_NxR[asked_N], context_K, length_C[kept], ratios, args.uniform)
    result = {**counts, "f1": means, "uniform": args.uniform, "won": won}
    if 1.0 in files:
        whole = [predictions[1.0][row["id"]] for row in rows]
        result["reread"] = reread(rows, whole)
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except GistjaxError as error:
        raise SystemExit(f"error: {error}") from error

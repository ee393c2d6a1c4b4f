"""Finished runs against one another, question by question.

    python -m gistjax.compare --of RUN --with RUN [--with RUN …]

Reads the runs' `predictions.json`; all must have answered the same questions. Intervals are 95 %, of
`--config.evaluation.bootstrap_samples` resamples of whole contexts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, DataError
from gistjax.evaluation.statistics import clustered_bootstrap, paired_difference
from gistjax.runtime import cli

COLUMNS = ("context_id", "f1", "em")  # all of them numbers


def read_predictions(rundir: Path) -> dict[str, dict[str, Any]]:
    """The rows of a run's `predictions.json` by their id.

    Raises:
        DataError: if the file is not there, damaged, or has not one row for each question.
    """
    path = rundir / "predictions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        by_id = {row["id"]: {key: row[key] + 0 for key in COLUMNS} for row in rows}
        if not rows or len(by_id) < len(rows):
            raise ValueError(f"{len(rows)} rows of {len(by_id)} questions")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): give the directory of a finished run of "
            "gistjax.train, which writes that file."
        ) from error
    return by_id


def compare(of: Path, others: list[Path], samples: int, seed: int) -> dict[str, Any]:
    """Scores of a run; for each other one its scores, the differences `of - other`, and what share of its F1 is retained.

    Raises:
        DataError: if predictions cannot be read, or the runs did not answer the same questions.
    """
    ours = read_predictions(of)
    clusters_N = np.array([row["context_id"] for row in ours.values()])
    scores = {key: np.array([row[key] for row in ours.values()]) for key in ("f1", "em")}
    means = {key: float(values_N.mean()) for key, values_N in scores.items()}
    found: dict[str, Any] = {}
    for other in others:
        theirs = read_predictions(other)
        if unmatched := sorted(map(str, ours.keys() ^ theirs.keys())):
            raise DataError(
                f"{other / 'predictions.json'} and {of / 'predictions.json'} differ in {len(unmatched)} questions, such "
                f"as {unmatched[0]!r}: make both runs with the same --config.data and --config.seed."
            )
        result: dict[str, Any] = {}
        for key, a_N in scores.items():
            b_N = np.array([theirs[id][key] for id in ours])
            difference = paired_difference(a_N, b_N, clusters_N, samples, seed)
            result[key] = float(b_N.mean())
            result[f"{key}_difference"] = difference.mean
            result[f"{key}_difference_interval"] = list(difference.interval)
        result["f1_retained"] = result["f1_retained_interval"] = None
        if result["f1"]:
            b_N = np.array([theirs[id]["f1"] for id in ours])
            interval = clustered_bootstrap(scores["f1"], clusters_N, samples, seed, of=b_N)
            result["f1_retained"] = means["f1"] / result["f1"]
            result["f1_retained_interval"] = list(interval)
        found[str(other)] = result
    return {"of": str(of), **means, "n_examples": len(ours), "with": found}


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    of, others = args["of"].value, [Path(name) for name in args["with"].value or []]
    if not of or not others:
        raise ConfigError("which runs? Give them as in --of runs/gist --with runs/full_context.")
    cli.print_result(compare(Path(of), others, config.evaluation.bootstrap_samples, config.seed))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("of", "", "Directory of the run that is compared.", flag_values=values)
    flags.DEFINE_multi_string(
        "with", [], "Directory of a run to compare it with; may be repeated.", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())

"""Intervals and differences of saved answers, by ratio.

    python -m launch.selection.analyse --data=data --answers=out/mean.validation6936.mlp-global.json
        --full=out/full2.validation6936.kvzip-global.json [--against=FILE]

95 % intervals are from 2,000 draws of whole paragraphs. --full gives the percent of the full
context; --against the paired difference in F1 to other answers to the same questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.errors import DataError
from gistjax.evaluation.metrics import squad
from gistjax.evaluation.statistics import clustered_bootstrap, paired_difference
from gistjax.runtime import cli
from gistjax.runtime.files import read_json
from launch.selection.options import RATIOS

SAMPLES, SEED = 2000, 0


class Analysis:
    """Gold answers and paragraphs of all questions in a folder of data."""

    def __init__(self, data: Path):
        self.golds: dict[str, list[str]] = json.loads((data / "golds.json").read_text())
        self._paragraph: dict[str, tuple[str, int]] = {}
        for file in sorted(data.glob("*_ids.json")):
            split = file.name.removesuffix("_ids.json")
            with np.load(data / f"{split}.npz") as arrays:
                places = zip(json.loads(file.read_text()), arrays["par"].tolist(), strict=True)
                self._paragraph |= {i: (split, paragraph) for i, paragraph in places}

    def scores(self, path: Path, ratio: int) -> dict[str, tuple[float, float]]:
        """Return F1 and exact match of each question at a ratio, in the order of their ids.

        Raises:
            DataError: if the file has no answers at it.
        """
        fix = "give a file of answers that launch.selection.run wrote"
        answers = read_json(path, DataError, fix, lambda found: found[str(ratio)])[str(ratio)]
        return {i: squad(answers[i], self.golds[i]) for i in sorted(answers)}

    def clusters(self, ids: list[str]) -> list[int]:
        """Return a number for the paragraph of each question, in the order of their first ones."""
        numbers: dict[tuple[str, int], int] = {}
        return [numbers.setdefault(self._paragraph[i], len(numbers)) for i in ids]

    def row(self, ratio: int, answers: Path, full: Path, against: Path | None) -> dict[str, Any]:
        """Return the figures of a ratio.

        Raises:
            DataError: if the files answer different questions.
        """
        scores = self.scores(answers, ratio)
        ids = list(scores)
        clusters = self.clusters(ids)

        def f1(file: Path, at: int) -> np.ndarray:
            found = self.scores(file, at)
            if list(found) != ids:
                raise DataError(f"{file} answers other questions than {answers}.")
            return np.array([found[i][0] for i in ids])

        f1_N, full_N = f1(answers, ratio), f1(full, 1)
        percent = clustered_bootstrap(100 * f1_N, clusters, SAMPLES, SEED, of=full_N)
        row = {
            "n": len(ids),
            "f1": f1_N.mean(),
            "f1_interval": clustered_bootstrap(f1_N, clusters, SAMPLES, SEED),
            "em": np.mean([em for _, em in scores.values()]),
            "percent": 100 * f1_N.mean() / full_N.mean(),
            "percent_interval": percent,
        }
        if against:
            difference = paired_difference(f1_N, f1(against, ratio), clusters, SAMPLES, SEED)
            row |= {"difference": difference.mean, "difference_interval": difference.interval}
        return {name: np.round(value, 4).tolist() for name, value in row.items()}


def main(values: flags.FlagValues) -> None:
    """Print the figures by ratio."""
    analysis = Analysis(Path(values["data"].value))
    answers, full = Path(values["answers"].value), Path(values["full"].value)
    against = Path(values["against"].value) if values["against"].value else None
    fix = "give a file of answers that launch.selection.run wrote"
    found = read_json(answers, DataError, fix, lambda found: found["1"])
    rows = {r: analysis.row(r, answers, full, against) for r in RATIOS if str(r) in found}
    lines = [f"{r:2d}: {json.dumps(row)}" for r, row in rows.items()]
    cli.print_result({str(r): row for r, row in rows.items()}, "\n".join(lines))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("data", "data", "Folder of the questions.", flag_values=values)
    flags.DEFINE_string("answers", None, "Answers.", required=True, flag_values=values)
    about = "Answers of the full context to the same questions."
    flags.DEFINE_string("full", None, about, required=True, flag_values=values)
    flags.DEFINE_string("against", "", "Answers to compare with.", flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

"""Intervals and differences of saved answers, by ratio or number of slots.

    python -m launch.selection.analyse --data=data --answers=out/GM.validation6936.conv-global.json
        --full=out/A3e.validation6936.kvzip-global.json [--against=FILE]

95 % intervals are from 2,000 draws of whole paragraphs. Gives the percent of the full context and
the paired difference in F1 to it; with --against also the difference to other answers to the same
questions at the same budget.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.errors import DataError
from gistjax.evaluation.metrics import squad
from gistjax.evaluation.statistics import clustered_bootstrap, paired_difference
from gistjax.runtime import cli
from gistjax.runtime.files import read_json

SAMPLES, SEED = 2000, 0

FULL = "1"
"""What the answers of a full context are filed under."""

Scores = dict[str, tuple[float, float]]
"""F1 and exact match of each question, in the order of their ids."""


@cache
def read_answers(path: Path) -> dict[str, dict[str, str]]:
    """Return the answers of a file by ratio or slots and by question.

    Raises:
        DataError: if there are none.
    """
    fix = "give a file of answers that launch.selection.run wrote"
    found: dict[str, dict[str, str]] = read_json(
        path, DataError, fix, lambda found: all(found.values())
    )
    return found


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

    def scores(self, path: Path, budget: str) -> Scores:
        """Return the scores of a file's answers at a budget.

        Raises:
            DataError: if the file has no answers at it.
        """
        answers = read_answers(path)
        if budget not in answers:
            raise DataError(f"{path} has no answers at {budget}, but at {', '.join(answers)}.")
        return {i: squad(text, self.golds[i]) for i, text in sorted(answers[budget].items())}

    def clusters(self, ids: list[str]) -> list[int]:
        """Return a number for the paragraph of each question, in the order of their first ones."""
        numbers: dict[tuple[str, int], int] = {}
        return [numbers.setdefault(self._paragraph[i], len(numbers)) for i in ids]

    def row(self, budget: str, answers: Path, full: Path, against: Path | None) -> dict[str, Any]:
        """Return the figures at a budget.

        Raises:
            DataError: if the files answer different questions.
        """
        scores = self.scores(answers, budget)
        ids = list(scores)
        how = self.clusters(ids), SAMPLES, SEED

        def f1(file: Path, at: str) -> np.ndarray:
            found = self.scores(file, at)
            if list(found) != ids:
                raise DataError(f"{file} answers other questions than {answers}.")
            return np.array([found[i][0] for i in ids])

        f1_N, full_N = f1(answers, budget), f1(full, FULL)
        row = {
            "n": len(ids),
            "f1": f1_N.mean(),
            "f1_interval": clustered_bootstrap(f1_N, *how),
            "em": np.mean([em for _, em in scores.values()]),
            "percent": 100 * f1_N.mean() / full_N.mean(),
            "percent_interval": clustered_bootstrap(100 * f1_N, *how, of=full_N),
        }
        others = {"full": full_N} | ({"against": f1(against, budget)} if against else {})
        for name, other_N in others.items():
            difference = paired_difference(f1_N, other_N, *how)
            row |= {f"minus_{name}": difference.mean, f"minus_{name}_interval": difference.interval}
        return {name: np.round(value, 4).tolist() for name, value in row.items()}


def main(values: flags.FlagValues) -> None:
    """Print the figures at each budget."""
    analysis = Analysis(Path(values["data"].value))
    answers, full = Path(values["answers"].value), Path(values["full"].value)
    against = Path(values["against"].value) if values["against"].value else None
    rows = {b: analysis.row(b, answers, full, against) for b in read_answers(answers)}
    lines = [f"{budget:>2}: {json.dumps(row)}" for budget, row in rows.items()]
    cli.print_result(rows, "\n".join(lines))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("data", "data", "Folder of the questions.", flag_values=values)
    flags.DEFINE_string("answers", None, "Answers.", required=True, flag_values=values)
    about = "Answers of the full context to the same questions."
    flags.DEFINE_string("full", None, about, required=True, flag_values=values)
    flags.DEFINE_string("against", "", "More answers to compare with.", flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

"""Compare finished runs question by question.

    python -m gistjax.compare --of RUN --with RUN [--with RUN …]

Reads each run's `predictions.json`; all runs must have answered the same questions. On a terminal
it prints a table, elsewhere one JSON object. Intervals are 95 %, from
`--config.evaluation.bootstrap_samples` resamples of whole contexts. `f1_retained` is the share of
the other run's F1 that this run keeps; there is none against a closed book, which has nothing to
keep. With a closed book and a full context (also kept entries that were trained
with all of them, at ratio 1) among the others, `normalised_f1` is the part of the way
from the first to the second, and null where that way is not clearly above nothing. Runs on a
mixture are also compared task by task (`tasks`), those on different mixtures on the tasks that they
share.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gistjax.compress.budget import is_full_context
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, DataError
from gistjax.evaluation.selective import Coverage
from gistjax.evaluation.statistics import (
    clustered_bootstrap,
    clusters_of,
    normalised,
    paired_difference,
    resampled,
)
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.settings import walk

log = logging.getLogger(__name__)

COLUMNS = ("context_id", "f1", "em")  # all of them numbers
ASKED = ("question", "answers", "task")
SCORES = ("f1", "em")
CLOSED_BOOK, FULL_CONTEXT = "closed book", "full context"


Rows = dict[str, dict[str, Any]]
"""Scores, context, question, answers and, of a mixture, task of each question, by its id."""


class Bootstrap(NamedTuple):
    """Resamples of whole contexts: what every interval is made of."""

    clusters_N: np.ndarray  # the context of each question
    samples: int
    seed: int


def read_predictions(rundir: Path) -> dict[str, dict[str, Any]]:
    """Return the scores, contexts, questions and answers of a run's `predictions.json` by id.

    Raises:
        CheckpointError: if the file is missing.
        DataError: if it is damaged, or does not have one row for each question.
    """
    run = RunDir(rundir)
    path = run.finished(run.predictions_file)
    try:
        rows = json.loads(path.read_bytes())
        by_id = {row["id"]: {key: row[key] + 0 for key in COLUMNS} for row in rows}
        if not rows or len(by_id) < len(rows):
            raise ValueError(f"{len(rows)} rows of {len(by_id)} questions")
        for row in rows:
            if not all(0 <= row[key] <= 1 for key in SCORES):
                raise ValueError(f"{row['id']} has no scores in 0..1")
            by_id[row["id"]] |= {key: row[key] for key in ASKED if key in row}
            if "score" in row and "withheld" not in row:
                if not 0 <= row["score"] <= 1:
                    raise ValueError(f"{row['id']} has a score that is not in 0..1")
                by_id[row["id"]]["score"] = row["score"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): give the directory of a "
            "finished run of gistjax.train, which writes that file."
        ) from error
    return by_id


def control(rundir: Path) -> str:
    """Return which control a run is, if it is one and its `config.json` says so; else an empty
    text.
    """
    if not RunDir(rundir).config_file.is_file():
        return ""
    config = RunDir(rundir).config()
    if config.architecture == "closed_book":
        return CLOSED_BOOK
    settings = {key: value for key, value, _ in walk(config)}
    return FULL_CONTEXT if is_full_context(settings) else ""


def compare(of: Path, others: list[Path], samples: int, seed: int) -> dict[str, Any]:
    """Return the scores of a run and, for each other run, its scores, the differences `of - other`
    and the share retained.

    Raises:
        DataError: if predictions cannot be read, or the runs did not answer the same questions.
        CheckpointError: if a run is not finished, or its configuration is damaged.
    """
    ours, *rest = _on_shared_tasks([read_predictions(run) for run in (of, *others)])
    theirs = dict(zip(others, rest, strict=True))
    for other, rows in theirs.items():
        _check_same_questions(of, ours, other, rows)
    kinds = {other: control(other) for other in others}
    result = {"of": str(of), **_compare(ours, theirs, kinds, samples, seed)}
    tasks = dict.fromkeys(row["task"] for row in ours.values() if "task" in row)
    if tasks:
        result["tasks"] = {
            task: _compare(
                {id: row for id, row in ours.items() if row.get("task") == task},
                theirs,
                kinds,
                samples,
                seed,
            )
            for task in tasks
        }
    return result


def _on_shared_tasks(runs: list[Rows]) -> list[Rows]:
    """Return the rows of the tasks that all runs have, where each has a mixture."""
    tasks = [{row.get("task") for row in rows.values()} for rows in runs]
    shared = set.intersection(*tasks)
    if not shared or None in shared or all(found == shared for found in tasks):
        return runs
    names = ", ".join(sorted(map(str, shared)))
    log.warning("compared on the tasks that all runs were asked: %s", names)
    return [{id: row for id, row in rows.items() if row["task"] in shared} for rows in runs]


def _compare(
    ours: Rows, theirs: Mapping[Path, Rows], kinds: Mapping[Path, str], samples: int, seed: int
) -> dict[str, Any]:
    """Compare a run's rows with the same questions of others.

    Args:
        kinds: which control each of the others is.
    """
    ours_N = {key: np.array([row[key] for row in ours.values()]) for key in SCORES}
    clusters_N = clusters_of([row["context_id"] for row in ours.values()])
    bootstrap = Bootstrap(clusters_N, samples, seed)
    found: dict[str, Any] = {}
    controls: dict[str, np.ndarray] = {}
    for other, rows in theirs.items():
        theirs_N = {key: np.array([rows[id][key] for id in ours]) for key in SCORES}
        is_closed = kinds[other] == CLOSED_BOOK
        found[str(other)] = _against(ours_N, theirs_N, bootstrap, has_context=not is_closed)
        found[str(other)] |= _areas(ours, rows, bootstrap)
        controls.setdefault(kinds[other], theirs_N["f1"])
    means = {key: float(values_N.mean()) for key, values_N in ours_N.items()}
    result = {**means, "n_examples": len(ours), "with": found}
    if controls.keys() >= {CLOSED_BOOK, FULL_CONTEXT}:
        part = normalised(ours_N["f1"], controls[CLOSED_BOOK], controls[FULL_CONTEXT], *bootstrap)
        result["normalised_f1"] = part and part.value
        result["normalised_f1_interval"] = part and list(part.interval)
    return result


def _check_same_questions(
    of: Path, ours: Mapping[str, Any], other: Path, theirs: Mapping[str, Any]
) -> None:
    unmatched = sorted(map(str, ours.keys() ^ theirs.keys()))
    unmatched += [str(id) for id in ours if id in theirs and not _same(ours[id], theirs[id])]
    if unmatched:
        raise DataError(
            f"{other / 'predictions.json'} and {of / 'predictions.json'} differ in "
            f"{len(unmatched)} questions, such as {unmatched[0]!r}: make both runs with the same "
            "--config.data and --config.seed."
        )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two rows are of one question with the same answers, as far as they say."""
    return all(one[key] == other[key] for key in ASKED if key in one and key in other)


def _against(
    ours_N: Mapping[str, np.ndarray],
    theirs_N: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
    has_context: bool,
) -> dict[str, Any]:
    """Return another run's scores, the differences to it, and the share of its F1 retained."""
    result: dict[str, Any] = {}
    for key in SCORES:
        difference = paired_difference(ours_N[key], theirs_N[key], *bootstrap)
        result[key] = float(theirs_N[key].mean())
        result[f"{key}_difference"] = difference.mean
        result[f"{key}_difference_interval"] = list(difference.interval)
    if has_context and result["f1"]:
        return result | _ratio("f1_retained", ours_N["f1"], theirs_N["f1"], bootstrap)
    return {**result, "f1_retained": None, "f1_retained_interval": None}


def _areas(ours: Rows, theirs: Rows, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the areas under coverage against accuracy (`Coverage`) and how they differ.

    Nothing if an answer of one of the two has no score, or was withheld.
    """
    pairs = [(ours[id], theirs[id]) for id in ours]
    if not all("score" in row for pair in pairs for row in pair):
        return {}
    own, other = (
        Coverage([row["score"] for row in rows], [row["em"] == 1 for row in rows])
        for rows in zip(*pairs, strict=True)
    )
    interval = resampled(lambda counts: own.area(counts) - other.area(counts), *bootstrap)
    return {
        "own_accuracy_area": own.area(),
        "accuracy_area": other.area(),
        "accuracy_area_difference": own.area() - other.area(),
        "accuracy_area_difference_interval": list(interval),
    }


def _ratio(
    name: str, part_N: np.ndarray, whole_N: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return the ratio of two means with its interval; None if the whole is nothing."""
    if not whole_N.mean() > 0:
        return {name: None, f"{name}_interval": None}
    interval = clustered_bootstrap(part_N, *bootstrap, of=whole_N)
    value = float(part_N.mean()) / float(whole_N.mean())
    return {name: value, f"{name}_interval": list(interval)}


def table(found: Mapping[str, Any]) -> str:
    """Return the comparison as a table for a terminal; of a mixture, one for each task too."""
    tables = [_table(found)]
    for task, part in found.get("tasks", {}).items():
        tables.append(f"\n{task}\n" + _table({"of": found["of"], **part}))
    return "\n".join(tables)


def _table(found: Mapping[str, Any]) -> str:
    rows = [("", "F1", "EM", "F1 difference", "EM difference", "of its F1")]
    rows.append((found["of"], f"{found['f1']:.3f}", f"{found['em']:.3f}", "", "", ""))
    for name, other in found["with"].items():
        differences = (_signed(other, f"{key}_difference") for key in SCORES)
        share = _percent(other, "f1_retained")
        rows.append((name, f"{other['f1']:.3f}", f"{other['em']:.3f}", *differences, share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f"\n{found['n_examples']:,} questions; brackets are 95 % intervals.")
    for name, other in found["with"].items():
        if "accuracy_area" in other:
            areas = f"{other['own_accuracy_area']:.3f}, {name} {other['accuracy_area']:.3f}"
            difference = _signed(other, "accuracy_area_difference")
            lines.append(f"Accuracy over all coverages: {areas}, difference {difference}.")
    if normalised := _percent(found, "normalised_f1"):
        lines.append(f"{normalised} of the way from closed book to full context.")
    return "\n".join(lines)


def _signed(values: Mapping[str, Any], key: str) -> str:
    low, high = values[f"{key}_interval"]
    return f"{values[key]:+.3f} [{low:+.3f}, {high:+.3f}]"


def _percent(values: Mapping[str, Any], key: str) -> str:
    """Return a share and its interval in percent; an empty text if there is none."""
    if values.get(key) is None:
        return ""
    low, high = values[f"{key}_interval"]
    return f"{100 * values[key]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Compare the runs that the flags name."""
    of, others = args["of"].value, [Path(name) for name in args["with"].value or []]
    if not of or not others:
        raise ConfigError("which runs? Give them as in --of runs/gist --with runs/full_context.")
    found = compare(Path(of), others, config.evaluation.bootstrap_samples, config.seed)
    cli.print_result(found, table(found))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("of", "", "Directory of the run to compare.", values)
    about = "Directory of a run to compare it with"
    define_path("with", "", about, values, many=True)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())

"""Finished runs as a report reads them from their directories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistjax.compress.budget import is_full_context
from gistjax.config import UNCOMPRESSED
from gistjax.errors import DataError
from gistjax.experiment.run_dir import RunDir
from gistjax.reporting import checks

TRIVIAL = ("mean_pool", "mark")
"""Architectures that compress and are controls all the same: they show what learning buys."""


@dataclass(frozen=True)
class Result:
    """The files of a run directory."""

    name: str
    path: Path
    settings: dict[str, Any]  # by dotted key, as in `--config.KEY`
    about: dict[str, Any]  # packages, device, hash of the base
    metrics: dict[str, Any]  # empty where the run is not finished
    curve: list[dict[str, Any]]  # lines of metrics.jsonl
    predictions: list[dict[str, Any]]  # of every question, or samples where that file is not there
    slot_attention: list[dict[str, Any]]
    kept_entries: dict[str, Any]  # empty but where entries of the cache are kept

    @property
    def architecture(self) -> str:
        """Name of the architecture, or of the control without slots."""
        return str(self.settings.get("architecture", "?"))

    @property
    def scored(self) -> bool:
        """True if the run is finished and has answered questions."""
        return "final_f1" in self.metrics

    @property
    def compresses(self) -> bool:
        """True if the run has slots, fewer than a context has tokens."""
        return self.architecture not in UNCOMPRESSED and not self.full_context

    @property
    def control(self) -> bool:
        """True if the run is there to be compared with."""
        return not self.compresses or self.architecture in TRIVIAL

    @property
    def full_context(self) -> bool:
        """True for the upper control."""
        return is_full_context(self.settings)

    @property
    def questions(self) -> frozenset[str]:
        """The questions that the run answered: ids, texts and gold answers."""
        keys = ("id", "question", "answers")
        return frozenset(repr([row.get(key) for key in keys]) for row in self.predictions)


def find_runs(folders: Sequence[Path]) -> list[Result]:
    """Return the runs in these folders and below, ordered by path.

    Raises:
        DataError: if there is none, two have the same name, or a file is damaged.
    """
    paths = {path.parent for folder in folders for path in sorted(folder.rglob("config.json"))}
    results = [read_run(path) for path in sorted(paths)]
    if not results:
        places = ", ".join(map(str, folders))
        raise DataError(f"no run in {places}: --runs takes the folder of a sweep, or of a run.")
    names = [result.name for result in results]
    for result in results:
        if names.count(result.name) > 1:
            raise DataError(
                f"two runs are called {result.name}, one of them {result.path}: rename a directory."
            )
    return results


def read_run(path: Path) -> Result:
    """Read a run directory.

    Raises:
        DataError: if one of its files is damaged.
    """
    run = RunDir(path)
    stored = _read(run.config_file, {})
    if not isinstance(stored.get("config"), dict):
        raise DataError(f"{run.config_file} is not that of a run: it has no `config`.")
    metrics, slot_attention = _read(run.metrics_file, {}), _read(run.slot_attention_file, [])
    kept_entries = _read(run.kept_entries_file, {})
    predictions = _read(run.predictions_file, []) or _read(run.samples_file, [])
    checks.check_metrics(metrics, run.metrics_file)
    checks.check_predictions(predictions, run.predictions_file)
    checks.check_slot_attention(slot_attention, run.slot_attention_file)
    checks.check_kept_entries(kept_entries, run.kept_entries_file)
    return Result(
        name=path.name,
        path=path,
        settings=dict(_flat(stored["config"])),
        about={key: value for key, value in stored.items() if key != "config"},
        metrics=metrics,
        curve=_lines(run.log_file),
        predictions=predictions,
        slot_attention=slot_attention,
        kept_entries=kept_entries,
    )


def _read(path: Path, default: Any) -> Any:
    """Return the content of a JSON file, or the default if there is no file."""
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): make that run again.") from error
    if not isinstance(value, type(default)):
        kind = "an object" if default == {} else "a list"
        raise DataError(f"{path} does not hold {kind}: make that run again.")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; the last may be half written."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

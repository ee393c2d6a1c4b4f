"""From answers to rows, one for each cell, and from rows to a page of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gistjax.evaluation.statistics import clustered_bootstrap, clusters_of, normalised
from launch.select_table.answers import ALL, NOTHING, complete, read

Row = dict[str, Any]
KEY = ("contexts", "scorer", "spread", "ratio")
"""What a row is of."""
MEASURES: dict[str, Callable[[Row], str]] = {
    "F1": lambda row: _with_interval(row, "f1"),
    "EM": lambda row: _with_interval(row, "em"),
    "Normalised F1": lambda row: _with_interval(row, "normalised_f1"),
    "Bytes a context token": lambda row: f"{row['bytes_per_context_token']:,.0f}",
}
"""Tables of a page, and what a row shows there."""


def rows_of(folder: Path, samples: int, seed: int) -> list[Row]:
    """Return a row for each cell that is complete.

    Args:
        folder: of the files of answers, `CONTEXTS.SCORER.json`.
        samples: draws of contexts for the intervals.
    """
    files = {file.stem: read(file) for file in sorted(folder.glob("*.json"))}
    rows = []
    for name, content in files.items():
        contexts, _, scorer = name.partition(".")
        controls = [_f1_of(files, contexts, control) for control in (NOTHING, ALL)]
        scale = None if any(f1_N is None for f1_N in controls) else controls
        for cell in complete(content):
            spread, _, ratio = cell.partition("@")
            of = (contexts, scorer, spread if ratio else "", float(ratio) if ratio else None)
            row = dict(zip(KEY, of, strict=True))
            row |= _scores(content, cell, scale, (samples, seed))
            row |= _costs(content, cell, spread)
            rows.append(row)
    return rows


def _f1_of(files: Mapping[str, Any], contexts: str, control: str) -> np.ndarray | None:
    content = files.get(f"{contexts}.{control}")
    if content is None or control not in complete(content):
        return None
    return np.asarray(content["cells"][control]["f1"])


def _scores(
    content: Mapping[str, Any],
    cell: str,
    scale: Sequence[Any] | None,
    draws: tuple[int, int],
) -> Row:
    """Return means with intervals by bootstrap over contexts.

    Args:
        scale: F1 of closed book and full context, `[N]` each, if they are known.
    """
    clusters_N = clusters_of(content["context_ids"])
    row: Row = {"n": len(clusters_N)}
    for key in ("f1", "em"):
        values_N = np.asarray(content["cells"][cell][key])
        row[key] = float(values_N.mean())
        row[f"{key}_interval"] = list(clustered_bootstrap(values_N, clusters_N, *draws))
    row |= {"normalised_f1": None, "normalised_f1_interval": None}
    if scale is not None:
        floor_N, ceiling_N = scale
        f1_N = content["cells"][cell]["f1"]
        found = normalised(f1_N, floor_N, ceiling_N, clusters_N, *draws)
        row["normalised_f1"] = found and found.value
        row["normalised_f1_interval"] = found and list(found.interval)
    return row


def _costs(content: Mapping[str, Any], cell: str, spread: str) -> Row:
    """Return what is kept, and the milliseconds that a context took to be read and cut."""
    entries, tokens = sum(content["cells"][cell]["entries"]), sum(content["tokens"])
    of, seconds = content["of"], content["seconds"]
    compress_ms = None
    if spread in seconds:
        compress_ms = 1e3 * (seconds["read"] + seconds[spread]) / seconds["contexts"]
    return {
        "bytes_per_context_token": entries * of["entry_bytes"] / tokens,
        "effective_ratio": tokens * of["heads"] / entries if entries else None,
        "compress_ms": compress_ms,
        "device": seconds.get("device"),
    }


def page(rows: Sequence[Row]) -> str:
    """Return Markdown: for each kind of context the controls, then a table for each measure."""
    parts = []
    for contexts in dict.fromkeys(row["contexts"] for row in rows):
        some = [row for row in rows if row["contexts"] == contexts]
        parts.append(f"## {contexts.capitalize()}\n\n{_controls(some)}")
        for title, show in MEASURES.items():
            parts.append(f"{title}:\n\n{_table(some, show)}")
    return "\n\n".join(parts) + "\n"


def _controls(rows: Sequence[Row]) -> str:
    lines = ["| | F1 | EM | bytes a context token | questions |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if row["ratio"] is None:
            f1, em, _, size = (show(row) for show in MEASURES.values())
            lines.append(f"| {_plain(row['scorer'])} | {f1} | {em} | {size} | {row['n']:,} |")
    return "\n".join(lines)


def _table(rows: Sequence[Row], show: Callable[[Row], str]) -> str:
    cut = [row for row in rows if row["ratio"] is not None]
    ratios = sorted({row["ratio"] for row in cut})
    heads = ["scorer", "spread", "ms a context", *(f"{ratio:g}" for ratio in ratios)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for scorer, spread in dict.fromkeys((row["scorer"], row["spread"]) for row in cut):
        some = [row for row in cut if row["scorer"] == scorer and row["spread"] == spread]
        found = {row["ratio"]: row for row in some}
        times = [row["compress_ms"] for row in found.values() if row["compress_ms"] is not None]
        ms = f"{times[0]:.2f}" if times else ""
        cells = [show(found[ratio]) if ratio in found else "" for ratio in ratios]
        lines.append(_line([_plain(scorer), spread, ms, *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _with_interval(row: Row, key: str) -> str:
    if row[key] is None:
        return ""
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"

"""The table of runs on a mixture: each task by itself, between its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gistjax.evaluation.statistics import clusters_of, normalised
from gistjax.reporting.runs import Result
from gistjax.reporting.tables import Column, conditions, same_questions

SAMPLES, SEED = 2_000, 0
"""Of the bootstrap behind normalised scores between runs of the report."""
TASK_COLUMNS = (
    Column("run", "run"),
    Column("task", "task"),
    Column("f1", "F1", ".3f"),
    Column("f1_interval", "F1 95 %"),
    Column("em", "EM", ".3f"),
    Column("closed_book_f1", "F1, closed book", ".3f"),
    Column("full_context_f1", "F1, full context", ".3f"),
    Column("controls", "controls"),
    Column("normalised_f1", "normalised", ".0%"),
    Column("normalised_f1_interval", "normalised 95 %"),
    Column("likelihood", "log p of golds", ".3f"),
    Column("full_context_likelihood", "log p, full context", ".3f"),
    Column("closed_book_likelihood", "log p, closed book", ".3f"),
    Column("effective_ratio", "effective ratio", ".3g"),
    Column("questions", "questions", ","),
)


def task_table(results: Sequence[Result]) -> tuple[list[Column], list[dict[str, Any]]]:
    """Return a row for each run and task, the runs that compress first; empty without mixtures.

    Controls are runs of the report that answered the same questions, `tuned`, where both are there;
    else the untuned base. Empty columns are left out.
    """
    mixtures = [result for result in results if result.scored and result.metrics.get("tasks")]
    mixtures.sort(key=lambda result: (not result.compresses, result.name))
    rows = [
        _row(result, task, block, _controls(result, mixtures))
        for result in mixtures
        for task, block in result.metrics["tasks"].items()
    ]
    used = [c for c in TASK_COLUMNS if any(row.get(c.key) is not None for row in rows)]
    return used, rows


def _controls(result: Result, mixtures: Sequence[Result]) -> tuple[Result, Result] | None:
    """Return the closed book and the full context that answered a run's questions."""
    others = [
        other
        for other in mixtures
        if other is not result
        and conditions(other) == conditions(result)
        and same_questions([other, result])
    ]
    closed = next((r for r in others if r.architecture == "closed_book"), None)
    full = next((r for r in others if r.full_context), None)
    return (closed, full) if closed and full else None


def _row(
    result: Result, task: str, block: dict[str, Any], controls: tuple[Result, Result] | None
) -> dict[str, Any]:
    likelihoods = block.get("gold_log_likelihood") or {}
    means = {
        name: (likelihoods.get(name) or {}).get("mean")
        for name in ("final", "full_context", "closed_book")
    }
    row = {
        "run": result.name,
        "task": task,
        "f1": block["final_f1"],
        "f1_interval": block["final_f1_interval"],
        "em": block["final_em"],
        "closed_book_f1": block.get("closed_book_f1"),
        "full_context_f1": block.get("baseline_f1"),
        "controls": "untuned",
        "normalised_f1": block.get("normalised_f1"),
        "normalised_f1_interval": block.get("normalised_f1_interval"),
        "likelihood": means["final"],
        "full_context_likelihood": means["full_context"],
        "closed_book_likelihood": means["closed_book"],
        "effective_ratio": block.get("effective_compression_ratio"),
        "questions": block["n_examples"],
    }
    return row if controls is None else row | _between(result, task, *controls)


def _between(result: Result, task: str, closed: Result, full: Result) -> dict[str, Any]:
    """Return what the tuned controls say of a run's score on a task."""
    ours, floor, ceiling = (
        {row["id"]: row for row in each.predictions if row.get("task") == task}
        for each in (result, closed, full)
    )
    clusters_N = clusters_of([row["context_id"] for row in ours.values()])
    f1s = [np.array([rows[id]["f1"] for id in ours]) for rows in (ours, floor, ceiling)]
    found = normalised(f1s[0], f1s[1], f1s[2], clusters_N, SAMPLES, SEED)
    return {
        "closed_book_f1": float(f1s[1].mean()),
        "full_context_f1": float(f1s[2].mean()),
        "controls": "tuned",
        "normalised_f1": found and found.value,
        "normalised_f1_interval": found and list(found.interval),
    }

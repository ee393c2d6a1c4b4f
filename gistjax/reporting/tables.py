"""The table of a sweep: rows for JSON, Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from gistjax.config import UNCOMPRESSED
from gistjax.reporting.runs import Result

ALWAYS_SHOWN = ("architecture", "target_length", "seed")
NOT_SHOWN = (
    "model.path",
    "data.path",
    "text.path",
    "init_from",
    "log_every",
    "checkpoint_every",
    "eval_every",
    "tensorboard",
    "evaluation.",
    "mesh.",
    "ratio_growth",
    "model.scan_layers",
    "model.attention",
    "model.remat",
)
MOST_SETTINGS = 8
"""Columns of settings at most; a sweep that varies more is told apart by the runs' names."""


class Column(NamedTuple):
    """A column: key of the row, title, format of a value, whether it belongs in a paper."""

    key: str
    title: str
    form: str = ""
    paper: bool = True


SETTINGS_AT = 5
"""Place of the columns for what a sweep varies."""
COLUMNS = (
    Column("run", "run"),
    Column("f1", "F1", ".3f"),
    Column("f1_interval", "F1 95 %"),
    Column("architecture", "architecture"),
    Column("slots", "M"),
    Column("effective_ratio", "effective ratio", ".3g"),
    Column("retained", "of full context", ".0%"),
    Column("compress_ms", "compress ms", ".2f"),
    Column("answer_ms", "answer ms", ".2f"),
    Column("em", "EM", ".3f"),
    Column("em_interval", "EM 95 %", paper=False),
    Column("accuracy_area", "accuracy over coverages", ".3f", paper=False),
    Column("accuracy_area_interval", "the same, 95 %", paper=False),
    Column("answerable_f1", "F1, answerable", ".3f"),
    Column("nominal_ratio", "nominal ratio", ".3g"),
    Column("shuffled_f1", "F1, wrong slots", ".3f"),
    Column("compressor_parameters", "compressor parameters", ","),
    Column("trainable_parameters", "trained parameters", ",", paper=False),
    Column("questions", "questions", ","),
    Column("steps", "steps", ",", paper=False),
    Column("seed", "seed", paper=False),
)


def table(results: Sequence[Result]) -> tuple[list[Column], list[dict[str, Any]]]:
    """Return the columns and rows of the scored runs: compressors by architecture and size, then
    controls.

    Each setting in which the runs differ is a column. Empty columns are left out.
    """
    scored = sorted((result for result in results if result.scored), key=_place)
    settings = varied([result for result in scored if result.compresses])
    rows = [_row(result, settings, _full_context_of(result, scored)) for result in scored]
    rows += _untuned(scored)
    columns = list(COLUMNS)
    columns[SETTINGS_AT:SETTINGS_AT] = [
        Column(key, key.split(".")[-1].replace("_", " ")) for key in settings
    ]
    return [c for c in columns if any(row.get(c.key) is not None for row in rows)], rows


def _place(result: Result) -> tuple[Any, ...]:
    slots = result.settings.get("target_length", 0)
    return result.control, not result.compresses, result.architecture, slots, result.name


def varied(results: Sequence[Result]) -> list[str]:
    """Return the settings in which runs differ, of those that touch the result."""
    keys = {key: None for result in results for key in result.settings}
    differing = [
        key
        for key in keys
        if not key.startswith(NOT_SHOWN)
        and key not in ALWAYS_SHOWN
        and len({repr(result.settings.get(key)) for result in results}) > 1
    ]
    return differing[:MOST_SETTINGS]


def _full_context_of(result: Result, scored: Sequence[Result]) -> Result | None:
    """Return the control with the whole context, on the same base, contexts and questions."""
    controls = (other for other in scored if other.full_context and other is not result)
    return next(
        (
            full
            for full in controls
            if conditions(full) == conditions(result) and same_questions([full, result])
        ),
        None,
    )


def conditions(result: Result) -> tuple[Any, ...]:
    """Return what makes scores comparable: base and contexts."""
    keys = ("model.name", "data.context", "data.context_tokens")
    return tuple(result.settings.get(key) for key in keys)


def _row(result: Result, settings: Sequence[str], full: Result | None) -> dict[str, Any]:
    m = result.metrics
    times = m.get("wall_time_per_sample_s") or {}
    retained = None
    if full and full.metrics["final_f1"]:
        retained = m["final_f1"] / full.metrics["final_f1"]
    slots = result.settings.get("target_length") if result.compresses else None
    reads_first = result.architecture not in UNCOMPRESSED  # also where all entries are kept
    if result.settings.get("ratio") or result.settings.get("select.bytes"):
        slots = None  # as many as the context's length asks for
    return {
        "run": result.name,
        "architecture": _name(result),
        "control": result.control,
        "compresses": result.compresses,
        "slots": slots,
        **{key: _setting(result.settings.get(key)) for key in settings if result.compresses},
        "nominal_ratio": m.get("compression_ratio")
        if m.get("effective_compression_ratio")
        else None,
        "effective_ratio": m.get("effective_compression_ratio"),
        "f1": m["final_f1"],
        "f1_interval": m.get("final_f1_interval"),
        "em": m.get("final_em"),
        "em_interval": m.get("final_em_interval"),
        "accuracy_area": m.get("accuracy_area"),
        "accuracy_area_interval": m.get("accuracy_area_interval"),
        "answerable_f1": m.get("answerable_f1"),
        "retained": retained,
        "shuffled_f1": m.get("shuffled_f1"),
        "compressor_parameters": m.get("compressor_parameters"),
        "trainable_parameters": m.get("trainable_parameters"),
        "compress_ms": _ms(times.get("compress")) if reads_first else None,
        "answer_ms": _ms(times.get("answer")),
        "questions": m.get("n_examples"),
        "steps": m.get("steps"),
        "seed": m.get("seed"),
    }


def _name(result: Result) -> str:
    """Return the words for an architecture or control."""
    if result.full_context:
        return "full context"
    select = result.settings.get("data.select")
    names = {"none": f"{select} tokens", "closed_book": "closed book"}
    return names.get(result.architecture, result.architecture)


def _untuned(scored: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the row of the untuned base with the whole context, if a run scored it."""
    for result in scored:
        if result.metrics.get("baseline_f1") is not None:
            m = result.metrics
            return [
                {
                    "run": "untuned",
                    "architecture": "full context, untuned",
                    "control": True,
                    "compresses": False,
                    "nominal_ratio": 1.0,
                    "effective_ratio": 1.0,
                    "f1": m["baseline_f1"],
                    "f1_interval": m.get("baseline_f1_interval"),
                    "em": m.get("baseline_em"),
                    "accuracy_area": m.get("baseline_accuracy_area"),
                    "questions": m.get("n_examples"),
                }
            ]
    return []


def same_questions(results: Sequence[Result]) -> bool:
    """Tell whether runs were scored on the same questions, as far as their files say."""
    counts = {result.metrics.get("n_examples") for result in results}
    return len(counts) == 1 and len({result.questions for result in results}) == 1


def _setting(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def cell(column: Column, row: dict[str, Any]) -> str:
    """Return a value as people read it; an empty text for None."""
    value = row.get(column.key)
    if value is None:
        return ""
    if column.key.endswith("_interval"):
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    return format(value, column.form) if column.form else str(value)


def to_markdown(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for papers; an empty text without rows."""
    if not rows:
        return ""
    shown = [column for column in columns if column.paper]
    lines = [[column.title for column in shown], ["---"] * len(shown)]
    lines += [[_one_line(cell(column, row)) for column in shown] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def to_csv(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> str:
    """Return all columns in full precision; an interval makes two."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(part for column in columns for part in _csv_titles(column))
    for row in rows:
        writer.writerow(part for column in columns for part in _csv_values(column, row))
    return text.getvalue()


def _csv_titles(column: Column) -> list[str]:
    if not column.key.endswith("_interval"):
        return [column.key]
    return [column.key.replace("interval", end) for end in ("low", "high")]


def _csv_values(column: Column, row: dict[str, Any]) -> list[Any]:
    value = row.get(column.key)
    if not column.key.endswith("_interval"):
        return [value]
    return list(value) if value else [None, None]

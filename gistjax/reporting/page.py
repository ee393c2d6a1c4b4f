"""One HTML file for a sweep: it holds everything it shows and fetches nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import jinja2
import numpy as np

from gistjax.evaluation.selective import FEWEST_ANSWERED
from gistjax.reporting import colours, finding, plots
from gistjax.reporting.runs import Result
from gistjax.reporting.tables import Column, cell, same_questions

Table = tuple[Sequence[Column], Sequence[dict[str, Any]]]


def render(
    title: str,
    results: Sequence[Result],
    table: Table,
    tasks: Table,
    questions: int,
) -> str:
    """Return the page.

    Args:
        table: columns and rows of the runs.
        tasks: columns and rows of mixtures, task by task; without rows they are not shown.
        questions: the most predictions to show side by side.

    Raises:
        ConfigError: if the drawing library is not installed.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gistjax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    columns, rows = table
    order = [row["run"] for row in rows]
    scored = [result for result in results if result.scored]
    scored.sort(
        key=lambda result: (result.compresses, not result.full_context, order.index(result.name))
    )
    others = [{"run": r.name, "architecture": r.architecture} for r in results if not r.scored]
    colour_of = colours.of_runs([*rows, *others])
    return environment.get_template("report.html.j2").render(
        title=title,
        today=date.today().isoformat(),
        columns=columns,
        rows=rows,
        task_columns=tasks[0],
        task_rows=tasks[1],
        cell=cell,
        scored=scored,
        unfinished=[result for result in results if not result.metrics],
        one_set=same_questions(scored) if scored else True,
        devices=sorted({str(result.metrics.get("device")) for result in scored}),
        bases=sorted({str(result.metrics.get("base_model")) for result in scored}),
        packages=scored[0].metrics.get("packages", {}) if scored else {},
        finding=finding.sentences(rows),
        colour_of=colour_of,
        figures=figures(results, rows, colour_of),
        predictions=side_by_side(scored, questions),
        slots=slot_maps(scored),
        kept=kept_maps(scored, colour_of),
    )


def figures(
    results: Sequence[Result], rows: Sequence[dict[str, Any]], colour_of: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Return title, note and SVG of each plot that has something to show."""
    by_name = {result.name: result for result in results if result.scored}
    scored = [by_name[row["run"]] for row in rows if row["run"] in by_name]
    drawn = [
        (
            "F1 against effective ratio",
            "Context tokens a slot, counted on the evaluated questions. Bars: 95 % intervals. "
            "Dashed: the controls.",
            plots.f1_against_ratio(rows, colour_of),
        ),
        (
            "F1 against parameters",
            "Of the architecture and the connector, without LoRA.",
            plots.f1_against_parameters(rows, colour_of),
        ),
        (
            "F1 against time",
            "Point: a further question on a text that is compressed already. Line to its right: "
            "the first question, which compresses the text. One measurement in batches on the "
            "device named below: small differences are noise.",
            plots.f1_against_time(rows, colour_of),
        ),
        (
            "F1 against coverage",
            "Each run answers only the questions whose answers it is surest of; at 100 % it is the "
            "F1 of the table. Of a mixture the mean over tasks. Runs without scores of their "
            f"answers are left out, and shares of fewer than {FEWEST_ANSWERED} questions.",
            plots.f1_against_coverage(scored, colour_of),
        ),
        ("Training", "The weighted sum of the losses.", plots.training_curves(results, colour_of)),
        (
            "F1 by kind of answer",
            "The number of questions in brackets. Bars: 95 % intervals.",
            plots.by_type(scored, colour_of),
        ),
    ]
    return [(title, note, svg) for title, note, svg in drawn if svg]


def side_by_side(scored: Sequence[Result], most: int) -> list[dict[str, Any]]:
    """Return the first questions that every run answered, with the prediction of each run."""
    by_run = [{str(row["id"]): row for row in result.predictions} for result in scored]
    if not by_run:
        return []
    shared = [
        id
        for id, row in by_run[0].items()
        if all(id in rows and rows[id]["question"] == row["question"] for rows in by_run)
    ][:most]
    return [
        {
            "question": by_run[0][id]["question"],
            "answers": list(dict.fromkeys(by_run[0][id]["answers"])),
            "type": by_run[0][id].get("type", ""),
            "of_runs": [rows[id] for rows in by_run],
        }
        for id in shared
    ]


def slot_maps(scored: Sequence[Result]) -> list[dict[str, Any]]:
    """Return what each slot reads, by run and context: a byte for each slot and word, 255 the
    slot's largest.
    """
    maps = []
    for result in scored:
        for number, context in enumerate(result.slot_attention, 1):
            weights_MxW = np.array(context["weights"], np.float32)
            top_Mx1 = np.maximum(weights_MxW.max(axis=1, keepdims=True), 1e-9)
            bytes_MxW = np.round(255 * weights_MxW / top_Mx1).astype(np.uint8)
            maps.append(
                {
                    "name": f"{result.name}, context {number}",
                    "words": context["words"],
                    "slots": len(bytes_MxW),
                    "weights": base64.b64encode(bytes_MxW.tobytes()).decode(),
                }
            )
    return maps


def kept_maps(scored: Sequence[Result], colour_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what each KV head keeps, by run, and words with the share of KV heads that do."""
    maps = []
    for result in scored:
        if not (found := result.kept_entries):
            continue
        heads = sum(len(row) for row in found["parts"])
        maps.append(
            {
                "name": result.name,
                "svg": plots.kept_parts(found["parts"], colour_of[result.name]),
                "n": found["n"],
                "most": max(max(row) for row in found["parts"]),
                "contexts": [_shaded(context, heads) for context in found["contexts"]],
            }
        )
    return maps


def _shaded(context: Mapping[str, Any], heads: int) -> list[tuple[str, float, float]]:
    """Return words, their share of the KV heads that keep them, and that over the largest."""
    shares = [float(np.mean(row)) / heads for row in context["kept"]]
    top = max(max(shares), 1e-9)
    return [
        (word, share, share / top) for word, share in zip(context["words"], shares, strict=True)
    ]

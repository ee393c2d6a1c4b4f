"""One HTML file for a sweep: it holds all that it shows, and fetches nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import date
from typing import Any

import jinja2
import numpy as np

from gistjax.reporting import plots
from gistjax.reporting.runs import Result
from gistjax.reporting.tables import Column, cell, same_questions


def render(
    title: str,
    results: Sequence[Result],
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    questions: int,
) -> str:
    """The page.

    Args:
        questions: how many predictions to show side by side.

    Raises:
        ConfigError: if the drawing library is not installed.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gistjax.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    order = [row["run"] for row in rows]
    scored = [result for result in results if result.scored]
    scored.sort(
        key=lambda result: (result.compresses, not result.full_context, order.index(result.name))
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        today=date.today().isoformat(),
        columns=columns,
        rows=rows,
        cell=cell,
        scored=scored,
        unfinished=[result for result in results if not result.metrics],
        one_set=same_questions(scored) if scored else True,
        devices=sorted({str(result.metrics.get("device")) for result in scored}),
        bases=sorted({str(result.metrics.get("base_model")) for result in scored}),
        packages=scored[0].metrics.get("packages", {}) if scored else {},
        figures=figures(results, rows),
        predictions=side_by_side(scored, questions),
        slots=slot_maps(scored),
    )


def figures(
    results: Sequence[Result], rows: Sequence[dict[str, Any]]
) -> list[tuple[str, str, str]]:
    """Title, what to know, and SVG of each plot that there is anything for.

    Colours are those of the heads, or where there is only one, as in a sweep of loss weights, of the runs.
    """
    scored = [result for result in results if result.scored]
    one_head = len({result.architecture for result in scored if result.compresses}) == 1
    names = [result.name for result in results]
    heads = dict(zip(names, (r.architecture for r in results), strict=True))
    heads |= {row["run"]: row["architecture"] for row in rows}
    series = {name: name for name in heads} if one_head else heads
    drawn = [
        (
            "F1 against effective ratio",
            "Context tokens a slot, as counted on the evaluated questions. Bars: 95 % intervals. Dashed: the controls.",
            plots.f1_against_ratio(rows, series),
        ),
        ("F1 against parameters", "Of head and connector, without LoRA.", plots.f1_against_parameters(rows, series)),
        ("F1 against time", "On the device named below, in batches.", plots.f1_against_time(rows, series)),
        (
            "Training",
            "The weighted sum of the losses; runs of one head differ in their dashes.",
            plots.training_curves(results, series),
        ),
        ("F1 by kind of answer", "In brackets the number of questions.", plots.by_type(scored, series)),
    ]  # fmt: skip
    return [(title, note, svg) for title, note, svg in drawn if svg]


def side_by_side(scored: Sequence[Result], most: int) -> list[dict[str, Any]]:
    """The first questions that every run answered, with each run's prediction."""
    by_run = [{str(row["id"]): row for row in result.predictions} for result in scored]
    if not by_run:
        return []
    shared = [id for id in by_run[0] if all(id in rows for rows in by_run)][:most]
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
    """What each slot reads, by run and context: a byte for each slot and word, 255 the largest of the slot."""
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

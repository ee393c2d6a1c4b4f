"""The plots of a report as SVG, drawn by Vega-Lite (vl-convert, the extra `report`) without a
network.

Text and axes take the page's colour, so that one file suits light and dark. A run has one colour in
all plots, and the page one legend for them; each mark says in words what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gistjax.errors import ConfigError
from gistjax.evaluation.selective import f1_by_coverage
from gistjax.reporting.runs import Result

Rows = Sequence[dict[str, Any]]
Spec = dict[str, Any]
Colours = Mapping[str, str]  # by run

GREY = "#94a3b8"
INK = "currentColor"
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": INK,
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "gridOpacity": 0.12,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "header": {"labelColor": INK, "labelFontSize": 12},
    "text": {"color": INK},
}
SIZE = {"width": 400, "height": 280}
F1 = {"field": "f1", "type": "quantitative", "title": "F1", "scale": {"zero": True}}
COLOUR = {"field": "colour", "type": "nominal", "scale": None}
"""Encoding of a colour that its row gives, without a legend."""
FEWEST = 2
"""Points that make a plot; one alone stands in the table."""
CURVE_POINTS = 300
SHARES = [percent / 100 for percent in range(1, 101)]


def to_svg(spec: Spec) -> str:
    """Draw a specification.

    Raises:
        ConfigError: if the drawing library is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ConfigError(
            "the report's plots need vl-convert: pip install vl-convert-python."
        ) from error
    svg = str(vl_convert.vegalite_to_svg({**spec, "config": CONFIG}))
    width, height = re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0]
    return svg.replace(f'width="{width}" height="{height}"', f'style="max-width:{width}px"', 1)


def f1_against_ratio(rows: Rows, colours: Colours) -> str | None:
    """Plot F1 over the effective ratio, with intervals, between the lines of the controls."""
    points = _points(rows, colours, "effective_ratio")
    if len(points) < FEWEST:
        return None
    scale = _log([point["x"] for point in points])
    spec = _scatter(points, "effective ratio: context tokens a slot", scale, _controls(rows))
    for mark in spec["layer"][0]["layer"]:
        mark["encoding"]["x"]["axis"] = {"values": [2**n for n in range(12)]}
    return to_svg(spec)


def f1_against_parameters(rows: Rows, colours: Colours) -> str | None:
    """Plot F1 over the parameters of architecture and connector; those without any stand at 1."""
    points = _points(rows, colours, "compressor_parameters")
    for point in points:
        point["x"] = max(point["x"], 1)
    if len(points) < FEWEST:
        return None
    scale = _log([point["x"] for point in points])
    return to_svg(_scatter(points, "parameters of the compressor", scale))


def f1_against_time(rows: Rows, colours: Colours) -> str | None:
    """Plot F1 over the time of a question, controls included: a point for a further one, a line to
    the first.
    """
    timed = [row for row in rows if row.get("answer_ms") is not None]
    points = _points(timed, colours, "answer_ms", all_rows=True)
    if len(points) < FEWEST:
        return None
    first = {row["run"]: row["answer_ms"] + (row.get("compress_ms") or 0) for row in timed}
    for point in points:
        point["first"] = first[point["run"]]
    spec = _scatter(points, "ms a question", {"zero": True})
    to_the_first = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.4},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "x2": {"field": "first"},
            "y": F1,
            "color": COLOUR,
        },
    }
    spec["layer"][0]["layer"].append(to_the_first)
    return to_svg(spec)


def _log(values: Sequence[float]) -> Spec:
    """Return a logarithmic scale with room at both ends."""
    return {"type": "log", "domain": [min(values) / 1.5, max(values) * 1.5], "nice": False}


def _points(rows: Rows, colours: Colours, x: str, all_rows: bool = False) -> list[dict[str, Any]]:
    """Return the point of each run that compresses, or with `all_rows` of every run."""
    found = []
    for row in rows:
        if row.get(x) is None or not (row["compresses"] or all_rows):
            continue
        low, high = row.get("f1_interval") or (row["f1"], row["f1"])
        says = f"{row['run']}: F1 {row['f1']:.3f} [{low:.3f}, {high:.3f}] at {row[x]:.4g}"
        point = {"run": row["run"], "colour": colours[row["run"]], "x": row[x], "f1": row["f1"]}
        found.append({**point, "low": low, "high": high, "says": says})
    return found


def _controls(rows: Rows) -> list[dict[str, Any]]:
    """Return the lines that a compressor stands between."""
    names = ("full context", "full context, untuned", "closed book")
    return [{"f1": r["f1"], "name": r["architecture"]} for r in rows if r["architecture"] in names]


def _scatter(points: Rows, title: str, scale: Spec, lines: Rows = ()) -> Spec:
    """Return points with their intervals, and dashed lines for `lines`."""
    x = {"field": "x", "type": "quantitative", "title": title, "scale": scale}
    x["axis"] = {"tickCount": 5, "format": "~s", "labelOverlap": True}
    runs = {
        "data": {"values": list(points)},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
                "encoding": {
                    "x": x,
                    "y": {**F1, "field": "low"},
                    "y2": {"field": "high"},
                    "color": COLOUR,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": x, "y": F1, "color": COLOUR, "description": {"field": "says"}},
            },
        ],
    }
    line: Spec = {"type": "rule", "strokeDash": [5, 4], "color": GREY}
    text: Spec = {"type": "text", "align": "right", "dy": -6, "fontSize": 11}
    controls = {
        "data": {"values": list(lines)},
        "layer": [
            {"mark": line, "encoding": {"y": F1}},
            {
                "mark": text,
                "encoding": {"y": F1, "x": {"value": "width"}, "text": {"field": "name"}},
            },
        ],
    }
    return {**SIZE, "layer": [runs, controls] if lines else [runs]}


def training_curves(results: Sequence[Result], colours: Colours) -> str | None:
    """Plot the loss of each run over its steps."""
    values = [
        {
            "run": result.name,
            "colour": colours[result.name],
            "step": row["step"],
            "loss": row["loss"],
        }
        for result in results
        for row in _thinned([row for row in result.curve if row.get("loss") is not None])
    ]
    if not values:
        return None
    encoding: Spec = {
        "x": {"field": "step", "type": "quantitative", "title": "optimizer step"},
        "y": {"field": "loss", "type": "quantitative", "scale": {"zero": False}},
        "detail": {"field": "run"},
        "color": COLOUR,
    }
    mark = {"type": "line", "strokeWidth": 1.5}
    return to_svg({**SIZE, "data": {"values": values}, "mark": mark, "encoding": encoding})


def f1_against_coverage(results: Sequence[Result], colours: Colours) -> str | None:
    """Plot F1 of what each run answers over the share of questions that it does."""
    values = []
    for result in results:
        found = f1_by_coverage(result.predictions, SHARES, result.metrics["final_f1"])
        own = {"run": result.name, "colour": colours[result.name]}
        says = ", ".join(f"{found[s]:.3f} at {s:.0%}" for s in (1.0, 0.75, 0.5, 0.25) if s in found)
        own["says"] = f"{result.name}: F1 {says} of the questions"
        values += [{**own, "share": share, "f1": f1} for share, f1 in found.items()]
    if not values:
        return None
    x = {
        "field": "share",
        "type": "quantitative",
        "title": "coverage: share of questions answered",
        "scale": {"domain": [0, 1]},
        "axis": {"format": "%", "tickCount": 5},
    }
    encoding: Spec = {
        "x": x,
        "y": F1,
        "detail": {"field": "run"},
        "color": COLOUR,
        "description": {"field": "says"},
    }
    mark = {"type": "line", "strokeWidth": 1.5}
    return to_svg({**SIZE, "data": {"values": values}, "mark": mark, "encoding": encoding})


def _thinned(rows: Rows) -> Rows:
    """Return at most `CURVE_POINTS` rows, evenly spaced, the last one among them."""
    every = max(-(-len(rows) // CURVE_POINTS), 1)
    return rows[(len(rows) - 1) % every :: every]


def by_type(results: Sequence[Result], colours: Colours) -> str | None:
    """Plot F1 of each run by the kind of answer: a panel for each kind, a line for each run."""
    values = [
        {**_part(result.name, kind, part), "colour": colours[result.name]}
        for result in results
        for kind, part in (result.metrics.get("by_type") or {}).items()
    ]
    if not values:
        return None
    kinds = list(dict.fromkeys(str(value["type"]) for value in values))
    order = {"domain": [result.name for result in results]}
    y = {"field": "run", "type": "nominal", "title": None, "scale": order}
    interval = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
        "encoding": {"y": y, "x": {**F1, "field": "low"}, "x2": {"field": "high"}, "color": COLOUR},
    }
    point = {
        "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
        "encoding": {"y": y, "x": F1, "color": COLOUR, "description": {"field": "says"}},
    }
    panel = {"width": 600 // len(kinds), "height": {"step": 16}, "layer": [interval, point]}
    facet = {"column": {"field": "type", "title": None, "sort": kinds}}
    return to_svg(
        {"data": {"values": values}, "facet": facet, "spec": panel, "spacing": 12, "padding": 14}
    )


def _part(run: str, kind: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the point of a run in the panel of a kind of answer."""
    low, high = part.get("f1_interval") or (part["f1"], part["f1"])
    says = f"{run}, {kind}: F1 {part['f1']:.3f} [{low:.3f}, {high:.3f}], {part['n']} questions"
    title = f"{kind} ({part['n']})"
    return {"run": run, "type": title, "f1": part["f1"], "low": low, "high": high, "says": says}


def kept_parts(parts: Sequence[Sequence[float]], colour: str) -> str:
    """Plot the part of its entries that each KV head keeps: a column for each layer, a row a head.

    Args:
        parts: `[layers][KV heads]`; the largest has full colour.
    """
    values: list[dict[str, Any]] = [
        {
            "layer": layer,
            "head": head,
            "part": part,
            "says": f"layer {layer}, KV head {head}: {part:.1%} kept",
        }
        for layer, row in enumerate(parts)
        for head, part in enumerate(row)
    ]
    top = max(max(value["part"] for value in values), 1e-9)
    axis = {"labelAngle": 0, "labelOverlap": True, "ticks": False, "domain": False}
    encoding: Spec = {
        "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": axis},
        "y": {"field": "head", "type": "ordinal", "title": "KV head", "axis": axis},
        "opacity": {
            "field": "part",
            "type": "quantitative",
            "scale": {"domain": [0, top], "range": [0.04, 1]},
            "legend": None,
        },
        "description": {"field": "says"},
    }
    size = {"width": {"step": 18}, "height": {"step": 18}}
    mark = {"type": "rect", "color": colour}
    return to_svg({**size, "data": {"values": values}, "mark": mark, "encoding": encoding})

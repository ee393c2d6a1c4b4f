"""The plots of a report as SVG, drawn by Vega-Lite (vl-convert, the extra `report`), without a network.

Text and axes take the page's colour, so that one file suits light and dark; each mark says in words what it shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gistjax.errors import ConfigError
from gistjax.reporting.runs import Result

Rows = Sequence[dict[str, Any]]
Spec = dict[str, Any]
Series = Mapping[str, str]  # what a run is drawn as one of: its head, or itself

COLOURS = {
    "cross_attention": "#3b82f6",
    "conv": "#f59e0b",
    "pooling": "#10b981",
    "gist": "#ec4899",
    "mean_pool": "#8b5cf6",
    "mark": "#64748b",
}
OTHERS = ("#06b6d4", "#ef4444", "#84cc16", "#a16207")
GREY = "#94a3b8"
INK = "currentColor"
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "gridColor": INK,
        "domainOpacity": 0.4, "tickOpacity": 0.4, "gridOpacity": 0.12, "titleFontWeight": "normal", "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {
        "labelColor": INK, "titleColor": INK, "orient": "bottom", "columns": 3, "title": None, "labelFontSize": 12,
        "symbolStrokeWidth": 2,
    },
    "text": {"color": INK},
}  # fmt: skip
SIZE = {"width": 400, "height": 280}
F1 = {"field": "f1", "type": "quantitative", "title": "F1", "scale": {"zero": True}}


def to_svg(spec: Spec) -> str:
    """Draws a specification.

    Raises:
        ConfigError: if the drawing library is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ConfigError(
            "the report's plots need vl-convert: pip install -e '.[report]'."
        ) from error
    svg = str(vl_convert.vegalite_to_svg({**spec, "config": CONFIG}))
    width, height = re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0]
    return svg.replace(f'width="{width}" height="{height}"', f'style="max-width:{width}px"', 1)


def f1_against_ratio(rows: Rows, series: Series) -> str | None:
    """F1 of compressors over their effective ratio, with intervals, between the lines of the controls."""
    points = _points(rows, series, "effective_ratio")
    if not points:
        return None
    scale = _log([point["x"] for point in points])
    spec = _scatter(points, "effective ratio: context tokens a slot", scale, _controls(rows))
    for mark in spec["layer"][0]["layer"]:
        mark["encoding"]["x"]["axis"] = {"values": [2**n for n in range(12)]}
    return to_svg(spec)


def f1_against_parameters(rows: Rows, series: Series) -> str | None:
    """F1 over the parameters of head and connector; heads without any stand at 1."""
    points = _points(rows, series, "compressor_parameters")
    for point in points:
        point["x"] = max(point["x"], 1)
    if not points:
        return None
    scale = _log([point["x"] for point in points])
    return to_svg(_scatter(points, "parameters of the compressor", scale))


def f1_against_time(rows: Rows, series: Series) -> str | None:
    """F1 over the time that a question takes, compression and answer, controls included."""
    timed = [
        {**row, "time": row["compress_ms"] + row["answer_ms"]}
        for row in rows
        if row.get("compress_ms") is not None and row.get("answer_ms") is not None
    ]
    points = _points(timed, series, "time", controls=True)
    if not points:
        return None
    return to_svg(_scatter(points, "ms a question, to compress and to answer", {"zero": False}))


def _log(values: Sequence[float]) -> Spec:
    """A logarithmic scale with room at both ends."""
    return {"type": "log", "domain": [min(values) / 1.5, max(values) * 1.5], "nice": False}


def _points(rows: Rows, series: Series, x: str, controls: bool = False) -> list[dict[str, Any]]:
    """Where each run stands."""
    found = []
    for row in rows:
        if row.get(x) is None or (row["control"] and not controls):
            continue
        low, high = row.get("f1_interval") or (row["f1"], row["f1"])
        says = f"{row['run']}: F1 {row['f1']:.3f} [{low:.3f}, {high:.3f}] at {row[x]:.4g}"
        point = {"run": row["run"], "series": series[row["run"]], "x": row[x], "f1": row["f1"]}
        found.append({**point, "low": low, "high": high, "says": says})
    return found


def _controls(rows: Rows) -> list[dict[str, Any]]:
    """The lines that a compressor stands between."""
    names = ("full context", "full context, untuned", "closed book")
    return [{"f1": r["f1"], "name": r["architecture"]} for r in rows if r["architecture"] in names]


def _scatter(points: Rows, title: str, scale: Spec, lines: Rows = ()) -> Spec:
    x = {"field": "x", "type": "quantitative", "title": title, "scale": scale}
    x["axis"] = {"tickCount": 5, "format": "~s", "labelOverlap": True}
    colour = _colour([point["series"] for point in points])
    runs = {
        "data": {"values": list(points)},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
                "encoding": {"x": x, "y": {**F1, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": x, "y": F1, "color": colour, "description": {"field": "says"}},
            },
        ],
    }  # fmt: skip
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


def _colour(names: Sequence[str]) -> Spec:
    """Heads have their colours; what else there is, one after another."""
    names = sorted(set(names), key=lambda name: (name not in COLOURS, name))
    others = itertools.cycle(OTHERS)
    colours = [COLOURS.get(name) or next(others) for name in names]
    return {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": names, "range": colours},
    }


def training_curves(results: Sequence[Result], series: Series) -> str | None:
    """The loss of each run over its steps; sizes of one head are told apart by their dashes."""
    values = [
        {
            "run": result.name,
            "series": series[result.name],
            "M": str(result.settings.get("target_length", "")) if result.compresses else "",
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
        "color": _colour([str(value["series"]) for value in values]),
        "strokeDash": {"field": "M", "type": "nominal", "legend": None},
    }
    mark = {"type": "line", "strokeWidth": 1.5}
    return to_svg({**SIZE, "data": {"values": values}, "mark": mark, "encoding": encoding})


def _thinned(rows: Rows, most: int = 300) -> Rows:
    every = max(-(-len(rows) // most), 1)
    return rows[(len(rows) - 1) % every :: every]  # the last one is among them


def by_type(results: Sequence[Result], series: Series) -> str | None:
    """F1 of each run by the kind of answer."""
    values = []
    for result in results:
        for kind, part in (result.metrics.get("by_type") or {}).items():
            low, high = part.get("f1_interval") or (part["f1"], part["f1"])
            says = f"{result.name}, {kind}: F1 {part['f1']:.3f} [{low:.3f}, {high:.3f}], {part['n']} questions"
            values.append(
                {
                    "run": result.name,
                    "series": series[result.name],
                    "type": f"{kind} ({part['n']})",
                    "f1": part["f1"],
                    "low": low,
                    "high": high,
                    "says": says,
                }
            )
    if not values:
        return None
    runs = list(dict.fromkeys(str(value["run"]) for value in values))
    x = {"field": "type", "type": "nominal", "title": None, "axis": {"labelAngle": 0}}
    offset = {"field": "run", "type": "nominal", "sort": runs}
    colour = _colour([str(value["series"]) for value in values])
    bars = {
        "mark": {"type": "bar"},
        "encoding": {
            "x": x, "xOffset": offset, "y": F1, "color": colour, "description": {"field": "says"},
        },
    }  # fmt: skip
    intervals = {
        "mark": {"type": "rule", "color": INK, "opacity": 0.5},
        "encoding": {"x": x, "xOffset": offset, "y": {**F1, "field": "low"}, "y2": {"field": "high"}},
    }  # fmt: skip
    return to_svg({**SIZE, "data": {"values": values}, "layer": [bars, intervals]})

"""Draw F1 against bytes a context token, with the front that nothing beats, from evaluations.

    python -m gistjax.evaluate --run RUN --config.ratio=8 --bits 4 > cells/entries/8_in_4.json
    python -m launch.byte_chart cells --output bytes.svg

Prints the front as a table in Markdown. Each file is what an evaluation printed; its last line is
read. Its folder names the form, a colour in the chart, and its name the cell. A point is on the
front if no other has its F1 or more in as many bytes or fewer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gistjax.errors import DataError, GistjaxError
from gistjax.reporting.plots import COLOUR, F1, SIZE, Spec, to_svg
from gistjax.runtime.files import write_atomically

PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")
COLUMNS = "| form | cell | bytes a context token | F1 |\n| --- | --- | --- | --- |\n"


@dataclass(frozen=True)
class Cell:
    """One evaluation: of which form it is, what it costs and what it finds."""

    form: str
    name: str
    bytes: float  # a context token, as `evaluate` has measured them
    f1: float
    interval: tuple[float, float]


def read_cells(folder: Path) -> list[Cell]:
    """Return the evaluations in a folder's folders, by form and name.

    Raises:
        DataError: if there are none, or a file is none.
    """
    found = []
    for file in sorted(folder.glob("*/*.json")):
        try:
            metrics = json.loads(file.read_text("utf-8").strip().splitlines()[-1])
            size, f1 = (float(metrics[key]) for key in ("bytes_per_context_token", "final_f1"))
            low, high = map(float, metrics["final_f1_interval"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{file} is not what `python -m gistjax.evaluate` printed "
                f"({type(error).__name__}: {error}): write its output there again."
            ) from error
        if not size > 0:
            raise DataError(f"{file} is of {size} bytes a context token, which have no logarithm.")
        found.append(Cell(file.parent.name, file.stem, size, f1, (low, high)))
    if not found:
        raise DataError(f"{folder} has no evaluations: give a folder of FORM/CELL.json.")
    return found


def front(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that no other equals in F1 at as few bytes, the cheapest first."""
    best: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: (cell.bytes, -cell.f1)):
        if not best or cell.f1 > best[-1].f1:
            best.append(cell)
    return best


def table(cells: Sequence[Cell]) -> str:
    """Return cells as a table in Markdown."""
    rows = (
        f"| {c.form} | {c.name} | {c.bytes:,.0f} | {c.f1:.3f} "
        f"[{c.interval[0]:.3f}, {c.interval[1]:.3f}] |\n"
        for c in cells
    )
    return COLUMNS + "".join(rows)


def chart(cells: Sequence[Cell]) -> str:
    """Return the chart as SVG: points with intervals and names, and a line along the front."""
    forms = sorted({cell.form for cell in cells})
    values = [
        {
            "bytes": cell.bytes,
            "f1": cell.f1,
            "low": cell.interval[0],
            "high": cell.interval[1],
            "form": cell.form,
            "name": cell.name,
            "says": f"{cell.form}, {cell.name}: F1 {cell.f1:.3f} in {cell.bytes:,.0f} bytes",
        }
        for cell in cells
    ]
    line = [{"bytes": cell.bytes, "f1": cell.f1} for cell in front(cells)]
    x: Spec = {"field": "bytes", "type": "quantitative", "title": "bytes a context token"}
    sizes = [cell.bytes for cell in cells]
    x["scale"] = {"type": "log", "domain": [min(sizes) / 1.3, max(sizes) * 1.3], "nice": False}
    x["axis"] = {"format": ",d", "labelOverlap": True, "tickCount": 6}
    y = {**F1, "scale": {"zero": False}}
    colour: Spec = {**COLOUR, "field": "form", "scale": {"domain": forms, "range": list(PALETTE)}}
    colour["legend"] = {"title": None, "orient": "bottom"} if len(forms) > 1 else None
    layers: list[Spec] = [
        {
            "data": {"values": line},
            "mark": {"type": "line", "strokeDash": [5, 4], "color": "#94a3b8"},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "description": {"field": "says"}},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": 9, "fontSize": 10},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        },
    ]
    for layer in layers[1:]:
        layer["data"], layer["encoding"]["color"] = {"values": values}, colour
    size = {name: 1.6 * length for name, length in SIZE.items()}
    return to_svg({**size, "background": "white", "layer": layers})


def main() -> None:
    """Draw the chart and print the front."""
    parser = argparse.ArgumentParser(prog="python -m launch.byte_chart")
    parser.add_argument("cells", type=Path, help="folder of FORM/CELL.json")
    parser.add_argument("--output", type=Path, required=True, help="the chart, SVG")
    arguments = parser.parse_args()
    try:
        cells = read_cells(arguments.cells)
        write_atomically(arguments.output, chart(cells).encode())
    except GistjaxError as error:
        parser.exit(2, f"error: {error}\n")
    print(table(front(cells)), end="")


if __name__ == "__main__":
    main()

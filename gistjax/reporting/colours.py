"""One colour for each run of a report, the same in every plot and in the legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

PALETTE = (
    "#3b82f6",
    "#f59e0b",
    "#10b981",
    "#ec4899",
    "#8b5cf6",
    "#06b6d4",
    "#ef4444",
    "#84cc16",
    "#c026d3",
    "#64748b",
)
"""Colours that read on white and on dark blue."""
DARKEST, LIGHTEST = 0.38, 0.68
"""Lightness of the first and the last run of a family."""


def of_runs(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the colour of each run, by name.

    A few runs have a colour of the palette each. Of more, those of one architecture are shades of
    one colour.

    Args:
        rows: `run` and `architecture` of each, in the order of the table.
    """
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(str(row["architecture"]), []).append(str(row["run"]))
    if len(rows) <= len(PALETTE):
        return {row["run"]: colour for row, colour in zip(rows, PALETTE, strict=False)}
    if len(families) == 1:
        (runs,) = families.values()
        return {run: _hue(number / len(runs)) for number, run in enumerate(runs)}
    return {
        run: _shade(PALETTE[family % len(PALETTE)], number, len(runs), family // len(PALETTE))
        for family, runs in enumerate(families.values())
        for number, run in enumerate(runs)
    }


def _shade(colour: str, number: int, of: int, lap: int) -> str:
    """Return a shade of a colour: dark for the first of a family, light for the last.

    Args:
        lap: how often the palette was used up before; the more, the paler.
    """
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if of > 1:
        lightness = DARKEST + (LIGHTEST - DARKEST) * number / (of - 1)
    return _hex(hue, lightness, saturation / 2**lap)


def _hue(turn: float) -> str:
    return _hex(turn, 0.5, 0.7)


def _hex(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)

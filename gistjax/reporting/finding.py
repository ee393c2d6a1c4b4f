"""The finding of a sweep in words: what the table and the plots show, in two sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
MOST_RATIOS = 4


def sentences(rows: Sequence[Row]) -> str:
    """Return the best compressor at each ratio and the controls it stands between; empty without
    scores.
    """
    parts = [_best(rows), _controls(rows)]
    return " ".join(part for part in parts if part)


def _best(rows: Sequence[Row]) -> str:
    """Return the sentence on compressors; controls that have slots do not count."""
    groups: dict[float, list[Row]] = {}
    for row in rows:
        if row.get("effective_ratio") and not row["control"]:
            groups.setdefault(
                round(row.get("nominal_ratio") or row["effective_ratio"], 1), []
            ).append(row)
    if not groups:
        return ""
    lowest = sorted(groups)[:MOST_RATIOS]
    each = [f"at {ratio:g} tokens a slot, run {_winner(groups[ratio])}" for ratio in lowest]
    text = "; ".join(each)
    return f"Best compressor{'s' if len(each) > 1 else ''}: {text}."


def _winner(group: Sequence[Row]) -> str:
    """Return the best run of a ratio, and how many others its interval does not rule out."""
    best = max(group, key=lambda row: row["f1"])
    kept = f", {100 * best['retained']:.0f} % of the full context's" if best.get("retained") else ""
    low, _ = best.get("f1_interval") or (best["f1"], best["f1"])
    others = sum(row is not best and row["f1"] >= low for row in group)
    tied = f"; within its interval: {others} more" if others else ""
    return f"{best['run']} (F1 {best['f1']:.3f}{kept}{tied})"


def _controls(rows: Sequence[Row]) -> str:
    """Return the sentence on the two controls that every compressor stands between."""
    f1 = {row["architecture"]: row["f1"] for row in rows}
    known = [
        f"{words} {f1[name]:.3f}"
        for name, words in (
            ("full context", "the whole context, with the decoder tuned to it, gives"),
            ("closed book", "no context at all"),
        )
        if name in f1
    ]
    text = ", ".join(known)
    return f"{text[0].upper()}{text[1:]}." if known else ""

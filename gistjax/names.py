"""The names of architectures, and which of them may be stacked."""

from __future__ import annotations

from gistjax.errors import did_you_mean

_BUILT_IN = "gistjax.compress.architectures."
ARCHITECTURES: dict[str, str] = {
    "cross_attention": _BUILT_IN + "CrossAttention",
    "conv": _BUILT_IN + "Conv",
    "pooling": _BUILT_IN + "Pooling",
    "gist": _BUILT_IN + "Gist",
    "mean_pool": _BUILT_IN + "MeanPool",
    "mark": _BUILT_IN + "Mark",
}
"""The architectures under test: name to the path of a class (`compress.architectures`)."""
SELECT = "select"
"""The architecture that has no slots, but keeps entries of the key/value cache."""
UNCOMPRESSED = ("none", "closed_book")
"""Controls that have no slots: the whole context, and none of it."""
STACKED = "+"
"""Stands between the two architectures of a stack."""


def parts_of(name: str) -> tuple[str, ...]:
    """Return the architectures that a name is made of: two of a stack, else one."""
    return tuple(name.split(STACKED))


def own_parts(name: str) -> list[str]:
    """Return the parts of a name that are classes of a user's: paths of them."""
    return [p for p in parts_of(name) if p not in (*ARCHITECTURES, SELECT, *UNCOMPRESSED)]


def stack_problem(name: str) -> str:
    """Say why the architectures of a stack cannot be stacked; empty if they can."""
    parts, what = parts_of(name), f"architecture={name!r}"
    if len(parts) != 2:
        return f"{what} has {len(parts)} parts, and a stack has two: conv+gist."
    for part in parts:
        if part in (SELECT, *UNCOMPRESSED):
            return (
                f"{what}: {part!r} makes no slots, so it cannot be stacked. Give two of "
                f"{', '.join(n for n in ARCHITECTURES if n != 'mark')}."
            )
        if part == "mark":
            return (
                f"{what}: 'mark' reads nothing, so whatever is stacked with it would read nothing "
                "of the context. Give it alone, as a control."
            )
        if part not in ARCHITECTURES and "." not in part:
            return f"{what}: no architecture is called {part!r}{did_you_mean(part, ARCHITECTURES)}"
    return ""

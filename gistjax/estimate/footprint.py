"""How much device memory a traced program needs at its peak, without compiling it.

    jaxpr ─ inline ─▶ operations ─ fuse ─▶ buffers ─ first and last use ─▶ most bytes alive at once

A compiler for GPUs gives a buffer to what a matrix product, a kernel or a reduction writes, and to what a product or a
kernel reads; but a batched product, as in attention, makes what it reads itself, if that is elementwise work (Triton's
do). What is added to a product that nothing else reads is added while it is written. Elementwise work in between is fused:
it reads the buffers it came from again, which stay alive until then, unless that would move more bytes than a buffer of its
own (as XLA's priority fusion decides). Reshapes and transposes are views. Each buffer lives from its first to its last use
in the program's order; buffers of donated arguments are used again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

VIEWS = {
    "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p", "stop_gradient",
    "bitcast_convert_type", "optimization_barrier", "sharding_constraint",
}  # fmt: skip
"""Operations that write nothing."""

REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax",
    "argmin",
}  # fmt: skip
"""They write their result, and fuse what they read."""

KERNELS = {
    "dot_general", "conv_general_dilated", "pure_callback", "sort", "scatter", "scatter-add",
    "cumsum", "while", "scan", "cond", "rng_bit_generator", "top_k",
}  # fmt: skip
"""They write their result, and what they read has been written before."""

PARTS = {"split", "slice", "dynamic_slice", "unstack", "gather"}
"""They read no more of their input than they write."""

MOVES = PARTS | {"concatenate", "pad", "dynamic_update_slice"}
"""They move elements to other places."""

SUMS = {"add", "add_any"}
"""They are taken while a matrix product is written, in its buffer (a GEMM that accumulates)."""

IN_PLACE = {"dynamic_update_slice", "scatter", "scatter-add", "while", *SUMS}
"""They may write over what they read."""


@dataclass(eq=False)
class Value:
    """What an operation makes: its size, and, once fusion is decided, where it is read from."""

    size: int
    kind: str = "argument"  # argument | kernel | reduction | fused
    place: int = -1  # of its operation in the program
    inputs: tuple[Value, ...] = ()
    workspace: int = 0  # bytes that its operation needs beside inputs and output
    name: str = ""  # of its operation
    batched: bool = False  # a matrix product for each of several rows or heads
    readers: int = 0
    stored: bool = False  # in a buffer
    sources: Reads = field(default_factory=dict)  # what it is computed from

    @property
    def read(self) -> Reads:
        """What is read to read this value."""
        return {self: {self: self.size}} if self.stored else self.sources


Reads = dict[Value, dict[Value, int]]
"""Buffers, and of each the parts that are read, with their bytes."""


def peak_bytes(program: ClosedJaxpr, donated: Sequence[bool] = ()) -> int:
    """Most bytes alive at once beside the program's arguments and constants.

    Args:
        donated: for each argument, whether an output of its size may take its place.
    """
    arguments = [Value(_size(v.aval), stored=True) for v in program.jaxpr.invars]
    spare = [v.size for v, free in zip(arguments, donated, strict=False) if free]
    return _peak(program.jaxpr, arguments, spare)


def _peak(jaxpr: Jaxpr, arguments: Sequence[Value], spare: list[int]) -> int:
    values: list[Value] = []
    results = _inline(jaxpr, arguments, values)
    alive = _reached(results)
    values = [value for value in values if value in alive]
    _decide(values, results)
    return _sweep(values, results, spare)


def _inline(jaxpr: Jaxpr, arguments: Sequence[Value], values: list[Value]) -> list[Value]:
    """Appends the values that a jaxpr makes, in its order, and returns its results."""
    known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= {v: Value(_size(v.aval), stored=True) for v in jaxpr.constvars}

    def get(v: Any) -> Value:
        return Value(0, stored=True) if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [get(v) for v in eqn.invars]
        inner = _called(eqn)
        if name in VIEWS:
            outputs = inputs[: len(eqn.outvars)]
        elif inner is not None:
            outputs = _inline(inner, inputs, values)
        else:
            kind = "kernel" if name in KERNELS else "reduction" if name in REDUCTIONS else "fused"
            workspace = max((_body_peak(body) for body in _bodies(eqn)), default=0)
            outputs = []
            for v in eqn.outvars:
                value = Value(_size(v.aval), kind, len(values), tuple(inputs), workspace, name)
                value.batched = _is_batched(eqn)
                workspace = 0
                outputs.append(value)
                values.append(value)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [get(v) for v in jaxpr.outvars]


def _called(eqn: Any) -> Jaxpr | None:
    """What an operation does that is but a call: jit, checkpoint, custom derivatives."""
    if eqn.primitive.name in KERNELS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(key)
        if body is not None:
            return body.jaxpr if isinstance(body, ClosedJaxpr) else body
    return None


def _is_batched(eqn: Any) -> bool:
    return eqn.primitive.name == "dot_general" and bool(eqn.params["dimension_numbers"][1][0])


def _bodies(eqn: Any) -> Iterator[Jaxpr]:
    """The programs inside a loop or a branch."""
    for parameter in eqn.params.values():
        for body in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(body, ClosedJaxpr):
                yield body.jaxpr


def _body_peak(body: Jaxpr) -> int:
    """Beside what a loop carries, which is written over."""
    arguments = [Value(_size(v.aval), stored=True) for v in body.invars]
    return _peak(body, arguments, [v.size for v in arguments])


def _reached(results: Iterable[Value]) -> set[Value]:
    reached, waiting = set[Value](), list(results)
    while waiting:
        value = waiting.pop()
        if value not in reached:
            reached.add(value)
            waiting += value.inputs
    return reached


def _decide(values: Sequence[Value], results: Sequence[Value]) -> None:
    """Which values get a buffer."""
    for value in values:
        value.stored = value.kind != "fused"
        for source in set(value.inputs):
            source.readers += 1
            made_inside = value.batched and source.name not in MOVES
            source.stored |= value.kind == "kernel" and not made_inside
    for result in set(results):
        result.stored = True
        result.readers += 1
    for value in values:
        if value.name in SUMS and any(_is_product_for_one(source) for source in value.inputs):
            value.kind, value.stored = "kernel", True
        for source in value.inputs:
            for buffer, parts in source.read.items():
                if value.name in PARTS:
                    parts = {value: min(value.size, sum(parts.values()))}
                value.sources.setdefault(buffer, {}).update(parts)
        if not value.stored:
            moved = sum(min(b.size, sum(parts.values())) for b, parts in value.sources.items())
            fused, apart = value.readers * moved, moved + (1 + value.readers) * value.size
            value.stored = fused > apart


def _is_product_for_one(value: Value) -> bool:
    """Whether this is a matrix product that one operation alone reads: a sum can then be taken while it is written."""
    return value.name == "dot_general" and value.readers == 1


def _sweep(values: Sequence[Value], results: Sequence[Value], spare: list[int]) -> int:
    """Runs through the program and returns the most bytes alive. Fused work is done when it is first needed."""
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for value in values:  # in order: what a kernel reads has its place before the kernel
        if value.stored and value.kind != "fused":
            first[value] = value.place
    for value in reversed(values):
        if value.stored:
            place = first.setdefault(value, value.place)
            for source in value.sources:
                last[source] = max(last.get(source, -1), place)
                if source.kind == "fused":
                    first[source] = min(first.get(source, place), place)
    end = len(values) + max((value.place for value in values), default=0)
    spare = sorted(spare)
    for result in results:
        if result.kind != "argument":
            last[result] = end
    events = sorted(first, key=lambda value: (first[value], value.place))
    dying: dict[int, list[Value]] = {}
    for value in events:
        dying.setdefault(last.get(value, first[value]), []).append(value)
    alive = peak = 0
    freed = set[Value]()
    places = sorted(set(first.values()))
    at: dict[int, list[Value]] = {}
    for value in events:
        at.setdefault(first[value], []).append(value)
    owned = {value: value.size for value in events}
    final = set(results)
    for place in places:
        for value in at[place]:
            reusable = [
                source
                for source in value.sources
                if source.kind != "argument"
                and source not in freed
                and last.get(source, -1) <= place
                and source.size == value.size
            ]
            if value in final and value.size in spare:
                spare.remove(value.size)
                owned[value] = 0
            elif reusable and (value.kind == "fused" or value.name in IN_PLACE):
                heir = reusable[0]
                owned[value], owned[heir] = owned[heir], 0
                freed.add(heir)
                alive -= owned[value]
            alive += owned[value]
            peak = max(peak, alive + value.workspace)
        for value in dying.get(place, ()):
            alive -= owned[value]
            owned[value] = 0
    return peak


def _size(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval.dtype, "itemsize") else 8

"""One flipped bit, or a cut, anywhere in a saved document of few bits, of every form and width."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, packed
from gistjax.errors import CheckpointError
from gistjax.inference.document_file import About, context_of, read, stored, unpack, write
from gistjax.runtime.quantize import BITS
from tests.helpers.tiny import TINY

from .flips import flip

FORMS = ("entries", "soft tokens", "keys and values")
ONE_IS_CUT = 21
"""Of so many trials one is a cut, the others are flips."""
ABOUT = About(40, 1, compressor="c" * 64, base="tiny", base_sha256="b" * 64)


def prepare(folder: Path) -> list[tuple[str, Path]]:
    """Write a document of each form in each width; returns them with what they are."""
    rng = np.random.default_rng(0)
    found = []
    for form in FORMS:
        context = _context(form, rng)
        for bits in BITS:
            file = folder / f"{form} {bits}"
            write(file, stored(context, bits), ABOUT)
            found.append((f"{form} in {bits} bits", file))
    return found


def trials(seeds: list[int], folder: Path) -> dict[str, Any]:
    """Damage a document for each seed and read it; counts what came of it."""
    documents = prepare(folder)
    for _, file in documents:
        read(file, ABOUT.compressor, ABOUT.base_sha256)  # whole, it is read
    seen: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        rng = random.Random(seed)
        what, file = documents[rng.randrange(len(documents))]
        content = file.read_bytes()
        damaged = folder / "damaged"
        damaged.write_bytes(content)
        if seed % ONE_IS_CUT:
            damage = "flip"
            flip(rng, damaged)
        else:
            damage = "cut"
            damaged.write_bytes(content[: rng.randrange(len(content))])
        came = _read(damaged)
        seen[f"{damage}, {what}: {came}"] += 1
        if came != "refused":
            failures.append(f"{seed} {damage}, {what}: {came}")
    return {"seen": seen, "failures": failures}


def _read(file: Path) -> str:
    try:
        content, _ = read(file, ABOUT.compressor, ABOUT.base_sha256)
        context_of(content, np.arange(3, dtype=np.int32), TINY, True)
    except CheckpointError as error:
        return "refused" if str(file) in str(error) else f"file not named: {error}"
    return "silently read"


def _context(form: str, rng: np.random.Generator) -> CompressedContext:
    L, K, H, D = TINY.n_layers, TINY.n_kv_heads, TINY.head_dim, TINY.d_model
    S, prefix = 12, np.arange(3, dtype=np.int32)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if form == "soft tokens":
        arrays = {"x": draw(S, D)}
    else:
        arrays = {"k": draw(L, K, S, H), "v": draw(L, K, S, H)}
    context = unpack({**arrays, "position": np.arange(S)}, 40, prefix, TINY, stacked=True)
    if form != "entries":
        return context
    count_LxK = rng.integers(0, S, (L, K)).astype(np.int32)
    n = int(count_LxK.sum())
    kept = packed(Entries(draw(n, H), draw(n, H), count_LxK))
    return dataclasses.replace(context, kv=None, kept=kept)

"""Stores whose writers are killed (SIGKILL) again and again must be whole each time."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistjax.inference.store_index import Piece, StoreIndex, key_of
from gistjax.runtime.files import write_atomically

ABOUT = {"base": "tiny", "compressor": "0" * 64, "ratio": "8.0"}
LONGEST = 0.25
"""Seconds that a writer lives, at most: it writes some hundred documents a second."""


def put(index: StoreIndex, name: str, texts: Sequence[str]) -> None:
    """Add a document whose pieces are these texts, each with a file that holds it."""
    pieces = [Piece(name, i, key_of(text), 5, text) for i, text in enumerate(texts)]
    for piece in pieces:
        write_atomically(index.file(piece.key), piece.text.encode())
    index.put(name, key_of("".join(texts)), pieces)


def write_for_ever(path: str) -> None:
    """Add, replace and remove documents, after a line that says so."""
    index = StoreIndex(Path(path))
    print("writes", flush=True)
    for i in range(10**9):
        with index.writing():
            put(index, f"document {i % 3}", [f"text {i} {j}" for j in range(i % 4 + 1)])
        if i % 5 == 4:
            index.remove([f"document {i % 3}"])


def trials(seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Kill a writer for each seed, one after another at one store; counts what was left."""
    path = folder / "store"
    StoreIndex(path, ABOUT)
    seen: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        command = [sys.executable, "-m", "tests.stress.stores", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout and writer.stdout.readline()
            time.sleep(random.Random(seed).uniform(0, LONGEST))
            writer.kill()
        try:
            index = StoreIndex(path)
            seen["files that nothing names" if _check(index) else "nothing left"] += 1
            with index.writing():
                index.sweep()
            assert not _check(index), "files that nothing names are still there"
        except Exception as error:
            failures.append(f"{seed}: {type(error).__name__}: {error}")
    return {"seen": seen, "failures": failures, "documents": len(StoreIndex(path).documents())}


def _check(index: StoreIndex) -> list[str]:
    """Check that all is whole; returns the names of files that nothing names."""
    assert index.problems() == []
    named = set()
    for held in index.documents():
        pieces = index.pieces(held.name)
        assert [piece.place for piece in pieces] == list(range(held.pieces))
        assert held.sha256 == key_of("".join(piece.text for piece in pieces))
        for piece in pieces:
            assert index.file(piece.key).read_bytes() == piece.text.encode()
            named.add(index.file(piece.key).name)
    return [file.name for file in index.entries.iterdir() if file.name not in named]


if __name__ == "__main__":
    write_for_ever(sys.argv[1])

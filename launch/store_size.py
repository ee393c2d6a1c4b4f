"""A question's time and memory, by how many documents a store holds.

    python -m launch.store_size --data squad/train.json [--sizes=100,1000,10000] [--questions=20]
        [--bits=4] [--run=DIR] [--config.ratio=8]

Documents are paragraphs of SQuAD's JSON file with their own words in the index; what is kept of
each is a copy of one made-up document's entries, so that ten thousand are made in a minute.
Questions on some of them are asked, each of the pieces that fit it best. Prints JSON for each size:
median seconds of finding the pieces, of opening and joining them, and of the answer; and the
process's most memory so far.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, DataError
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.engine import Engine, load
from gistjax.inference.store import Store
from gistjax.inference.store_index import PIECES, Piece, StoreIndex, key_of
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from gistjax.runtime.quantize import BITS
from launch.squad_file import squad_articles

TEXT = "The tide mill at Ostrel was built in 1783 by Anneke Dursel, who had seen one in Brittany. "


def read_paragraphs(file: Path | str, number: int) -> list[dict[str, Any]]:
    """Return so many distinct paragraphs with a question.

    Raises:
        DataError: if the file has fewer.
    """
    every = (p for article in squad_articles(file) for p in article["paragraphs"])
    found = {p["context"].strip(): p for p in every if p["qas"]}
    if len(found) < number:
        raise DataError(f"{file} has {len(found)} paragraphs: set --sizes to as many or fewer.")
    return list(found.values())[:number]


def fill(index: StoreIndex, paragraphs: list[dict[str, Any]], kept: Path, tokens: int) -> None:
    """Put paragraphs into a store's index, each with a link to the same entries."""
    with index.writing():
        for number, paragraph in enumerate(paragraphs):
            text = paragraph["context"].strip()
            name, key = f"paragraph {number}", key_of(text)
            if index.find(name) is None:
                os.link(kept, index.file(key))
                index.put(name, key, [Piece(name, 0, key, tokens, text)])


def ask(store: Store, questions: list[str]) -> dict[str, Any]:
    """Ask each question in the steps of `Store.ask`, and time them."""
    seconds: dict[str, list[float]] = {"find_s": [], "open_s": [], "answer_s": []}
    for question in questions:
        start = time.perf_counter()
        found = store.index.search(question, PIECES)
        there = time.perf_counter()
        document = store.engine.join([store.open_piece(piece) for piece in found])
        seconds["open_s"].append(time.perf_counter() - there)
        seconds["find_s"].append(there - start)
        seconds["answer_s"].append(document.ask(question).seconds)
    medians = {name: round(float(np.median(of)), 5) for name, of in seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**medians, "peak_resident_gib": round(peak / 2**20, 3)}


def measure(
    engine: Engine, paragraphs: list[dict[str, Any]], sizes: list[int], asked: int, bits: int | None
) -> dict[str, Any]:
    """Let one store grow to each size, and ask it at each."""
    made_up = engine.compress(TEXT * 8, bits=bits)
    questions = [p["qas"][0]["question"].strip() for p in paragraphs[: min(sizes)]][:asked]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "made_up"
        made_up.save(kept)
        for size in sizes:
            store = Store(Path(folder) / "store", engine, bits=bits)  # nothing is open yet
            fill(store.index, paragraphs[:size], kept, made_up.tokens)
            found[str(size)] = ask(store, questions)
    return found


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure each size."""
    if not all(size.isdecimal() and int(size) for size in args.sizes):
        raise ConfigError(f"--sizes={','.join(args.sizes)} must be numbers from 1 on.")
    engine, sizes = load(args.run, config), sorted(map(int, args.sizes))
    paragraphs = read_paragraphs(args.data, sizes[-1])
    bits = int(args.bits) if args.bits else None
    cli.print_result(
        {
            "ratio": engine.config.ratio,
            "bits": bits,
            "questions": args.questions,
            "sizes": measure(engine, paragraphs, sizes, args.questions, bits),
            "device": device_name(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    define_path("data", "", "SQuAD's JSON file.", values)
    about = "Documents in the store."
    flags.DEFINE_list("sizes", ["100", "1000", "10000"], about, flag_values=values)
    flags.DEFINE_integer("questions", 20, "Questions to ask at each.", 1, flag_values=values)
    about = "Bits of each number that is kept; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

"""Pages a second that go into a store: read one at a time, and in batches.

    python -m launch.adding --data squad/train.json [--pages=100] [--at_once=1,4096]
        [--page_tokens=400] [--bits=4] [--run=DIR] [--config.ratio=8]

A page is the text of SQuAD's paragraphs, one behind another, cut at a sentence's end after at most
so many tokens (400 are about 300 words). Each becomes a document of its own in a fresh store, once
for each number of tokens that are read at once on each device (1: a page at a time). Prints JSON:
seconds and pages a second from the text to the files and the index; of these the seconds of
reading, which is what the compressor computes, and its share of what the devices reach in a large
bf16 matmul (matrices times tokens of text; attention, adapters and padding not counted). Compiling
is told apart and counted in neither.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.data.prompts import Prompt
from gistjax.data.splitting import cut_text
from gistjax.errors import DataError
from gistjax.estimate.flops import layer_parameters
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.engine import Engine, load
from gistjax.inference.store import Store
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from gistjax.runtime.profiling import machine_rates
from gistjax.runtime.quantize import BITS
from launch.squad_file import squad_articles

PAGE_TOKENS = 400


def read_pages(
    file: Path | str, prompt: Prompt, number: int, most_tokens: int = PAGE_TOKENS
) -> list[str]:
    """Return so many pages of the articles of SQuAD's JSON file, none with text of two of them.

    Raises:
        DataError: if the file has fewer.
    """

    def pages() -> Iterator[str]:
        for article in squad_articles(file):
            text = "\n\n".join(p["context"].strip() for p in article["paragraphs"])
            yield from (cut.text for cut in cut_text(text, prompt, most_tokens))

    found = list(itertools.islice(pages(), number))
    if len(found) < number:
        raise DataError(f"{file} has {len(found)} pages: set --pages to as many or fewer.")
    return found


def measure(engine: Engine, pages: list[str], bits: int | None, matmul: float) -> dict[str, Any]:
    """Add pages to a fresh store, as many at once as the engine is set to read.

    Args:
        matmul: FLOPs a second.
    """
    documents = [(f"page {number}", page) for number, page in enumerate(pages, 1)]
    compiled_s, base = engine.programs.compile_s, engine.pretrained.source.config
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store", engine, bits=bits)
        start = time.perf_counter()
        added = store.add_many(documents)
        seconds = time.perf_counter() - start
        tokens = sum(held.tokens for held in store.documents())
        size = sum(file.stat().st_size for file in store.index.entries.iterdir())
    compile_s = engine.programs.compile_s - compiled_s
    reading_s = sum(one.seconds for one in added)
    flops = 2 * layer_parameters(base) * base.n_layers * tokens
    return {
        "tokens": tokens,
        "bytes": size,
        "seconds": round(seconds - compile_s, 3),
        "pages_per_s": round(len(pages) / (seconds - compile_s), 3),
        "reading_s": round(reading_s, 3),
        "share_of_matmul": round(flops / reading_s / matmul, 4),
        "compile_s": round(compile_s, 2),
    }


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure each number of tokens at once."""
    engine = load(args.run, config)
    pages = read_pages(args.data, engine.pretrained.prompt, args.pages, args.page_tokens)
    rates = machine_rates()
    found = {}
    for tokens in args.at_once:
        engine.tokens_at_once = int(tokens)
        matmul = rates["matmul_tflops"] * 1e12 * jax.device_count()
        found[tokens] = measure(engine, pages, int(args.bits) if args.bits else None, matmul)
    cli.print_result(
        {
            "base_model": config.model.known_as,
            "ratio": engine.config.ratio,
            "bits": args.bits,
            "pages": len(pages),
            "at_once": found,
            **rates,
            "device": device_name(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    define_path("data", "", "SQuAD's JSON file.", values)
    flags.DEFINE_integer("pages", 100, "Pages to add.", 1, flag_values=values)
    about = "The most tokens of a page."
    flags.DEFINE_integer("page_tokens", PAGE_TOKENS, about, 1, flag_values=values)
    about = "Tokens that are read at once on each device; 1: one page."
    flags.DEFINE_list("at_once", ["1", "4096"], about, flag_values=values)
    about = "Bits of each number that is kept; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

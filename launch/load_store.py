"""A store of pages and the questions on them, for a load test.

    python -m launch.load_store --data squad/train.json --store STORE --asked asked.json
        [--pages=1000] [--page_tokens=512] [--bits=8] [--run=DIR]

A page is the text of SQuAD's paragraphs, one behind another, cut at a sentence's end after at most
so many tokens. A question belongs to the page that has the whole of its first gold answer; others
are left out, and so are those without a word of their page, which a store refuses. Adds the pages
to the store; those that it has stay. Writes pages and questions to the file `--asked`, which
`launch.load` asks and `launch/torch_peer_server.py` reads. Prints JSON: numbers of pages, tokens,
bytes and questions, how many of these had no word of their page, and the seconds of adding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.data.prompts import Prompt
from gistjax.data.splitting import cut_text
from gistjax.errors import DataError
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.engine import load
from gistjax.inference.store import Store
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.quantize import BITS
from launch.asked_file import Question, write_asked
from launch.squad_file import squad_articles


@dataclass(frozen=True)
class Page:
    """A document, and what is asked on it."""

    name: str
    text: str
    questions: tuple[Question, ...]


def pages_of(articles: list[dict[str, Any]], prompt: Prompt, most_tokens: int) -> Iterator[Page]:
    """Yield the pages of articles, each with its questions."""
    for number, article in enumerate(articles):
        text, asked = "", []  # asked: begin and end of the first gold answer, question, golds
        for paragraph in article["paragraphs"]:
            text += "\n\n" if text else ""
            for one in paragraph["qas"]:
                if golds := tuple(answer["text"] for answer in one["answers"]):
                    begin = len(text) + one["answers"][0]["answer_start"]
                    asked.append((begin, begin + len(golds[0]), one["question"].strip(), golds))
            text += paragraph["context"]
        end = 0
        for place, cut in enumerate(cut_text(text, prompt, most_tokens)):
            begin = text.index(cut.text, end)
            end, name = begin + len(cut.text), f"article {number}, page {place}"
            own = [one for one in asked if begin <= one[0] and one[1] <= end]
            yield Page(name, cut.text, tuple(Question(q, name, golds) for *_, q, golds in own))


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Write the file, and fill the store."""
    engine = load(args.run, config)
    found = pages_of(squad_articles(args.data), engine.pretrained.prompt, args.page_tokens)
    pages = list(islice(found, args.pages))
    if len(pages) < args.pages:
        raise DataError(f"{args.data} has {len(pages)} pages: set --pages to as many or fewer.")
    texts = {page.name: page.text for page in pages}
    store = Store(args.store, engine, bits=int(args.bits) if args.bits else None)
    start, compiled_s = time.perf_counter(), engine.programs.compile_s
    store.add_many(texts.items())
    seconds = time.perf_counter() - start - (engine.programs.compile_s - compiled_s)
    held = store.documents()
    every = [question for page in pages for question in page.questions]
    questions = [one for one in every if store.index.search(one.text, 1, one.page)]
    write_asked(Path(args.asked), texts, questions)
    cli.print_result(
        {
            "pages": len(held),
            "pieces": sum(document.pieces for document in held),
            "tokens": sum(document.tokens for document in held),
            "bytes": sum(file.stat().st_size for file in store.index.entries.iterdir()),
            "questions": len(questions),
            "left_out": len(every) - len(questions),
            "seconds": round(seconds, 2),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    define_path("data", "", "SQuAD's JSON file.", values)
    define_path("store", "", "Folder of the store.", values)
    define_path("asked", "asked.json", "File for the pages and the questions on them.", values)
    flags.DEFINE_integer("pages", 1000, "Pages to keep.", 1, flag_values=values)
    flags.DEFINE_integer("page_tokens", 512, "The most tokens of a page.", 1, flag_values=values)
    about = "Bits of each number that is kept; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

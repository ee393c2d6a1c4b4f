"""When compressing pays: documents asked compressed, from their whole cache, and read anew.

    python -m launch.break_even --data squad/validation.json [--documents=16] [--tokens=512]
        [--bits=4] [--run=DIR] [--config.ratio=8]

Documents are SQuAD's paragraphs, one behind another, up to about so many tokens, with the questions
on them. Each is asked in three ways: from what the compressor keeps; from its whole key/value
cache, kept after one reading (prefix caching); and read again before each question (plain
prompting, the same weights). Prints JSON: medians of seconds to read, to open from a file, and a
question; seconds a question of all asked at once; bytes; F1 with its interval over documents; the
questions a document from which compressing takes less time than reading anew; and what 1 to 10,000
such documents take. Compiling is not counted.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.evaluation.metrics import f1
from gistjax.evaluation.statistics import clustered_bootstrap
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.document import Document
from gistjax.inference.engine import Engine, load
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from gistjax.runtime.quantize import BITS

DOCUMENTS = (1, 10, 100, 1_000, 10_000)


class Asked(NamedTuple):
    """A document's text, and questions on it with their gold answers."""

    text: str
    questions: list[tuple[str, list[str]]]


def read_documents(file: Path, engine: Engine, tokens: int) -> Iterator[Asked]:
    """Yield documents of at most so many tokens, one of each article of SQuAD's JSON file."""
    for article in json.loads(file.read_text())["data"]:
        text, questions = "", list[tuple[str, list[str]]]()
        for paragraph in article["paragraphs"]:
            longer = f"{text}\n\n{paragraph['context']}".strip()
            if len(engine.pretrained.prompt.encode_contexts([longer], [tokens + 1])[0][0]) > tokens:
                break
            text = longer
            questions += [
                (asked["question"].strip(), [answer["text"] for answer in asked["answers"]])
                for asked in paragraph["qas"]
                if asked["answers"]
            ]
        if questions:
            yield Asked(text, questions)


def measure(
    engine: Engine, documents: list[Asked], bits: int | None, again: bool
) -> dict[str, Any]:
    """Keep each document and ask it, question by question, then all of all documents at once.

    Args:
        again: read it before each question.
    """
    found: dict[str, list[float]] = {name: [] for name in ("read_s", "open_s", "question_s")}
    sizes, scores, clusters = [], list[float](), list[int]()
    asked = list[tuple[Document, str]]()
    with tempfile.TemporaryDirectory() as folder:
        for number, (text, questions) in enumerate(documents):
            file = Path(folder) / str(number)
            kept = engine.compress(text, bits=bits)
            kept.ask(questions[0][0])  # then `seconds` has what is read before a question, too
            found["read_s"].append(kept.seconds)
            kept.save(file)
            sizes.append(file.stat().st_size)
            start = time.perf_counter()
            kept = engine.open(file)
            found["open_s"].append(time.perf_counter() - start)
            asked += [(kept, question) for question, _ in questions]
            for question, golds in questions:
                answer = kept.ask(question)
                found["question_s"].append(answer.seconds + again * found["read_s"][-1])
                scores.append(f1(answer.text, golds))
                clusters.append(number)
        together = engine.ask(asked)
    interval = clustered_bootstrap(scores, np.array(clusters), 2000, 0)
    return {
        **{name: round(float(np.median(of)), 5) for name, of in found.items()},
        "together_s": round(float(np.mean([answer.seconds for answer in together])), 5),
        "bytes": round(float(np.mean(sizes))),
        "f1": round(float(np.mean(scores)), 4),
        "interval": [round(x, 4) for x in interval],
    }


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure the three ways, and what many documents take."""
    engine = load(args.run, config)
    documents = list(read_documents(Path(args.data), engine, args.tokens))[: args.documents]
    bits = int(args.bits) if args.bits else None
    whole = engine.full_context()
    ways = {
        "compressed": measure(engine, documents, bits, again=False),
        "whole cache": measure(whole, documents, None, again=False),
        "read anew": measure(whole, documents, None, again=True),
    }
    text_bytes = round(float(np.mean([len(one.text.encode()) for one in documents])))
    ways["read anew"] |= {"bytes": text_bytes, "open_s": 0.0, "read_s": 0.0}
    del ways["read anew"]["together_s"]
    compressed, anew = ways["compressed"], ways["read anew"]
    saved = anew["question_s"] - compressed["question_s"]
    cli.print_result(
        {
            "ratio": engine.config.ratio,
            "bits": bits,
            "documents": len(documents),
            "questions": sum(len(one.questions) for one in documents),
            "characters": round(float(np.mean([len(one.text) for one in documents]))),
            "ways": ways,
            "pays_from_questions": round(compressed["read_s"] / saved, 2) if saved > 0 else None,
            "gib": {
                way: {str(n): round(n * of["bytes"] / 2**30, 4) for n in DOCUMENTS}
                for way, of in ways.items()
            },
            "device": device_name(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    define_path("data", "", "SQuAD's JSON file.", values)
    flags.DEFINE_integer("documents", 16, "Documents to ask.", 1, flag_values=values)
    flags.DEFINE_integer("tokens", 512, "Most tokens of each.", 1, flag_values=values)
    about = "Bits of each number that the compressor keeps; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

"""When compressing pays: documents asked compressed, from their whole cache, or read anew.

    python -m launch.break_even --data squad/validation.json [--documents=16] [--tokens=512]
        [--bits=4] [--run=DIR] [--config.ratio=8]

Documents are SQuAD's paragraphs, one behind another, at most so many tokens, with the questions on
them. Each is asked from what the compressor keeps, and from its whole key/value cache, kept after
one reading by the same weights (prefix caching); read anew for each question (plain prompting) it
takes the whole cache's seconds together. Prints JSON: medians of seconds to read, to open from a
file, and a question; seconds a question of all asked at once; bytes; F1 with intervals over
documents, and their paired difference; the questions a document from which compressing takes less
time than reading anew; and the bytes of 1 to 10,000 such documents. Compiling is not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import DataError
from gistjax.evaluation.metrics import f1
from gistjax.evaluation.statistics import clustered_bootstrap
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.document import Document
from gistjax.inference.engine import Engine, load
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from gistjax.runtime.quantize import BITS
from launch.squad_file import squad_articles

DOCUMENTS = (1, 10, 100, 1_000, 10_000)


class Asked(NamedTuple):
    """A document's text, and questions on it with their gold answers."""

    text: str
    questions: list[tuple[str, list[str]]]


def read_documents(file: Path | str, engine: Engine, tokens: int) -> Iterator[Asked]:
    """Yield documents of at most so many tokens, one of each article of SQuAD's JSON file."""
    for article in squad_articles(file):
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


def measure(engine: Engine, documents: list[Asked], bits: int | None) -> dict[str, Any]:
    """Keep each document and ask it, question by question, then all of all documents at once."""
    found: dict[str, list[float]] = {name: [] for name in ("read_s", "open_s", "question_s")}
    sizes, scores = [], list[float]()
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
                found["question_s"].append(answer.seconds)
                scores.append(f1(answer.text, golds))
        together = engine.ask(asked)
    return {
        **{name: round(float(np.median(of)), 5) for name, of in found.items()},
        "together_s": round(float(np.mean([answer.seconds for answer in together])), 5),
        "bytes": round(float(np.mean(sizes))),
        "scores": scores,
    }


def summarised(ways: dict[str, dict[str, Any]], documents: list[Asked]) -> dict[str, Any]:
    """Return the ways with F1 in place of scores, and what compressing saves and loses."""
    clusters = np.repeat(np.arange(len(documents)), [len(one.questions) for one in documents])

    def interval(scores: Any) -> list[float]:
        return [round(x, 4) for x in clustered_bootstrap(scores, clusters, 2000, 0)]

    compressed, whole = (np.array(of.pop("scores")) for of in ways.values())
    for of, scores in zip(ways.values(), (compressed, whole), strict=True):
        of |= {"f1": round(float(scores.mean()), 4), "interval": interval(scores)}
    kept, cached = ways["compressed"], ways["whole cache"]
    anew_s = cached["read_s"] + cached["question_s"]
    saved = anew_s - kept["question_s"]
    return {
        "ways": ways,
        "f1_difference": round(float((compressed - whole).mean()), 4),
        "its_interval": interval(compressed - whole),
        "question_read_anew_s": round(anew_s, 5),
        "pays_from_questions": round(kept["read_s"] / saved, 2) if saved > 0 else None,
        "gib": {
            way: {str(n): round(n * of["bytes"] / 2**30, 4) for n in DOCUMENTS}
            for way, of in ways.items()
        },
    }


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure both ways of keeping, and what many documents take."""
    engine = load(args.run, config)
    documents = list(read_documents(args.data, engine, args.tokens))[: args.documents]
    if not documents:
        raise DataError(f"no first paragraph in {args.data} has so few tokens: raise --tokens.")
    bits = int(args.bits) if args.bits else None
    ways = {
        "compressed": measure(engine, documents, bits),
        "whole cache": measure(engine.full_context(), documents, None),
    }
    cli.print_result(
        {
            "ratio": engine.config.ratio,
            "bits": bits,
            "documents": len(documents),
            "questions": sum(len(one.questions) for one in documents),
            "characters": round(float(np.mean([len(one.text) for one in documents]))),
            **summarised(ways, documents),
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

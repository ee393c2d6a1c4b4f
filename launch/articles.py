"""F1 on whole articles: all pieces joined, those that a store finds, and the right one alone.

    python -m launch.articles --data squad/validation.json [--articles=6] [--tokens=2000]
        [--questions=48] [--pieces=1,2,3] [--run=DIR] [--config.ratio=8]

Articles of SQuAD's form, each cut after so many tokens, are kept in one store. Questions are drawn
from all of their paragraphs, and asked of the whole article, of the pieces that the store finds
among those of all articles, and of the piece with the question's paragraph alone. Prints JSON: F1
of each with its interval over questions, the share of questions for which a piece of the
article with a gold answer was among those found, and seconds a question.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import DataError
from gistjax.evaluation.metrics import f1
from gistjax.evaluation.statistics import clustered_bootstrap
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.asking import BATCHES
from gistjax.inference.document import Document
from gistjax.inference.engine import load
from gistjax.inference.store import Store
from gistjax.inference.store_index import Piece
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from launch.squad_file import squad_articles

SEED = 0


@dataclass(frozen=True)
class Question:
    """A question on an article."""

    article: str
    paragraph: str
    text: str
    golds: tuple[str, ...]


def read_articles(
    file: Path | str, articles: int, characters: int
) -> dict[str, list[dict[str, Any]]]:
    """Return articles spread over a file, each with its paragraphs up to so many characters.

    Raises:
        DataError: if the file has fewer.
    """
    data = squad_articles(file)
    if len(data) < articles:
        raise DataError(f"{file} has {len(data)} articles: set --articles to as many or fewer.")
    found = {}
    for i in range(articles):
        article, taken = data[i * len(data) // articles], 0
        paragraphs = []
        for paragraph in article["paragraphs"]:
            taken += len(paragraph["context"])
            if paragraphs and taken > characters:
                break
            paragraphs.append(paragraph)
        found[article["title"]] = paragraphs
    return found


def draw(articles: dict[str, list[dict[str, Any]]], number: int) -> list[Question]:
    """Draw questions from all paragraphs, those of an article one after another."""
    every = [
        Question(title, paragraph["context"].strip(), asked["question"].strip(), golds)
        for title, paragraphs in articles.items()
        for paragraph in paragraphs
        for asked in paragraph["qas"]
        if (golds := tuple(answer["text"] for answer in asked["answers"]))
    ]
    order = np.random.default_rng(SEED).permutation(len(every))
    return sorted((every[i] for i in order[:number]), key=lambda question: question.article)


def right_piece(question: Question, pieces: list[Piece]) -> Piece:
    """Return the piece of an article that has most of a question's paragraph."""
    words = set(question.paragraph.split())
    return max(pieces, key=lambda piece: len(words & set(piece.text.split())))


def holds(piece: Piece, question: Question) -> bool:
    """Return whether a piece is of a question's article and has a gold answer."""
    of_article = piece.document == question.article
    return of_article and any(gold in piece.text for gold in question.golds)


def measure(store: Store, questions: list[Question], numbers: list[int]) -> dict[str, Any]:
    """Ask each question in each way, as many together as the engine asks at once."""
    scores: dict[str, list[float]] = {}
    hits: dict[int, list[bool]] = {number: [] for number in numbers}
    seconds: dict[str, float] = {}

    def joined(pieces: list[Piece]) -> Document:
        return store.engine.join([store.open_piece(piece) for piece in pieces])

    for first in range(0, len(questions), BATCHES[-1]):
        batch = questions[first : first + BATCHES[-1]]
        titles = {question.article for question in batch}
        own = {title: store.index.pieces(title) for title in titles}
        whole = {title: joined(pieces) for title, pieces in own.items()}
        ways = {
            "all pieces": [whole[question.article] for question in batch],
            "right piece": [
                store.open_piece(right_piece(question, own[question.article])) for question in batch
            ],
        }
        for number in numbers:
            found = [store.index.search(question.text, number) for question in batch]
            ways[f"{number} found"] = [joined(pieces) for pieces in found]
            hits[number] += [
                any(holds(piece, question) for piece in pieces)
                for question, pieces in zip(batch, found, strict=True)
            ]
        for way, documents in ways.items():
            asked = zip(documents, (question.text for question in batch), strict=True)
            for question, answer in zip(batch, store.engine.ask(list(asked)), strict=True):
                scores.setdefault(way, []).append(f1(answer.text, question.golds))
                seconds[way] = seconds.get(way, 0.0) + answer.seconds / len(questions)
    clusters = np.arange(len(questions))
    return {
        "f1": {way: round(float(np.mean(of)), 4) for way, of in scores.items()},
        "interval": {
            way: [round(x, 4) for x in clustered_bootstrap(of, clusters, 2000, SEED)]
            for way, of in scores.items()
        },
        "found": {str(number): round(float(np.mean(of)), 4) for number, of in hits.items()},
        "seconds": {way: round(spent, 4) for way, spent in seconds.items()},
    }


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Keep articles in a store of its own, and measure."""
    engine = load(args.run, config)
    articles = read_articles(args.data, args.articles, int(args.tokens * 4.5))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store", engine)
        for title, paragraphs in articles.items():
            store.add(title, "\n\n".join(paragraph["context"].strip() for paragraph in paragraphs))
        held = store.documents()
        questions = draw(articles, args.questions)
        found = measure(store, questions, [int(number) for number in args.pieces])
    cli.print_result(
        {
            "ratio": store.ratio,
            "articles": len(held),
            "tokens": [document.tokens for document in held],
            "pieces": [document.pieces for document in held],
            "questions": len(questions),
            **found,
            "device": device_name(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    define_path("data", "", "SQuAD's JSON file.", values)
    for name, default, about in (
        ("articles", 6, "Articles to keep."),
        ("tokens", 2000, "About so many tokens of each, at 4.5 characters a token."),
        ("questions", 48, "Questions to ask."),
    ):
        flags.DEFINE_integer(name, default, about, 1, flag_values=values)
    flags.DEFINE_list(
        "pieces", ["1", "2", "3"], "Pieces that are found; empty for none.", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

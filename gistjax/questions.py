"""Questions on plain text, to train on beside SQuAD's: written by a tuned model, kept where another one finds their answer.

    python -m gistjax.questions places --config.text.path=FOLDER --to runs/places [--contexts 26000]
    python -m gistjax.questions ask --folder runs/places --predictions WRITTEN.json[,…] --to runs/asked
    python -m gistjax.questions keep --folder runs/asked --predictions ANSWERED.json[,…] --to runs/questions

`places` picks what could be asked for: names, numbers, words. A model trained with `--config.data.task=question` writes a question
to each (`python -m gistjax.evaluate … --output WRITTEN.json`), the full-context model answers them, and `keep` keeps those of
which the answer is the place that was asked for (round-trip consistency: Alberti et al. 2019, arXiv:1906.05416). Each stage is a
folder in SQuAD v1.1 form: `validation.json` to be answered, `train.json` to train on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax import cli
from gistjax.config import CompressionConfig, did_you_mean
from gistjax.data.filling import JOINER, join
from gistjax.data.report import DataReport
from gistjax.data.text import TARGETS, load_articles
from gistjax.errors import ConfigError, DataError
from gistjax.files import write_json

flags.DEFINE_integer("contexts", 26_000, "places: contexts to take.", lower_bound=1)
flags.DEFINE_integer("places", 6, "places: in each context.", lower_bound=1)
flags.DEFINE_string("folder", "", "ask, keep: the folder that was answered.")
flags.DEFINE_list("predictions", [], "ask, keep: what `gistjax.evaluate --output` wrote of it.")
flags.DEFINE_float(
    "agreement", 0.5, "keep: least F1 between answer and place.", lower_bound=0, upper_bound=1
)
flags.DEFINE_string("to", "", "Folder to write.")

SHORTEST, LONGEST = 350, 1_900
"""Characters of a context: some 80 to 450 tokens, shorter and longer than SQuAD's paragraphs."""
LONGEST_PLACE = 60
"""Characters."""
_NAME = re.compile(  # not the first word of a sentence
    r"(?<=[^.!?\s] )[A-Z][\w'’-]+(?: (?:of |the |de |and )?[A-Z][\w'’-]+)*"
)
_CLAUSE_END = re.compile(r"(?<=\s)(?:[a-z][\w'’-]* ){1,4}[a-z][\w'’-]{3,}(?=[,.;])")
_KINDS = (_NAME, *TARGETS[1:], _CLAUSE_END)
_SHARES = (0.35, 0.25, 0.2, 0.2)

Paragraph = dict[str, Any]
"""`{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}`"""

log = logging.getLogger(__name__)


def find_places(
    articles: Iterable[str], contexts: int, places: int, seed: int
) -> Iterator[Paragraph]:
    """Contexts of one or several paragraphs, their lengths drawn by seed, each with places in it to be asked for.

    Args:
        articles: texts, their paragraphs joined as `load_articles` does.
        contexts: at most so many.
        places: at most so many in each.
    """
    rng = np.random.default_rng([seed, 4])
    pieces = (piece for article in articles for piece in _pieces(article, rng))
    for number, context in enumerate(islice(pieces, contexts)):
        found = _places(context, places, rng)
        yield {
            "context": context,
            "qas": [_qa(f"{number}-{i}", place, place) for i, place in enumerate(found)],
        }


def _pieces(article: str, rng: np.random.Generator) -> Iterator[str]:
    """Paragraphs in a row, as many as a drawn length takes."""
    taken: list[str] = []
    wanted = int(rng.integers(SHORTEST, LONGEST))
    for paragraph in article.split(JOINER):
        if len(join([*taken, paragraph])) > LONGEST:
            taken = []
        if len(paragraph) <= LONGEST:
            taken.append(paragraph)
        if len(join(taken)) >= wanted:
            yield join(taken)
            taken, wanted = [], int(rng.integers(SHORTEST, LONGEST))
    if len(join(taken)) >= SHORTEST:
        yield join(taken)


def _places(context: str, n: int, rng: np.random.Generator) -> list[str]:
    """Up to n that do not overlap, their kinds drawn."""
    found = [[m for m in kind.finditer(context) if len(m[0]) <= LONGEST_PLACE] for kind in _KINDS]
    taken: list[re.Match[str]] = []
    for kind in rng.choice(len(_KINDS), n, p=_SHARES):
        free = [m for m in found[kind] if all(m.end() <= t.start() or t.end() <= m.start() for t in taken)]  # fmt: skip
        if free:
            taken.append(free[int(rng.integers(len(free)))])
    return list(dict.fromkeys(match[0].rstrip(",.") for match in taken))


def ask(paragraphs: Iterable[Paragraph], written: dict[str, str]) -> Iterator[Paragraph]:
    """The paragraphs with what was written for each place as its question; empty ones and repetitions are left out."""
    for paragraph in paragraphs:
        questions: dict[str, Paragraph] = {}
        for qa in paragraph["qas"]:
            text = written.get(qa["id"], "").strip()
            if text:
                questions.setdefault(text, _qa(qa["id"], text, qa["answers"][0]["text"]))
        if questions:
            yield {"context": paragraph["context"], "qas": list(questions.values())}


def keep(
    paragraphs: Iterable[Paragraph],
    answered: dict[str, str],
    f1: dict[str, float],
    agreement: float,
) -> Iterator[Paragraph]:
    """The questions of which the answer agrees with the place, with that answer where the context has it word for word."""
    for paragraph in paragraphs:
        context, kept = paragraph["context"], []
        for qa in paragraph["qas"]:
            if f1.get(qa["id"], -1.0) >= agreement:
                answer, place = answered[qa["id"]], qa["answers"][0]["text"]
                answer = answer if answer and answer in context else place
                kept.append(_qa(qa["id"], qa["question"], answer))
        if kept:
            yield {"context": context, "qas": kept}


def _qa(id_: str, question: str, answer: str) -> Paragraph:
    return {"id": id_, "question": question, "answers": [{"text": answer}]}


def read_paragraphs(folder: Path) -> list[Paragraph]:
    """What an earlier stage wrote.

    Raises:
        DataError: if it cannot be read.
    """
    path = folder / "validation.json"
    try:
        [article] = json.loads(path.read_text(encoding="utf-8"))["data"]
        return list(article["paragraphs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): --folder takes the folder that `places` or `ask` wrote."
        ) from error


def read_predictions(files: Iterable[str]) -> list[dict[str, Any]]:
    """The predictions of some files together.

    Raises:
        DataError: if one cannot be read.
    """
    predictions: list[dict[str, Any]] = []
    for file in files:
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            predictions += [{key: p[key] for key in ("id", "prediction", "f1")} for p in found]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file} cannot be read ({type(error).__name__}: {error}): --predictions takes what "
                "`python -m gistjax.evaluate … --output FILE` writes."
            ) from error
    return predictions


def write_folder(folder: Path, split: str, paragraphs: Iterable[Paragraph]) -> dict[str, Any]:
    """Writes `folder/split.json`; returns how many contexts and questions it has.

    Raises:
        DataError: if there is nothing to write.
    """
    written = list(paragraphs)
    if not written:
        raise DataError(f"nothing is left to write to {folder / split}.json.")
    folder.mkdir(parents=True, exist_ok=True)
    article = {"title": "text", "paragraphs": written}
    write_json(folder / f"{split}.json", {"version": "1.1", "data": [article]}, indent=None)
    questions = sum(len(paragraph["qas"]) for paragraph in written)
    return {"folder": str(folder), "contexts": len(written), "questions": questions}


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """The command.

    Raises:
        GistjaxError: if a file is missing or damaged, or the command says too little.
    """
    stage = words[0] if len(words) == 1 else ""
    if stage not in ("places", "ask", "keep"):
        raise ConfigError(
            f"which stage? {' '.join(words)!r} is none{did_you_mean(stage, ('places', 'ask', 'keep'))}"
        )
    if not args.to:
        raise ConfigError("where to? Give --to FOLDER.")
    out = Path(args.to)
    if stage == "places":
        if not config.text.path:
            raise ConfigError("which text? Give a folder of it, as --config.text.path=FOLDER.")
        report = DataReport()
        articles = load_articles(config.text.path, report, config.data.max_dropped)
        found = find_places(articles, args.contexts, args.places, config.seed)
        cli.print_result(write_folder(out, "validation", found))
        return
    paragraphs, predictions = read_paragraphs(Path(args.folder)), read_predictions(args.predictions)
    texts = {p["id"]: p["prediction"] for p in predictions}
    if stage == "ask":
        cli.print_result(write_folder(out, "validation", ask(paragraphs, texts)))
    else:
        f1 = {p["id"]: p["f1"] for p in predictions}
        kept = keep(paragraphs, texts, f1, args.agreement)
        cli.print_result(write_folder(out, "train", kept))


if __name__ == "__main__":
    cli.run_with_words(main, lambda argv: CompressionConfig())

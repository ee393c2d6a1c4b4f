"""Questions on plain text, to train on beside SQuAD's: written by a tuned model, kept where another one finds their answer.

    python -m gistjax.questions places --config.text.path=FOLDER --to runs/places [--contexts 26000]
    python -m gistjax.evaluate --run WRITER --config.data.path=runs/places --config.data.validation_examples=-1 --output written.json
    python -m gistjax.questions ask --folder runs/places --predictions written.json --to runs/asked
    python -m gistjax.evaluate --run READER --config.data.path=runs/asked --config.data.validation_examples=-1 --output answered.json
    python -m gistjax.questions keep --folder runs/asked --predictions answered.json --to runs/questions

`places` picks what could be asked for: names, numbers, words. WRITER, trained with `--config.data.task=question`, writes a question
to each; READER, the full-context model, answers them; and `keep` keeps those of which the answer is the place that was asked for
(round-trip consistency: Alberti et al. 2019, arXiv:1906.05416). Each stage is a folder in SQuAD v1.1 form: `validation.json` to be
answered, `train.json` to train on (the runs are in launch/studies/quality.json). Predictions may lie in several files, of parts of a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from gistjax import cli
from gistjax.config import CompressionConfig, did_you_mean, validate
from gistjax.data.filling import JOINER, join
from gistjax.data.report import DataReport
from gistjax.data.squad import ASK
from gistjax.data.text import TARGETS, load_articles
from gistjax.errors import ConfigError, DataError, StorageError
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
"""Characters of a context: shorter and longer than SQuAD's paragraphs."""
LONGEST_PLACE = 60
"""Characters."""
_NAME = re.compile(  # not a sentence's first word, as far as a full stop tells
    r"(?<=[^.!?\s] )[A-Z][\w'’-]+(?: (?:of |the |de |and )?[A-Z][\w'’-]+)*"
)
_CLAUSE_END = re.compile(r"(?<=\s)(?:[a-z][\w'’-]* ){1,4}[a-z][\w'’-]{3,}(?=[,.;])")
_KINDS = (_NAME, *TARGETS[1:], _CLAUSE_END)
_SHARES = (0.35, 0.25, 0.2, 0.2)

Paragraph = dict[str, Any]
"""`{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}`"""


class Prediction(NamedTuple):
    """What a model wrote."""

    question: str  # that it was asked
    text: str
    f1: float  # between the text and what was expected


Predictions = dict[str, Prediction]
"""By question id."""

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
    for name, context in islice(_distinct(pieces), contexts):
        found = _places(context, places, rng)
        if found:
            qas = [_qa(f"{name}-{i}", place, place) for i, place in enumerate(found)]
            yield {"context": context, "qas": qas}


def _distinct(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text once, with a name that it has in every run."""
    seen: set[str] = set()
    for text in texts:
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if name not in seen:
            seen.add(name)
            yield name, text


def _pieces(article: str, rng: np.random.Generator) -> Iterator[str]:
    """Paragraphs in a row, as many as a drawn length takes."""
    taken: list[str] = []
    wanted = int(rng.integers(SHORTEST, LONGEST))
    for paragraph in article.split(JOINER):
        if len(join([*taken, paragraph])) > LONGEST:
            if len(join(taken)) >= SHORTEST:
                yield join(taken)
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


def ask(paragraphs: Iterable[Paragraph], written: Predictions) -> Iterator[Paragraph]:
    """The paragraphs with what was written for each place as its question; empty ones and repetitions are left out."""
    for paragraph in paragraphs:
        questions: dict[str, Paragraph] = {}
        for qa in paragraph["qas"]:
            if text := written[qa["id"]].text if qa["id"] in written else "":
                questions.setdefault(text, _qa(qa["id"], text, qa["answers"][0]["text"]))
        if questions:
            yield {"context": paragraph["context"], "qas": list(questions.values())}


def keep(
    paragraphs: Iterable[Paragraph], answered: Predictions, agreement: float
) -> Iterator[Paragraph]:
    """The questions of which the answer agrees with the place, with that answer where the context has it word for word."""
    for paragraph in paragraphs:
        context, kept = paragraph["context"], []
        for qa in paragraph["qas"]:
            found = answered.get(qa["id"])
            if found and found.f1 >= agreement:
                place = qa["answers"][0]["text"]
                answer = found.text if found.text and found.text in context else place
                kept.append(_qa(qa["id"], qa["question"], answer))
        if kept:
            yield {"context": context, "qas": kept}


def _qa(id_: str, question: str, answer: str) -> Paragraph:
    return {"id": id_, "question": question, "answers": [{"text": answer}]}


def read_paragraphs(folder: Path) -> list[Paragraph]:
    """What an earlier stage wrote.

    Raises:
        DataError: if it cannot be read, or is not what a stage writes.
    """
    path = folder / "validation.json"
    try:
        [article] = json.loads(path.read_text(encoding="utf-8"))["data"]
        return [
            {
                "context": _text(paragraph["context"]),
                "qas": [
                    _qa(*(_text(x) for x in (qa["id"], qa["question"], qa["answers"][0]["text"])))
                    for qa in paragraph["qas"]
                ],
            }
            for paragraph in article["paragraphs"]
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): --folder takes the folder that `places` or `ask` "
            "wrote."
        ) from error


def read_predictions(files: Iterable[str]) -> Predictions:
    """The predictions of some files together, by question id.

    Raises:
        DataError: if one cannot be read, or is not what `gistjax.evaluate` writes.
    """
    predictions: Predictions = {}
    for file in files:
        try:
            for row in json.loads(Path(file).read_text(encoding="utf-8")):
                asked, text = _text(row["question"]), _text(row["prediction"]).strip()
                f1 = float(row["f1"])
                if not 0 <= f1 <= 1:
                    raise ValueError(f"f1 {f1} is no score")
                predictions[_text(row["id"])] = Prediction(asked, text, f1)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file} cannot be read ({type(error).__name__}: {error}): --predictions takes what "
                "`python -m gistjax.evaluate … --output FILE` writes."
            ) from error
    return predictions


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # no lone surrogates, which cannot be written
    return value


def check_predictions(paragraphs: list[Paragraph], found: Predictions, stage: str) -> None:
    """Says how many questions have no prediction.

    Raises:
        DataError: if the predictions are of other questions.
    """
    qas = [qa for paragraph in paragraphs for qa in paragraph["qas"]]
    answered = [qa for qa in qas if qa["id"] in found]
    for qa in answered:
        place = qa["answers"][0]["text"]
        expected = ASK.format(answer=place) if stage == "ask" else qa["question"]
        if found[qa["id"]].question != expected:
            raise DataError(
                f"the predictions are not of this folder: {qa['id']} was asked {found[qa['id']].question!r}, not "
                f"{expected!r}. `ask` takes what a model of data.task=question wrote of `places`, `keep` what the reader "
                "answered of `ask`."
            )
    if not answered:
        raise DataError("the predictions are not of this folder: none of its questions is there.")
    if len(answered) < len(qas):
        log.warning(
            "warning: %d of %d questions have no prediction and are left out; evaluate with "
            "--config.data.validation_examples=-1 to have all",
            len(qas) - len(answered),
            len(qas),
        )


def write_folder(folder: Path, split: str, paragraphs: Iterable[Paragraph]) -> dict[str, Any]:
    """Writes `folder/split.json`; returns how many contexts and questions it has.

    Raises:
        DataError: if there is nothing to write.
        StorageError: if it cannot be written.
    """
    written = list(paragraphs)
    if not written:
        raise DataError(
            f"nothing is left to write to {folder / split}.json: no paragraphs of {SHORTEST} to {LONGEST} characters, no "
            "question written, or no answer that agrees with its place (--agreement)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--to {folder} cannot be made: {error.strerror}.") from error
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
    validate(config)
    if stage not in ("places", "ask", "keep"):
        raise ConfigError(
            f"which stage? {' '.join(words)!r} is none{did_you_mean(stage, ('places', 'ask', 'keep'))} Several files of "
            "--predictions are separated by commas."
        )
    if not args.to:
        raise ConfigError("where to? Give --to FOLDER.")
    out = Path(args.to)
    if stage == "places":
        cli.print_result(write_folder(out, "validation", _read_places(config, args)))
        return
    if not args.folder or not args.predictions:
        raise ConfigError(
            f"what was answered, and how? `{stage}` takes --folder FOLDER and --predictions FILE[,…]."
        )
    if stage == "ask" and out.resolve() == Path(args.folder).resolve():
        raise ConfigError("--to is --folder, whose questions would be lost: give another folder.")
    paragraphs, found = read_paragraphs(Path(args.folder)), read_predictions(args.predictions)
    check_predictions(paragraphs, found, stage)
    if stage == "ask":
        cli.print_result(write_folder(out, "validation", ask(paragraphs, found)))
    else:
        cli.print_result(write_folder(out, "train", keep(paragraphs, found, args.agreement)))


def _read_places(config: CompressionConfig, args: flags.FlagValues) -> Iterator[Paragraph]:
    if not config.text.path:
        raise ConfigError("which text? Give a folder of it, as --config.text.path=FOLDER.")
    report = DataReport()
    articles = load_articles(config.text.path, report, config.data.max_dropped)
    try:
        yield from find_places(articles, args.contexts, args.places, config.seed)
    finally:
        log.info("%s", report)


if __name__ == "__main__":
    cli.run_with_words(main, lambda argv: CompressionConfig())

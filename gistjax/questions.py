"""Questions about plain text, to train on beside SQuAD's: one model writes, another one checks.

    python -m gistjax.questions places --config.text.path=FOLDER --to runs/places
    python -m gistjax.evaluate --run WRITER --config.data.path=runs/places \\
        --config.data.validation_examples=-1 --output written.json
    python -m gistjax.questions ask --folder runs/places --predictions written.json --to runs/asked
    python -m gistjax.evaluate --run READER --config.data.path=runs/asked \\
        --config.data.validation_examples=-1 --output answered.json
    python -m gistjax.questions keep --folder runs/asked --predictions answered.json \\
        --to runs/questions

`places` picks names, numbers and words that could be asked for. WRITER, trained with
`--config.data.task=question`, writes a question about each. READER, the full-context model,
answers them, and `keep` keeps the questions whose answer is the place they were written about
(round-trip consistency: Alberti et al. 2019, arXiv:1906.05416). Each stage writes a folder in
SQuAD v1.1 form: `validation.json` to be answered, `train.json` to train on. Predictions may be
spread over several files, each for a part of a folder.
"""

from __future__ import annotations

import dataclasses
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

from gistjax.config import CompressionConfig, DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.example import Example
from gistjax.data.filling import JOINER, join
from gistjax.data.question_writing import swap
from gistjax.data.report import DataReport
from gistjax.data.text import TARGETS, load_articles
from gistjax.errors import ConfigError, DataError, did_you_mean
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import make_folder, write_json
from gistjax.runtime.texts import user_path
from gistjax.validation import validate

SHORTEST, LONGEST = 350, 1_900  # characters of a context: SQuAD's paragraphs, and some more
LONGEST_PLACE = 60  # characters
TITLE = "text"  # of the one article that a folder holds
STAGES = ("places", "ask", "keep")
_NAME = re.compile(  # not a sentence's first word, as far as a full stop tells
    r"(?<=[^.!?\s] )[A-Z][\w'’-]+(?: (?:of |the |de |and )?[A-Z][\w'’-]+)*"
)
_CLAUSE_END = re.compile(r"(?<=\s)(?:[a-z][\w'’-]* ){1,4}[a-z][\w'’-]{3,}(?=[,.;])")
_KINDS = (_NAME, *TARGETS[1:], _CLAUSE_END)
_SHARES = (0.35, 0.25, 0.2, 0.2)


class Prediction(NamedTuple):
    """The text that a model wrote."""

    question: str  # the one that it was asked
    text: str
    f1: float  # between the text and what was expected


Predictions = dict[str, Prediction]
"""By question id."""

log = logging.getLogger(__name__)


def find_places(
    articles: Iterable[str], contexts: int, places: int, seed: int
) -> Iterator[Example]:
    """Yield places to ask for, each as the question and the answer of an example.

    A context is one or several paragraphs, its length drawn by seed.

    Args:
        articles: texts, their paragraphs joined as `load_articles` does.
        contexts: largest number of contexts.
        places: largest number of places in each.
    """
    rng = np.random.default_rng([seed, 4])
    pieces = (piece for article in articles for piece in _pieces(article, rng))
    for context_id, (name, context) in enumerate(islice(_distinct(pieces), contexts)):
        for i, place in enumerate(_places(context, places, rng)):
            yield Example(f"{name}-{i}", TITLE, context, place, (place,), context_id)


def _distinct(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each text once, with a name that is the same in every run."""
    seen: set[str] = set()
    for text in texts:
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if name not in seen:
            seen.add(name)
            yield name, text


def _pieces(article: str, rng: np.random.Generator) -> Iterator[str]:
    """Yield runs of paragraphs, each as long as a drawn length asks for."""
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
    """Return up to n places that do not overlap, their kinds drawn."""
    found = [[m for m in kind.finditer(context) if len(m[0]) <= LONGEST_PLACE] for kind in _KINDS]
    taken: list[re.Match[str]] = []
    for kind in rng.choice(len(_KINDS), n, p=_SHARES):
        free = [match for match in found[kind] if not _overlaps(match, taken)]
        if free:
            taken.append(free[int(rng.integers(len(free)))])
    return list(dict.fromkeys(match[0].rstrip(",.") for match in taken))


def _overlaps(match: re.Match[str], taken: Iterable[re.Match[str]]) -> bool:
    return any(match.start() < other.end() and other.start() < match.end() for other in taken)


def ask(places: Iterable[Example], written: Predictions) -> Iterator[Example]:
    """Yield the places with the text written for each as its question.

    Empty questions, and those that repeat another one on the same context, are left out.
    """
    asked: set[tuple[int, str]] = set()
    for example in places:
        text = written[example.id].text if example.id in written else ""
        if text and (example.context_id, text) not in asked:
            asked.add((example.context_id, text))
            yield dataclasses.replace(example, question=text)


def keep(asked: Iterable[Example], answered: Predictions, agreement: float) -> Iterator[Example]:
    """Yield the questions whose answer agrees with the place that they were written about.

    The answer takes the place's role where the context has it word for word.

    Args:
        agreement: least F1 between answer and place.
    """
    for example in asked:
        found = answered.get(example.id)
        if found and found.f1 >= agreement:
            word_for_word = found.text and found.text in example.context
            yield dataclasses.replace(example, answers=(found.text,)) if word_for_word else example


def read_examples(folder: Path) -> list[Example]:
    """Return the examples that an earlier stage wrote, ordered by context.

    Raises:
        DataError: if they cannot be read, or no stage wrote them.
    """
    data = DataConfig(path=str(folder), train_examples=0, validation_examples=-1)
    try:
        examples = load_dataset(data, seed=0).validation
    except DataError as error:
        raise DataError(
            f"{error} --folder takes the folder that `places` or `ask` wrote."
        ) from error
    return sorted(examples, key=lambda example: (example.context_id, example.id))


def read_predictions(files: Iterable[str]) -> Predictions:
    """Return the predictions of several files, by question id.

    Raises:
        DataError: if one cannot be read, or was not written by `gistjax.evaluate`.
    """
    predictions: Predictions = {}
    for file in files:
        try:
            for row in json.loads(user_path(file).read_bytes()):
                asked, text = _text(row["question"]), _text(row["prediction"]).strip()
                f1 = float(row["f1"])
                if not 0 <= f1 <= 1:
                    raise ValueError(f"f1 {f1} is no score")
                predictions[_text(row["id"])] = Prediction(asked, text, f1)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file} cannot be read ({type(error).__name__}: {error}): --predictions takes "
                "what `python -m gistjax.evaluate … --output FILE` writes."
            ) from error
    return predictions


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # no lone surrogates, which cannot be written
    return value


def check_predictions(examples: list[Example], found: Predictions, stage: str) -> None:
    """Check that predictions belong to examples; log how many questions have none.

    Raises:
        DataError: if the predictions are of other questions.
    """
    answered = [example for example in examples if example.id in found]
    for example in answered:
        asked = found[example.id].question
        expected = swap(example).question if stage == "ask" else example.question
        if asked != expected:
            raise DataError(
                f"the predictions are not of this folder: {example.id} was asked {asked!r}, not "
                f"{expected!r}. `ask` takes what a model of data.task=question wrote of `places`, "
                "`keep` what the reader answered of `ask`."
            )
    if not answered:
        raise DataError("the predictions are not of this folder: none of its questions is there.")
    if len(answered) < len(examples):
        log.warning(
            "warning: %d of %d questions have no prediction and are left out; evaluate with "
            "--config.data.validation_examples=-1 to have all",
            len(examples) - len(answered),
            len(examples),
        )


def check_output(folder: Path, split: str) -> None:
    """Refuse to write over a data set that is not of this command.

    Raises:
        ConfigError: if the folder has one.
    """
    file = folder / f"{split}.json"
    if not file.exists():
        return
    try:
        titles = [article["title"] for article in json.loads(file.read_bytes())["data"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        titles = []
    if titles != [TITLE]:
        raise ConfigError(
            f"--to {folder}: its {file.name} is not of this command, and would be lost: give "
            "another folder."
        )


def write_folder(folder: Path, split: str, examples: Iterable[Example]) -> dict[str, Any]:
    """Write `folder/split.json`; return its numbers of contexts and questions.

    Raises:
        DataError: if there is nothing to write.
        StorageError: if it cannot be written.
    """
    written = list(examples)
    if not written:
        raise DataError(
            f"nothing is left to write to {folder / split}.json: no paragraphs of {SHORTEST} to "
            f"{LONGEST} characters, no question written, or no answer that agrees with its place "
            "(--agreement)."
        )
    make_folder(folder)
    qas: dict[str, list[dict[str, Any]]] = {}
    for example in written:
        answers = [{"text": a, "answer_start": example.context.find(a)} for a in example.answers]
        qa = {"id": example.id, "question": example.question, "answers": answers}
        qas.setdefault(example.context, []).append(qa)
    paragraphs = [{"context": context, "qas": of_context} for context, of_context in qas.items()]
    article = {"title": TITLE, "paragraphs": paragraphs}
    write_json(folder / f"{split}.json", {"version": "1.1", "data": [article]}, indent=None)
    return {"folder": str(folder), "contexts": len(paragraphs), "questions": len(written)}


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """Run the stage that is named on the command line.

    Raises:
        GistjaxError: if a file is missing or damaged, or an argument is missing.
    """
    stage = words[0] if len(words) == 1 else ""
    validate(config)
    if stage not in STAGES:
        raise ConfigError(
            f"which stage? {' '.join(words)!r} is none{did_you_mean(stage, STAGES)} Several files "
            "of --predictions are separated by commas."
        )
    if not args.to:
        raise ConfigError("where to? Give --to FOLDER.")
    out = Path(args.to)
    check_output(out, "train" if stage == "keep" else "validation")
    if stage == "places":
        cli.print_result(write_folder(out, "validation", _read_places(config, args)))
        return
    if not args.folder or not args.predictions:
        raise ConfigError(
            f"what was answered, and how? `{stage}` takes --folder FOLDER and --predictions "
            "FILE[,…]."
        )
    if stage == "ask" and out.resolve() == Path(args.folder).resolve():
        raise ConfigError("--to is --folder, whose questions would be lost: give another folder.")
    examples, found = read_examples(Path(args.folder)), read_predictions(args.predictions)
    check_predictions(examples, found, stage)
    if stage == "ask":
        cli.print_result(write_folder(out, "validation", ask(examples, found)))
    else:
        cli.print_result(write_folder(out, "train", keep(examples, found, args.agreement)))


def _read_places(config: CompressionConfig, args: flags.FlagValues) -> Iterator[Example]:
    if not config.text.path:
        raise ConfigError("which text? Give a folder of it, as --config.text.path=FOLDER.")
    report = DataReport()
    articles = load_articles(config.text.path, report, config.data.max_dropped)
    yield from find_places(articles, args.contexts, args.places, config.seed)
    log.info("%s", report)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_integer(
        "contexts", 26_000, "places: contexts to take.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("places", 6, "places: in each context.", lower_bound=1, flag_values=values)
    define_path("folder", "", "ask, keep: the folder that was answered.", values)
    flags.DEFINE_list(
        "predictions",
        [],
        "ask, keep: what `gistjax.evaluate --output` wrote of it.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "agreement",
        0.5,
        "keep: least F1 between answer and place.",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    define_path("to", "", "Folder to write.", values)


if __name__ == "__main__":
    cli.run_with_words(main, define_flags, lambda argv: CompressionConfig())

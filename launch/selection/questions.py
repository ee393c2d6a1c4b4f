"""Make questions on plain text to train on, beside SQuAD's: one model writes, another one answers.

    R="python -m launch.selection.run --data=data --out=out --full"
    Q="python -m launch.selection.questions --data=data"
    $Q --stage=writer --squad=FOLDER    # writer.npz: SQuAD, asking for the question
    $Q --stage=places --text=FOLDER     # places.npz: what could be asked for
    $R --name=W --train=writer --epochs=1 --lr=8e-4 --seconds=90 --evaluate=places:0 --longest=32
    $Q --stage=ask --answers=out/W.places0.kvzip-global.json    # asked.npz
    $R --name=R --init=out/A.q8.npz --evaluate=asked:0
    $Q --stage=keep --answers=out/R.asked0.kvzip-global.json    # mixed.npz, to --train on

The stages are those of `gistjax.questions`, which keeps questions whose answer is the place that
they were written about (Alberti et al. 2019, arXiv:1906.05416).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from absl import flags
from tokenizers import Tokenizer

from gistjax import questions
from gistjax.data.example import Example
from gistjax.data.question_writing import ASK, swap
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles
from gistjax.errors import DataError
from gistjax.evaluation.metrics import squad
from gistjax.questions import (
    Prediction,
    Predictions,
    find_places,
    read_examples,
    write_folder,
)
from gistjax.runtime import cli
from gistjax.runtime.files import read_json, write_json
from launch.selection.prepare import Encode, Texts, held_out, read_squad, write_split

AGREEMENT = 0.5
"""Least F1 between the reader's answer and the place."""

MAX_DROPPED = 0.05
SEED = 42


def writer(data: Path, encode: Encode, args: flags.FlagValues) -> int:
    """Write SQuAD's training questions the other way round: the answer is given."""
    texts = read_squad(Path(args.squad) / "train.json")
    swapped = dataclasses.replace(
        texts,
        questions=[ASK.format(answer=answers[0]) for answers in texts.answers],
        answers=[[question] for question in texts.questions],
    )
    write_split(swapped, held_out(texts), "writer", encode, data)
    return len(swapped.ids)


def places(data: Path, encode: Encode, args: flags.FlagValues) -> int:
    """Write names, numbers and words of texts that a question could be asked about."""
    articles = load_articles(args.text, DataReport(), MAX_DROPPED)
    found = find_places(articles, args.contexts, args.places, SEED)
    return _write([*found], "places", encode, data, asked=swap)


def ask(data: Path, encode: Encode, args: flags.FlagValues) -> int:
    """Write the places with the questions that the writer wrote; repeated ones are left out."""
    found = read_examples(data / "places")
    written = _predictions(Path(args.answers), found)
    return _write(questions.ask(found, written), "asked", encode, data)


def keep(data: Path, encode: Encode, args: flags.FlagValues) -> int:
    """Write SQuAD's training questions and those that the reader answered with their place."""
    found = read_examples(data / "asked")
    answered = _predictions(Path(args.answers), found)
    kept = _write(questions.keep(found, answered, AGREEMENT), "written", encode, data)
    join(data, ("train", "written"), "mixed")
    return kept


def join(data: Path, names: tuple[str, ...], name: str) -> None:
    """Write a split that holds others, one after the other."""
    rows, ids, contexts = [], [], 0
    for one in names:
        with np.load(data / f"{one}.npz") as file:
            arrays = dict(file)
        arrays["par"] = arrays["par"] + contexts
        contexts += len(arrays["held"])
        rows.append(arrays)
        ids += json.loads((data / f"{one}_ids.json").read_text())
    joined = {}
    for key in rows[0]:
        parts = [arrays[key] for arrays in rows]
        if key.endswith("_off"):
            starts = np.cumsum([0] + [part[-1] for part in parts])
            parts = [part[i > 0 :] + starts[i] for i, part in enumerate(parts)]
        joined[key] = np.concatenate(parts)
    np.savez(data / f"{name}.npz", **joined)
    write_json(data / f"{name}_ids.json", ids, indent=None)


def _write(
    examples: Iterable[Example],
    name: str,
    encode: Encode,
    data: Path,
    asked: Callable[[Example], Example] = lambda example: example,
) -> int:
    """Write a split of which nothing is held out, and a folder that the next stage reads.

    Args:
        asked: what the model is asked of an example.
    """
    examples = list(examples)
    write_folder(data / name, "validation", examples)
    texts, contexts = Texts(), dict[int, int]()
    for example in examples:
        if example.context_id not in contexts:
            contexts[example.context_id] = len(contexts)
            texts.add(0, example.context)
        texts.ask(example.id, asked(example).question, list(example.answers))
        texts.context_of[-1] = contexts[example.context_id]
    write_split(texts, np.zeros(len(contexts), bool), name, encode, data)
    golds = json.loads((data / "golds.json").read_text())
    golds |= dict(zip(texts.ids, texts.answers, strict=True))
    write_json(data / "golds.json", golds, indent=None)
    return len(examples)


def _predictions(path: Path, examples: Iterable[Example]) -> Predictions:
    """Return the answers from the full context that `launch.selection.run` wrote, and their F1."""
    fix = "give a file of answers that launch.selection.run --full wrote"
    found: dict[str, str] = read_json(path, DataError, fix, lambda answers: answers["1"])["1"]
    return {
        example.id: Prediction(example.question, text, squad(text, example.answers).f1)
        for example in examples
        if (text := found.get(example.id)) is not None
    }


STAGES = {"writer": writer, "places": places, "ask": ask, "keep": keep}


def main(values: flags.FlagValues) -> None:
    """Run the stage that is named.

    Raises:
        DataError: if what it reads is missing.
    """
    data = Path(values.data)
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))

    def encode(texts: list[str]) -> list[list[int]]:
        return [row.ids for row in tokenizer.encode_batch(texts, add_special_tokens=False)]

    n = STAGES[values.stage](data, encode, values)
    cli.print_result({"stage": values.stage, "questions": n})


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_enum("stage", "writer", list(STAGES), "What to make.", flag_values=values)
    flags.DEFINE_string("data", "data", "Folder of launch.selection.prepare.", flag_values=values)
    flags.DEFINE_string("squad", "", "writer: folder in SQuAD v1.1 format.", flag_values=values)
    flags.DEFINE_string("text", "", "places: folder of articles.", flag_values=values)
    flags.DEFINE_integer("contexts", 24_000, "places: contexts to take.", flag_values=values)
    flags.DEFINE_integer("places", 5, "places: in each context.", flag_values=values)
    flags.DEFINE_string("answers", "", "ask, keep: answers to the last split.", flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

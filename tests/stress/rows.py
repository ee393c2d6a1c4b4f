"""Bad data rows: every class of them is skipped and counted under its reason, the rows around them
are used.

A fuzzed SQuAD file holds one paragraph and question a row, and a fuzzed JSONL file one article a
line; each is left as it is, odd but usable, or broken in one way, by draw. What comes out must be
what was drawn, row by row.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gistjax.config import CompressionConfig, DataConfig, TextConfig
from gistjax.data.batching import PlanSettings, TrainPlan
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Buckets
from gistjax.data.prompts import make_prompt
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles, text_rows
from gistjax.errors import DataError
from gistjax.weights.tokenizers import byte_tokenizer

Breaking = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]
"""Done to an article, its paragraph and the paragraph's question."""

UNICODE = "is empty or not valid Unicode"
DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]

BROKEN: dict[str, tuple[str, Breaking]] = {
    "no id": ("no id", lambda a, p, q: q.pop("id")),
    "id null": ("no id", lambda a, p, q: q.update(id=None)),
    "id number": ("id is not text", lambda a, p, q: q.update(id=7)),
    "id list": ("id is not text", lambda a, p, q: q.update(id=["x"])),
    "id empty": (f"id {UNICODE}", lambda a, p, q: q.update(id="")),
    "id surrogate": (f"id {UNICODE}", lambda a, p, q: q.update(id="\ud800")),
    "id twice": ("duplicate id", lambda a, p, q: q.update(id="first")),
    "title number": ("title is not text", lambda a, p, q: a.update(title=7)),
    "title list": ("title is not text", lambda a, p, q: a.update(title=["T"])),
    "no question": ("no question", lambda a, p, q: q.pop("question")),
    "question null": ("no question", lambda a, p, q: q.update(question=None)),
    "question blank": (f"question {UNICODE}", lambda a, p, q: q.update(question=" \t\u2003")),
    "question number": ("question is not text", lambda a, p, q: q.update(question=3.5)),
    "question object": ("question is not text", lambda a, p, q: q.update(question={"text": "?"})),
    "question surrogate": (f"question {UNICODE}", lambda a, p, q: q.update(question="\udfff?")),
    "no context": ("no context", lambda a, p, q: p.pop("context")),
    "context null": ("no context", lambda a, p, q: p.update(context=None)),
    "context blank": (f"context {UNICODE}", lambda a, p, q: p.update(context="\n\n")),
    "context number": ("context is not text", lambda a, p, q: p.update(context=10**40)),
    "context list": ("context is not text", lambda a, p, q: p.update(context=["The cat"])),
    "context surrogate": (f"context {UNICODE}", lambda a, p, q: p.update(context="cat \ud83d")),
    "context deep": ("context is not text", lambda a, p, q: p.update(context=DEEP)),
    "no answers": ("no answers", lambda a, p, q: q.pop("answers")),
    "answers null": ("no answers", lambda a, p, q: q.update(answers=None)),
    "answers empty": ("no answers", lambda a, p, q: q.update(answers=[])),
    "answers text": ("answers are not a list of texts", lambda a, p, q: q.update(answers="cat")),
    "answers number": ("answers are not a list of texts", lambda a, p, q: q.update(answers=1)),
    "answers texts": ("answers are not a list of texts", lambda a, p, q: q.update(answers=["cat"])),
    "answer blank": ("no answers", lambda a, p, q: q.update(answers=[{"text": "  "}])),
    "answer number": ("answers are not a list of texts", lambda a, p, q: q.update(answers=[{"text": 3}])),
    "answer without text": ("answers are not a list of texts", lambda a, p, q: q.update(answers=[{}])),
    "answer deep": ("answers are not a list of texts", lambda a, p, q: q.update(answers=DEEP)),
    "answer elsewhere": ("no answer is in the context", lambda a, p, q: q.update(answers=[{"text": "dog"}])),
    "answer in capitals": ("no answer is in the context", lambda a, p, q: q.update(answers=[{"text": "CAT"}])),
    "answer surrogate": ("no answer is valid Unicode", lambda a, p, q: q.update(answers=[{"text": "\ud800"}])),
    "question a number": ("not an object", lambda a, p, q: p.update(qas=[7])),
    "question a list": ("not an object", lambda a, p, q: p.update(qas=[[q]])),
    "qas null": ("not an object", lambda a, p, q: p.update(qas=None)),
    "qas object": ("not an object", lambda a, p, q: p.update(qas=q)),
    "no qas": ("not an object", lambda a, p, q: p.pop("qas")),
    "paragraph text": ("not an object", lambda a, p, q: a.update(paragraphs=["The cat sat."])),
    "paragraph null": ("not an object", lambda a, p, q: a.update(paragraphs=[None])),
    "paragraphs object": ("not an object", lambda a, p, q: a.update(paragraphs=p)),
    "no paragraphs": ("not an object", lambda a, p, q: a.pop("paragraphs")),
}  # fmt: skip
"""Class to the reason that it is counted under and what is done to a row."""

SCORED = ("id twice", "answers empty", "answer blank", "answer elsewhere", "answer in capitals")
"""Classes that are not trained on, but scored: the validation split keeps them."""

ODD: dict[str, Breaking] = {
    "as it is": lambda a, p, q: None,
    "no title": lambda a, p, q: a.pop("title"),
    "title empty": lambda a, p, q: a.update(title=""),
    "more keys": lambda a, p, q: q.update(is_impossible=False, plausible=[DEEP]),
    "wrong start": lambda a, p, q: q["answers"][0].update(answer_start=-(10**12)),
    "null bytes": lambda a, p, q: p.update(context="\0 cat \x07\x1b[31m \0"),
    "right to left": lambda a, p, q: p.update(context="القط cat جلس \u202e ‮ \u200f"),
    "joined emoji": lambda a, p, q: p.update(context="👩‍👩‍👧‍👦🏳️‍🌈 cat 🇪🇺"),
    "decomposed": lambda a, p, q: p.update(context="e\u0301\u0323 cat " + "\u0300" * 200),
    "carriage returns": lambda a, p, q: p.update(context="a\r\ncat\r\u2028\u2029\x85"),
    "special tokens": lambda a, p, q: p.update(context="<|im_end|> cat <|endoftext|>"),
    "template marks": lambda a, p, q: p.update(context="@CONTEXT@ cat @QUESTION@ {{ x }} {% y %}"),
    "long word": lambda a, p, q: p.update(context="cat " + "x" * 20_000),
    "long question": lambda a, p, q: q.update(question="Who? " * 2_000),
    "many answers": lambda a, p, q: q.update(answers=[{"text": "cat"}, {"text": "no"}] * 500),
}
"""Rows that are used, whatever they look like."""

BAD_LINES = {
    "not JSON": ("{", "}", "cat", '{"paragraphs": ["cat"', "[" * 9_000, "1" * 9_000, '{"a": \x01}', "'a'"),
    "not an article": (
        "null", "3", "NaN", '"cat"', "[]", "{}", '{"paragraphs": null}', '{"paragraphs": "cat"}', '{"paragraphs": 3}',
        '{"paragraphs": {"a": "b"}}', '{"paragraphs": [null]}', '{"paragraphs": ["cat", 3]}', '{"paragraphs": [["cat"]]}',
        '{"Paragraphs": ["cat"]}',
    ),
    "not valid Unicode": (r'{"paragraphs": ["\ud800"]}', '{"paragraphs": ["\udcff"]}', '{"paragraphs": ["\udcc3("]}'),
    "no text": ('{"paragraphs": []}', '{"paragraphs": [""]}', '{"paragraphs": [" ", "\\n"]}'),
}  # fmt: skip
"""Reason to lines; lone surrogates from U+DC80 on are written as the single bytes that they stand
for.
"""

GOOD_LINES = (
    '{"paragraphs": ["cat"]}',
    '{"title": 3, "paragraphs": ["\\u0000 cat", "", "\\ud83d\\ude00"]}',
    '{"paragraphs": ["no", "yes"], "paragraphs": ["cat"]}',
    json.dumps({"paragraphs": ["Anna saw 3 cats in Rome. " * 50]}),
    json.dumps({"paragraphs": ["9" * 5_000 + "x", "A" * 5_000, "a-" * 3_000]}),
)


def classes() -> int:
    """How many classes of bad rows there are."""
    return len(BROKEN) + sum(map(len, BAD_LINES.values()))


def write_questions(rng: random.Random, folder: Path, rows: int) -> dict[str, Counter[str]]:
    """Both splits of a data folder; returns how often each reason must be counted in each."""
    expected, articles = {"train": Counter[str](), "validation": Counter[str]()}, []
    for number in range(rows):
        question = {
            "id": f"q{number}",
            "question": "Who sat?",
            "answers": [{"text": "cat", "answer_start": 4}],
        }
        paragraph = {"context": f"The cat {number} sat.", "qas": [question]}
        article = {"title": f"T{number % 50}", "paragraphs": [paragraph]}
        if number == 0:
            question["id"] = "first"
        elif rng.random() < 0.6:
            name = rng.choice(list(BROKEN))
            reason, breaking = BROKEN[name]
            breaking(article, paragraph, question)
            expected["train"][reason] += 1
            expected["validation"][reason] += name not in SCORED
        else:
            rng.choice(list(ODD.values()))(article, paragraph, question)
        articles.append(article)
    for split in ("train", "validation"):
        (folder / f"{split}.json").write_text(json.dumps({"data": articles}))
    return {split: +counts for split, counts in expected.items()}


def write_lines(rng: random.Random, folder: Path, rows: int) -> tuple[Counter[str], int]:
    """A folder of text, half of its lines compressed."""
    expected = Counter[str]()
    for name in ("a.jsonl", "b.jsonl.gz"):
        lines = []
        for _ in range(rows // 2):
            if rng.random() < 0.5:
                reason = rng.choice(list(BAD_LINES))
                expected[reason] += 1
                lines.append(rng.choice(BAD_LINES[reason]))
            else:
                lines.append(rng.choice(GOOD_LINES))
        content = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return expected, rows // 2 * 2 - expected.total()


def fuzz_questions(seed: int, folder: Path, rows: int) -> list[str]:
    """Reads a fuzzed data folder, encodes it and makes its batches; returns what went wrong."""
    expected = write_questions(random.Random(seed), folder, rows)
    config = CompressionConfig().data
    data = DataConfig(
        path=str(folder), train_examples=-1, validation_examples=-1, max_dropped=1.0, answer_tokens=8,
        context="paragraph", question_buckets=(128, 256), context_buckets=config.context_buckets,
    )  # fmt: skip
    squad = load_dataset(data, seed)
    prompt = make_prompt(byte_tokenizer())
    train, validation, report = encode_splits(squad, prompt, data, seed)
    plan = TrainPlan(train, Buckets.of(data), PlanSettings(batch_size=8, seed=seed))
    for step in range(plan.total_steps):
        plan.batch(step)
    wrong = []
    for split, examples in (("train", squad.train), ("validation", squad.validation)):
        skipped = f"{split}: skipped, "
        found = {
            reason.removeprefix(skipped): n
            for reason, n in squad.report.counts.items()
            if reason.startswith(skipped) and "answers too" not in reason
        }
        good = rows - expected[split].total()
        if found != dict(expected[split]) or len(examples) != good:
            told = dict(expected[split])
            wrong.append(f"{split} of seed {seed}: {found} for {told}, {len(examples)}")
    if len(validation) != good:
        wrong.append(f"seed {seed}: {len(validation)} of {good} questions would be scored")
    read = lambda most: load_dataset(change(data, most), seed)  # noqa: E731
    return wrong + stops(read, expected["train"], rows)


def change(data: DataConfig, most: float) -> DataConfig:
    """The same data, with so large a share of it that may be dropped."""
    return DataConfig(**{**vars(data), "max_dropped": most})


def fuzz_lines(seed: int, folder: Path, rows: int) -> list[str]:
    """Reads fuzzed text and makes rows of it; returns what went wrong."""
    expected, good = write_lines(random.Random(seed), folder, rows)
    report = DataReport()
    articles = list(load_articles(str(folder), report))
    prompt = make_prompt(byte_tokenizer())
    text_rows(
        articles, prompt, TextConfig(min_tokens=8, target_tokens=16), 64, 192, seed, 0, report
    )
    found = {reason.removeprefix("text: skipped, "): n for reason, n in report.counts.items()}
    wrong = []
    if found != dict(expected) or len(articles) != good:
        wrong.append(f"text of seed {seed}: {found} for {dict(expected)}, {len(articles)}")

    def read(most: float) -> None:
        list(load_articles(str(folder), DataReport(), most))

    return wrong + stops(read, expected, rows)


def stops(read: Callable[[float], object], expected: Counter[str], rows: int) -> list[str]:
    """Whether reading stops where the bad share is above the largest allowed one, naming each
    reason.
    """
    try:
        read(0.4 * expected.total() / rows)
    except DataError as error:
        missing = [reason for reason in expected if reason not in str(error)]
        told = "--config.data.max_dropped=" in str(error) and len(missing) < len(expected)
        return [] if told else [f"does not say {missing}: {error}"]
    return ["reads on above the largest share"]

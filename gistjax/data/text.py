"""Objectives on plain text, to learn compression from before there are questions.

A chunk of an article is the context. Its rows ask for what only the chunk can tell:

    reconstruction   repeat the text after a given beginning (Ge et al. 2024, arXiv:2307.06945)
    continuation     go on after the chunk (Chevalier et al. 2023, arXiv:2305.14788)
    cloze            fill a blank in one of its sentences, put as a question (Taylor 1953)

The first two are cut by tokens and have no end token; a cloze ends like an answer.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from gistjax.config import TextConfig
from gistjax.data.example import TokenizedExample
from gistjax.data.filling import join
from gistjax.data.prompts import Prompt
from gistjax.data.report import DataReport, missing_keys
from gistjax.errors import DataError
from gistjax.runtime.texts import text_lines, unix_lines, user_path

REPEAT = "Repeat the text behind:"
CONTINUE = "Continue the text."
BLANK = "what"
CLOZE_WORDS = 14  # kept of the sentence on each side of the blank
BEGINNING = 6  # tokens that say where a reconstruction starts
NO_EXAMPLE = -1  # example index of a row that comes from no question
LONGEST_LINE = 2**24  # characters: a file may decompress to a thousand times its size
CHECK_EVERY = 1000  # lines
ARTICLES_TOGETHER, CHUNKS_TOGETHER = 256, 2048  # tokenised at once

_SENTENCE = re.compile(r"[^.!?\n]{25,}[.!?]?")
TARGETS = (
    re.compile(r"(?<=\s)(?:[A-Z][\w'’-]+)(?: (?:of |the |de |and )?[A-Z][\w'’-]+)*"),  # names
    re.compile(
        r"(?<=\s)[$£€]?\d[\d,.]*\d?%?(?!\w)(?: (?:million|billion|percent|[A-Z][a-z]+ \d{4}))?"
    ),
    re.compile(r"(?<=\s)[a-z][\w'’-]{4,}(?: [a-z][\w'’-]{4,}){0,2}"),  # other words
)
"""Places that are asked for: names, numbers, other words."""
_SHARES = (0.4, 0.25, 0.35)


@dataclass(frozen=True)
class Chunk:
    """A piece of an article: its tokens, its text, and the tokens after it."""

    ids: np.ndarray  # int32 [context tokens]
    text: str
    following_ids: np.ndarray  # int32, fewer at the article's end


def find_text(folder: str) -> list[Path]:
    """Return the `*.jsonl` and `*.jsonl.gz` files of a folder, sorted by name.

    Raises:
        DataError: if there are none.
    """
    path = user_path(folder)
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if not files:
        raise DataError(
            f"{path} is no folder with *.jsonl or *.jsonl.gz files, which --config.text.path "
            'takes, each line {"title": …, "paragraphs": ["…", …]}.'
        )
    return files


def load_articles(folder: str, report: DataReport, max_dropped: float = 1.0) -> Iterator[str]:
    """Yield the text of every article in a folder of `*.jsonl` or `*.jsonl.gz` files.

    Files come in the order of their names. Lines that are no `{"paragraphs": [text, …]}` are
    counted in the report and skipped. One line at a time is in memory.

    Args:
        max_dropped: largest share of a file's lines that may be skipped.

    Raises:
        DataError: if there are no such files, or one cannot be read, has too many bad lines or one
            of more than `LONGEST_LINE` characters.
    """
    for file in find_text(folder):
        try:
            with (
                gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream,
                text_lines(stream, "surrogateescape") as lines,
            ):
                yield from _articles(lines, file, report, max_dropped)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{file} cannot be read ({error}): is it damaged or cut short?"
            ) from error


def _articles(lines: IO[str], file: Path, report: DataReport, max_dropped: float) -> Iterator[str]:
    number = dropped = empty = 0
    while line := lines.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"line {number + 1} has more than {LONGEST_LINE} characters")
        number += 1
        if not line.strip():
            empty += 1
            continue
        text, problem, missing = _article(line)
        dropped += bool(problem)
        if problem:
            if missing and f"text: skipped, {problem}" not in report.counts:
                report.note(f"text, {file.name}:{number}: {missing}")
            report.count(f"text: skipped, {problem}", f"{file.name}:{number}")
        else:
            yield text
        if number % CHECK_EVERY == 0:
            report.check_dropped(str(file), dropped, number, max_dropped)
    if empty == number > 0:
        raise ValueError("all of its lines are empty")
    report.check_dropped(str(file), dropped, number, max_dropped)


def _article(line: str) -> tuple[str, str, str]:
    """Return the text of a line and twice "", or "", why it has none, and which key it lacks."""
    try:
        article = json.loads(line)
    except (ValueError, RecursionError):
        return "", "not JSON", ""
    if isinstance(article, dict) and "paragraphs" not in article:
        return "", "not an article", missing_keys(["paragraphs"], article)
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list) or not all(isinstance(p, str) for p in paragraphs):
        return "", "not an article", ""
    text = unix_lines(join([paragraph for paragraph in paragraphs if paragraph.strip()]))
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as such or left by bytes not UTF-8
        return "", "not valid Unicode", ""
    return text, "" if text else "no text", ""


def text_rows(
    articles: Iterable[str],
    prompt: Prompt,
    text: TextConfig,
    context_tokens: int,
    limit: int,
    seed: int,
    first_id: int,
    report: DataReport,
) -> list[TokenizedExample]:
    """Return the rows of the objectives that `text` asks for, chunk by chunk.

    Args:
        context_tokens: longest chunk.
        limit: longest question and answer together, in tokens.
        first_id: context id of the first chunk; the others follow.

    Raises:
        DataError: if no chunk is long enough, or no objective fits the limit.
    """
    chunks = cut_chunks(articles, prompt, text, context_tokens, seed)
    chunks = islice(chunks, text.chunks) if text.chunks >= 0 else chunks
    rows: list[TokenizedExample] = []
    count = 0
    while group := list(islice(chunks, CHUNKS_TOGETHER)):
        rows += _rows_of(group, prompt, text, limit, seed, first_id + count)
        count += len(group)
    if not rows:
        raise DataError(
            f"the text of --config.text.path gives no row: {count} chunks of {text.min_tokens} to "
            f"{context_tokens} tokens, with room for {limit} tokens of task. Lower "
            "--config.text.min_tokens, or add a larger bucket to --config.data.question_buckets."
        )
    tokens = sum(len(row.context_ids) for row in {row.context_id: row for row in rows}.values())
    report.note(f"text: {len(rows)} rows on {count} chunks, {tokens} tokens")
    return rows


def cut_chunks(
    articles: Iterable[str], prompt: Prompt, text: TextConfig, context_tokens: int, seed: int
) -> Iterator[Chunk]:
    """Cut each article into chunks of `min_tokens` to `context_tokens`, drawn by seed."""
    articles, rng = iter(articles), np.random.default_rng([seed, 2])
    while group := list(islice(articles, ARTICLES_TOGETHER)):
        for article, encoding in zip(group, prompt.encode_texts(group), strict=True):
            ids = np.asarray(encoding.ids, np.int32)
            start = 0
            while len(ids) - start >= text.min_tokens:
                end = min(start + int(rng.integers(text.min_tokens, context_tokens + 1)), len(ids))
                first, last = encoding.token_to_chars(start), encoding.token_to_chars(end - 1)
                words = article[first[0] : last[1]] if first and last else ""
                yield Chunk(ids[start:end], words, ids[end : end + text.target_tokens])
                start = end


def _rows_of(
    chunks: Sequence[Chunk], prompt: Prompt, text: TextConfig, limit: int, seed: int, first_id: int
) -> list[TokenizedExample]:
    """Return the rows of some chunks; clozes are tokenised all at once."""
    repeat_ids, continue_ids = prompt.enclose(REPEAT), prompt.encode_question(CONTINUE)
    n_repeat = min(text.target_tokens, limit - len(repeat_ids) - BEGINNING)
    n_continue = min(text.target_tokens, limit - len(continue_ids))
    rows: list[TokenizedExample] = []
    asked: list[tuple[Chunk, int, str, str]] = []
    for context_id, chunk in enumerate(chunks, first_id):
        rng = np.random.default_rng([seed, 3, context_id])
        if n_repeat > 0 and len(chunk.ids) > BEGINNING:
            for _ in range(text.reconstruction):
                question_ids, answer_ids = _repeat(chunk, prompt, repeat_ids, n_repeat, rng)
                rows.append(_row(chunk, context_id, question_ids, answer_ids, "reconstruction"))
        if n_continue > 0 and len(chunk.following_ids):
            following_ids = chunk.following_ids[:n_continue]
            row = _row(chunk, context_id, continue_ids, following_ids, "continuation")
            rows += [row] * text.continuation
        asked += [(chunk, context_id, *c) for c in cloze_questions(chunk.text, text.cloze, rng)]
    questions = prompt.encode_questions([question for *_, question, _ in asked])
    answers = prompt.encode_answers([answer for *_, answer in asked])
    for (chunk, context_id, *_), question_ids, answer_ids in zip(
        asked, questions, answers, strict=True
    ):
        if len(question_ids) + len(answer_ids) <= limit:
            rows.append(_row(chunk, context_id, question_ids, answer_ids, "cloze"))
    return [dataclasses.replace(row, prefix_ids=prompt.prefix_ids) for row in rows]


def _row(
    chunk: Chunk, context_id: int, question_ids: np.ndarray, answer_ids: np.ndarray, objective: str
) -> TokenizedExample:
    return TokenizedExample(chunk.ids, question_ids, answer_ids, context_id, NO_EXAMPLE, objective)


def _repeat(
    chunk: Chunk, prompt: Prompt, repeat_ids: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a question that names a beginning, and up to n tokens that follow it in the chunk.

    The beginning is in the chunk's own tokens.
    """
    n = min(n, len(chunk.ids) - BEGINNING)
    start = int(rng.integers(len(chunk.ids) - BEGINNING - n + 1))
    middle = start + BEGINNING
    split = len(repeat_ids) - len(prompt.question_close_ids)
    question_ids = [repeat_ids[:split], chunk.ids[start:middle], repeat_ids[split:]]
    return np.concatenate(question_ids), chunk.ids[middle : middle + n]


def cloze_questions(text: str, n: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield up to n pairs: a sentence with a name, number or other words left out, and those.

    The sentence reads like a question (`… was signed in what?`) and is shortened to the words
    around the blank.
    """
    sentences = _SENTENCE.findall(text)
    if not sentences:
        return
    for _ in range(n):
        sentence = sentences[int(rng.integers(len(sentences)))].strip()
        for kind in _prefer(rng):
            found = list(TARGETS[kind].finditer(sentence))
            if found:
                target = found[int(rng.integers(len(found)))]
                before = sentence[: target.start()].split()[-CLOZE_WORDS:]
                after = sentence[target.end() :].rstrip(" .!?")
                space = " " if after.startswith(" ") else ""
                after = space + " ".join(after.split()[:CLOZE_WORDS])
                yield " ".join([*before, BLANK]) + after + "?", target[0].rstrip(",.")
                break


def _prefer(rng: np.random.Generator) -> list[int]:
    """Return the kinds of target, a drawn one first."""
    first = int(rng.choice(len(TARGETS), p=_SHARES))
    return [first, *(kind for kind in range(len(TARGETS)) if kind != first)]

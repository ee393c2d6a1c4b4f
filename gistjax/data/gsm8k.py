"""The task of GSM8K's word problems: the problem's body is compressed, its last sentence asked.

A solution is reasoning and, behind `####`, a number: the last number of an answer is what is
scored. A problem of one sentence is compressed as a whole, and `WHOLE` asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from gistjax.config import DataConfig
from gistjax.data.sources import Hub, Source, find_file, line_files, read_file
from gistjax.data.tasks import Task

HUB = Hub("openai/gsm8k", "main", validation="test")
INSTRUCTION = "Solve the problem step by step. End with #### and the number that is the answer."
WHOLE = "What is the answer?"
SOLUTION_TOKENS = 320
"""Nearly all solutions of GSM8K are shorter; those that are longer are not trained on."""

_CALCULATION = re.compile(r"<<[^<>]*>>")
_LAST_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=\S)")


def read(data: DataConfig, split: str) -> Source:
    """Return the problems of a split, each cut before its last sentence.

    Raises:
        DataError: if they cannot be read.
    """
    source = read_problems(data, split)
    return Source(source.name, _cut_all(source.rows))


def read_problems(data: DataConfig, split: str) -> Source:
    """Return the problems of a split: whole as "question", with their solutions as "answers".

    Raises:
        DataError: if they cannot be read.
    """
    if data.path:
        official = ("test.jsonl",) if split == "validation" else ()
        about = "train.jsonl and validation.jsonl (or test.jsonl) of GSM8K"
        source = read_file(find_file(data, (*line_files(split), *official), about))
    else:
        source = HUB.rows(data, split)
    return Source(source.name, map(_problem, source.rows))


TASK = Task(
    read,
    instruction=INSTRUCTION,
    metric="number",
    answer_tokens=SOLUTION_TOKENS,
    folder="gsm8k",
    likelihood=True,
)


def body_and_question(problem: str) -> tuple[str, str]:
    """Return the sentences of a problem before the last one, and the last one."""
    ends = [match.end() for match in _LAST_SENTENCE.finditer(problem.strip())]
    if not ends:
        return problem.strip(), WHOLE
    return problem.strip()[: ends[-1]].strip(), problem.strip()[ends[-1] :]


def _cut_all(problems: Iterable[Any]) -> Iterator[Any]:
    for row in problems:
        if isinstance(row, dict) and isinstance(row["question"], str):
            body, question = body_and_question(row["question"])
            yield {**row, "context": body, "question": question}
        else:
            yield row


def _problem(row: Any) -> Any:
    """Return a problem with its solution, its calculator's marks `<<…>>` left out.

    The official file has the solution, with `#### number` at its end, as "answer"; other JSON Lines
    have "solution" and the number as "answer".
    """
    if not isinstance(row, dict):
        return row
    solution, answer = row.get("solution"), row.get("answer")
    if isinstance(solution, str) and isinstance(answer, str):
        solution = f"{solution}\n#### {answer}"
    else:
        solution = answer
    answers = [_CALCULATION.sub("", solution)] if isinstance(solution, str) else solution
    own_id = {"id": row["id"]} if "id" in row else {}
    return {**own_id, "question": row.get("question"), "answers": answers}

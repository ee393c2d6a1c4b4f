"""Tasks: what a model learns to write. Each is one module, named in `gistjax.config.TASKS`.

A task says where its rows come from, how the model is asked, which text is compressed, how long
texts may be and how answers are scored. Its module defines `TASK`:

    TASK = Task(read, instruction="Answer with a number.", metric="squad", answer_tokens=8)

`read` gives rows `{"context", "question", "answers"}`, and optionally "id" and "title". The text to
compress is the context; questions on equal contexts share one compression.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gistjax.config import TASKS, DataConfig
from gistjax.data.chat_template import CONTEXT, QUESTION
from gistjax.data.example import Example
from gistjax.data.prompts import INSTRUCTION, USER, Prompt, make_prompt
from gistjax.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Source(NamedTuple):
    """The rows of a split, as they were found, and the name that messages call them by."""

    name: str
    rows: Iterable[Any]


def _unchanged(example: Example) -> Example:
    return example


@dataclass(frozen=True)
class Task:
    """One kind of questions: its rows, its prompt, its limits, its metric.

    Answers of an extractive task are copied from the context. Others are not trained on, nor is a
    row whose answer is cut off with the end of a long context; all are scored against.
    """

    read: Callable[[DataConfig, str], Source]  # returns a split, `train` or `validation`
    instruction: str = INSTRUCTION  # the system turn
    user: str = USER  # the user's turn, with @CONTEXT@ and then @QUESTION@ in it
    metric: str = "squad"  # a name in `gistjax.evaluation.metrics.METRICS`
    extractive: bool = False
    unanswerable: bool = False  # a question without a gold answer is scored: right is an empty one
    context_tokens: int | None = None  # longest context, if less than `data.context_tokens`
    answer_tokens: int | None = None  # longest answer, if less than `data.answer_tokens`
    transform: Callable[[Example], Example] = _unchanged  # applied to examples that are drawn

    def __post_init__(self) -> None:
        _, context, rest = self.user.partition(CONTEXT)
        if not context or QUESTION not in rest:
            raise ConfigError(
                f"the user's turn of a task must have {CONTEXT} and then {QUESTION} in it, not "
                f"{self.user!r}."
            )

    def prompt(self, tokenizer: PreTrainedTokenizerFast) -> Prompt:
        """Return the tokenizer's chat template around this task's instruction."""
        return make_prompt(tokenizer, self.instruction, self.user)

    def limit(self, data: DataConfig) -> DataConfig:
        """Return the configuration with lengths lowered to this task's."""
        return dataclasses.replace(
            data,
            context_tokens=min(data.context_tokens, self.context_tokens or data.context_tokens),
            answer_tokens=min(data.answer_tokens, self.answer_tokens or data.answer_tokens),
        )


def load_task(name: str) -> Task:
    """Return a task of the registry.

    Raises:
        ConfigError: if there is none of that name, or its module does not define it.
    """
    if name not in TASKS:
        raise ConfigError(f"data.task cannot be {name!r}{did_you_mean(name, TASKS)}")
    task = getattr(importlib.import_module(TASKS[name]), "TASK", None)
    if not isinstance(task, Task):
        raise ConfigError(f"{TASKS[name]}, the module of task {name!r}, defines no TASK = Task(…).")
    return task

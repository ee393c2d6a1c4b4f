"""Tasks: what a model learns to write. Each is one module, named in `gistjax.config.TASKS`.

A task says where its rows come from, how the model is asked, which text is compressed, how long
texts may be and how answers are scored. Its module defines `TASK`:

    TASK = Task(read, instruction="Answer with a number.", metric="squad", answer_tokens=8)

`read` gives rows `{"context", "question", "answers"}`, and optionally "id" and "title". The text to
compress is the context; questions on equal contexts share one compression.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gistjax.config import TASKS, CompressionConfig, DataConfig
from gistjax.data.chat_template import CONTEXT, QUESTION
from gistjax.data.example import Example
from gistjax.data.prompts import INSTRUCTION, USER, Prompt, make_prompt
from gistjax.data.sources import Source
from gistjax.errors import ConfigError, DataError, did_you_mean
from gistjax.runtime.texts import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _unchanged(example: Example) -> Example:
    return example


@dataclass(frozen=True)
class Task:
    """One kind of questions: its rows, its prompt, its limits, its metric.

    Answers of an extractive task are copied from the context, but for `other_answers`. What is
    neither is not trained on, nor is a row whose answer is cut off with the end of a long context;
    all are scored against.
    """

    read: Callable[[DataConfig, str], Source]  # returns a split, `train` or `validation`
    instruction: str = INSTRUCTION  # the system turn
    user: str = USER  # the user's turn, with @CONTEXT@ and then @QUESTION@ in it
    metric: str = "squad"  # a name in `gistjax.evaluation.metrics.METRICS`
    extractive: bool = False
    other_answers: tuple[str, ...] = ()  # of an extractive task, such as yes and no
    unanswerable: bool = False  # a question without a gold answer is scored: right is an empty one
    abstention: str = ""  # what is trained to be written then; empty: they are not trained on
    trains: bool = True  # else it is for evaluation only
    context_tokens: int | None = None  # longest context, if less than `data.context_tokens`
    answer_tokens: int | None = None  # longest answer; None: `data.answer_tokens`
    transform: Callable[[Example], Example] = _unchanged  # applied to examples that are drawn
    folder: str = ""  # of its files in a mixture's `data.path`; empty: the task's name
    likelihood: bool = False  # its score is near 0 for small models: say how likely golds are too

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
        """Return the configuration with the lengths of this task."""
        return dataclasses.replace(
            data,
            context_tokens=min(data.context_tokens, self.context_tokens or data.context_tokens),
            answer_tokens=self.answer_tokens or data.answer_tokens,
        )

    def check_trains(self, name: str, data: DataConfig) -> None:
        """Refuse training that the task does not allow, or for which its answers are too long.

        Raises:
            ConfigError: naming the task and what to change.
        """
        if not self.trains and data.holdout:
            raise ConfigError(
                f"the task {name!r} is for evaluation only, so none of it can be held out from "
                "training: leave --config.data.holdout at 0."
            )
        if not self.trains:
            raise ConfigError(
                f"the task {name!r} is for evaluation only: train on another --config.data.task, "
                "or set --config.data.train_examples=0."
            )
        longest, bucket = self.answer_tokens or 0, max(data.question_buckets)
        if longest >= bucket:
            raise ConfigError(
                f"answers of the task {name!r} have up to {longest} tokens, and the largest of "
                f"--config.data.question_buckets, {bucket}, holds question and answer: add a "
                f"larger one, such as {longest + 128}."
            )


def load_task(name: str) -> Task:
    """Return a task of the registry.

    Raises:
        ConfigError: if there is none of that name, or its module is missing or does not define it.
    """
    if name not in TASKS:
        raise ConfigError(f"data.task cannot be {name!r}{did_you_mean(name, TASKS)}")
    try:
        task = getattr(importlib.import_module(TASKS[name]), "TASK", None)
    except ImportError as error:
        raise ConfigError(
            f"task {name!r} cannot be imported ({error}): {TASKS[name]} must be a module that "
            "Python finds, here and wherever the run is evaluated or asked."
        ) from error
    if not isinstance(task, Task):
        raise ConfigError(f"{TASKS[name]}, the module of task {name!r}, defines no TASK = Task(…).")
    return task


PACKAGED = ("sample", "facts")
"""Values of `data.path` that are no folder."""


def each_task(data: DataConfig) -> dict[str, DataConfig]:
    """Return the configuration of each task alone: with its own folder, in a mixture."""
    if not data.mixture:
        return {data.task: data}
    parts = {}
    for name in data.mixture:
        path = data.path
        if path and path not in PACKAGED:
            path = str(user_path(path) / (load_task(name).folder or name))
        parts[name] = dataclasses.replace(data, task=name, tasks={}, path=path)
    return parts


@contextlib.contextmanager
def told_of(task: str) -> Iterator[None]:
    """Put the name of a mixture's task before the errors that its data or settings cause."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"data.tasks.{task}: {error}") from error


def written_tokens(config: CompressionConfig) -> int:
    """Return how many tokens an answer may have when it is written: as many as its task's."""
    own = (load_task(name).answer_tokens or 0 for name in config.data.task_names)
    return max(config.evaluation.max_answer_tokens, *own)

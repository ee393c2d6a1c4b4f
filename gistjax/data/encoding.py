"""Examples as token ids: contexts cut or filled, what does not fit counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gistjax.config import CONTEXTS, DataConfig
from gistjax.data.example import Articles, Buckets, Dataset, Example, TokenizedExample
from gistjax.data.filling import Filler, join
from gistjax.data.mixture import first_contexts
from gistjax.data.prompts import Prompt
from gistjax.data.report import DataReport
from gistjax.data.tasks import each_task, load_task, told_of
from gistjax.errors import ConfigError, DataError

NO_ANSWER = np.zeros(0, np.int32)


def encode_splits(
    dataset: Dataset, prompt: Prompt, data: DataConfig, seed: int
) -> tuple[list[TokenizedExample], list[TokenizedExample], DataReport]:
    """Return training rows, validation rows and a report of what was cut.

    There is a validation row without answer for each validation example, in order. Training
    examples that do not fit the configured lengths, or those of the task, are left out.

    Raises:
        ConfigError: if the buckets cannot hold `context_tokens` or the prompt.
        DataError: if examples were asked for and no training row is left.
    """
    if dataset.parts:
        return _encode_parts(dataset, prompt, data, seed)
    check_buckets(prompt, data)
    data = load_task(data.task).limit(data)
    report = dataset.report + DataReport()
    train = _encode_train(
        _encode(dataset.train, dataset.train_articles, prompt, data, seed), prompt, data, report
    )
    validation = _encode_validation(
        _encode(dataset.validation, dataset.validation_articles, prompt, data, seed),
        prompt,
        data,
        report,
    )
    if dataset.train and not train:
        raise DataError(f"no training question fits the configured token limits:\n{report}")
    return train, validation, report


def _encode_parts(
    dataset: Dataset, prompt: Prompt, data: DataConfig, seed: int
) -> tuple[list[TokenizedExample], list[TokenizedExample], DataReport]:
    """Return the rows of a mixture, those of each task under its own prompt and limits."""
    train, validation, report = list[TokenizedExample](), list[TokenizedExample](), DataReport()
    tasks, firsts = each_task(data), first_contexts(dataset.parts)
    for (name, part), first in zip(dataset.parts.items(), firsts, strict=True):
        own_prompt = load_task(name).prompt(prompt.tokenizer)
        with told_of(name):
            *splits, own_report = encode_splits(part, own_prompt, tasks[name], seed)
        for rows, own_rows, first_id in zip((train, validation), splits, first, strict=True):
            rows += [
                replace(row, context_id=row.context_id + first_id, task=name) for row in own_rows
            ]
        report += own_report.of(name)
    return train, validation, report


def check_buckets(prompt: Prompt, data: DataConfig) -> None:
    """Refuse buckets that cannot hold `context_tokens`, or a question in its prompt.

    Raises:
        ConfigError: naming the buckets.
    """
    C, S = Buckets.of(data).largest
    if data.context_tokens > C:
        raise ConfigError(
            f"the largest of --config.data.context_buckets, {C}, is less than context_tokens = "
            f"{data.context_tokens}: add a bucket, or lower context_tokens."
        )
    if data.context not in CONTEXTS:
        raise ConfigError(
            f"--config.data.context is {data.context!r}: take 'paragraph', 'filled' or 'varied'."
        )
    around = len(prompt.encode_question(""))
    if around >= S:
        raise ConfigError(
            f"the prompt around a question takes {around} tokens, as many as the largest of "
            f"--config.data.question_buckets, {S}: add a larger bucket."
        )


@dataclass(frozen=True)
class _Context:
    """A context as the model gets it."""

    ids: np.ndarray  # [context tokens]
    kept_text: str
    gold_cut: bool  # the example's own paragraph is not whole


@dataclass(frozen=True)
class _Encoded:
    """An example with its context and question as ids, nothing left out yet."""

    example: Example
    context: _Context
    question_ids: np.ndarray

    def holds_evidence(self, n: int | None = None) -> bool:
        """Return whether the context still has one of the first n texts that are needed."""
        evidence = self.example.evidence[:n]
        return not evidence or any(text in self.context.kept_text for text in evidence)

    def row(self, index: int, answer_ids: np.ndarray, prompt: Prompt) -> TokenizedExample:
        """Return the row of these ids."""
        return TokenizedExample(
            self.context.ids,
            self.question_ids,
            answer_ids,
            self.example.context_id,
            index,
            prefix_ids=prompt.prefix_ids,
        )


def _encode(
    examples: Sequence[Example], articles: Articles, prompt: Prompt, data: DataConfig, seed: int
) -> list[_Encoded]:
    contexts = _encode_contexts(examples, articles, prompt, data, seed)
    questions = prompt.encode_questions([example.question for example in examples])
    return [
        _Encoded(example, contexts[example.context_id], question_ids)
        for example, question_ids in zip(examples, questions, strict=True)
    ]


def _encode_train(
    encoded: Sequence[_Encoded], prompt: Prompt, data: DataConfig, report: DataReport
) -> list[TokenizedExample]:
    answers = prompt.encode_answers([one.example.answers[0] for one in encoded])
    longest = max(data.question_buckets)
    rows = []
    for index, (one, answer_ids) in enumerate(zip(encoded, answers, strict=True)):
        name = one.example.id
        if one.context.gold_cut:
            report.count("train: truncated contexts", name)
        if not one.holds_evidence(1):
            report.count("train: skipped, answers cut off", name)
        elif len(answer_ids) > data.answer_tokens:
            report.count("train: skipped, answers too long", name)
        elif len(one.question_ids) + len(answer_ids) > longest:
            report.count("train: skipped, questions too long", name)
        else:
            rows.append(one.row(index, answer_ids, prompt))
    return rows


def _encode_validation(
    encoded: Sequence[_Encoded], prompt: Prompt, data: DataConfig, report: DataReport
) -> list[TokenizedExample]:
    longest = max(data.question_buckets)
    rows = []
    for index, one in enumerate(encoded):
        name = one.example.id
        if one.context.gold_cut:
            report.count("validation: truncated contexts", name)
        if not one.holds_evidence():
            report.count("validation: answers cut off, still scored", name)
        if len(one.question_ids) > longest:
            report.count("validation: questions shortened to fit, still scored", name)
            shortened = prompt.encode_question(one.example.question, longest)
            one = _Encoded(one.example, one.context, shortened)
        rows.append(one.row(index, NO_ANSWER, prompt))
    return rows


def _encode_contexts(
    examples: Sequence[Example], articles: Articles, prompt: Prompt, data: DataConfig, seed: int
) -> dict[int, _Context]:
    """Encode each distinct context once; return them by `context_id`."""
    distinct = list({example.context_id: example for example in examples}.values())
    if data.context != "paragraph":
        texts, gold_ends, limits = _filled(distinct, articles, prompt, data, seed)
    else:
        texts = [example.context for example in distinct]
        gold_ends = [len(text) for text in texts]
        limits = [data.context_tokens] * len(texts)
    encoded = prompt.encode_contexts(texts, limits)
    return {
        example.context_id: _Context(ids, text[:kept], kept < gold_end)
        for example, text, gold_end, (ids, kept) in zip(
            distinct, texts, gold_ends, encoded, strict=True
        )
    }


def _filled(
    examples: Sequence[Example], articles: Articles, prompt: Prompt, data: DataConfig, seed: int
) -> tuple[list[str], list[int], list[int]]:
    """Return filled texts; of each where its gold paragraph ends, and the tokens to cut it at."""
    paragraphs = list(dict.fromkeys(p for ps in articles.values() for p in ps))
    tokens = dict(zip(paragraphs, prompt.count_tokens(paragraphs), strict=True))
    filler = Filler(articles, tokens, data.context_tokens, seed, data.context == "varied")
    texts, gold_ends, limits = [], [], []
    for example in examples:
        order, gold = filler.order(example.context, example.title, example.context_id)
        texts.append(join(order))
        gold_ends.append(len(join(order[: gold + 1])))
        limits.append(filler.length(example.context, example.context_id))
    return texts, gold_ends, limits

"""Examples as token ids: contexts cut or filled, rows that do not fit reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gistjax.config import DataConfig
from gistjax.data.example import Articles, Dataset, Example, TokenizedExample
from gistjax.data.filling import Filler, join
from gistjax.data.prompts import Prompt
from gistjax.data.report import DataReport
from gistjax.errors import ConfigError, DataError


def encode_splits(
    dataset: Dataset, prompt: Prompt, data: DataConfig, seed: int
) -> tuple[list[TokenizedExample], list[TokenizedExample], DataReport]:
    """Training rows, validation rows (one for each example, in order, without answers), and what
    was cut.

    Raises:
        ConfigError: if the buckets cannot hold `context_tokens` or the prompt.
        DataError: if examples were asked for and no training row is left.
    """
    check_buckets(prompt, data)
    report = dataset.report + DataReport()
    train = _encode_train(dataset.train, dataset.train_articles, prompt, data, seed, report)
    rows = _encode_validation(
        dataset.validation, dataset.validation_articles, prompt, data, seed, report
    )
    if dataset.train and not train:
        raise DataError(f"no training question fits the configured token limits:\n{report}")
    return train, rows, report


def check_buckets(prompt: Prompt, data: DataConfig) -> None:
    """Refuses buckets that cannot hold `context_tokens`, or a question in its prompt.

    Raises:
        ConfigError: naming the buckets.
    """
    if max(data.context_buckets) < data.context_tokens:
        raise ConfigError(
            f"the largest of --config.data.context_buckets, {max(data.context_buckets)}, is less "
            f"than context_tokens = {data.context_tokens}: add a bucket, or lower context_tokens."
        )
    if data.context not in ("paragraph", "filled"):
        raise ConfigError(
            f"--config.data.context is {data.context!r}: take 'paragraph' or 'filled'."
        )
    around = len(prompt.encode_question(""))
    if max(data.question_buckets) <= around:
        raise ConfigError(
            f"the prompt around a question takes {around} tokens, as many as the largest of "
            f"--config.data.question_buckets, {max(data.question_buckets)}: add a larger bucket."
        )


def _encode_train(
    examples: Sequence[Example],
    articles: Articles,
    prompt: Prompt,
    data: DataConfig,
    seed: int,
    report: DataReport,
) -> list[TokenizedExample]:
    contexts = _encode_contexts(examples, articles, prompt, data, seed)
    questions = prompt.encode_questions([example.question for example in examples])
    answers = prompt.encode_answers([example.answers[0] for example in examples])
    rows = []
    for index, (example, question_ids, answer_ids) in enumerate(
        zip(examples, questions, answers, strict=True)
    ):
        context = contexts[example.context_id]
        if context.gold_cut:
            report.count("train: truncated contexts", example.id)
        if example.in_context[0] not in context.kept_text:
            report.count("train: skipped, answers cut off", example.id)
        elif len(answer_ids) > data.answer_tokens:
            report.count("train: skipped, answers too long", example.id)
        elif len(question_ids) + len(answer_ids) > max(data.question_buckets):
            report.count("train: skipped, questions too long", example.id)
        else:
            rows.append(
                TokenizedExample(context.ids, question_ids, answer_ids, example.context_id, index)
            )
    return rows


def _encode_validation(
    examples: Sequence[Example],
    articles: Articles,
    prompt: Prompt,
    data: DataConfig,
    seed: int,
    report: DataReport,
) -> list[TokenizedExample]:
    contexts = _encode_contexts(examples, articles, prompt, data, seed)
    limit = max(data.question_buckets)
    no_answer = np.zeros(0, np.int32)
    questions = prompt.encode_questions([example.question for example in examples])
    rows = []
    for index, (example, question_ids) in enumerate(zip(examples, questions, strict=True)):
        context = contexts[example.context_id]
        if context.gold_cut:
            report.count("validation: truncated contexts", example.id)
        if not any(answer in context.kept_text for answer in example.in_context):
            report.count("validation: answers cut off, still scored", example.id)
        if len(question_ids) > limit:
            report.count("validation: questions shortened to fit, still scored", example.id)
            question_ids = prompt.encode_question(example.question, limit)
        rows.append(
            TokenizedExample(context.ids, question_ids, no_answer, example.context_id, index)
        )
    return rows


@dataclass(frozen=True)
class _Context:
    ids: np.ndarray
    kept_text: str
    gold_cut: bool


def _encode_contexts(
    examples: Sequence[Example], articles: Articles, prompt: Prompt, data: DataConfig, seed: int
) -> dict[int, _Context]:
    """Each distinct context once, by `context_id`."""
    distinct = list({example.context_id: example for example in examples}.values())
    if data.context == "filled":
        texts, gold_ends = _filled(distinct, articles, prompt, data.context_tokens, seed)
    else:
        texts = [example.context for example in distinct]
        gold_ends = [len(text) for text in texts]
    encoded = prompt.encode_contexts(texts, data.context_tokens)
    return {
        example.context_id: _Context(ids, text[:kept], kept < gold_end)
        for example, text, gold_end, (ids, kept) in zip(
            distinct, texts, gold_ends, encoded, strict=True
        )
    }


def _filled(
    examples: Sequence[Example], articles: Articles, prompt: Prompt, budget: int, seed: int
) -> tuple[list[str], list[int]]:
    """Filled texts, and for each the character where its gold paragraph ends."""
    paragraphs = list(dict.fromkeys(p for ps in articles.values() for p in ps))
    tokens = dict(zip(paragraphs, prompt.count_tokens(paragraphs), strict=True))
    filler = Filler(articles, tokens, budget, seed)
    texts, gold_ends = [], []
    for example in examples:
        order, gold = filler.order(example.context, example.title, example.context_id)
        texts.append(join(order))
        gold_ends.append(len(join(order[: gold + 1])))
    return texts, gold_ends

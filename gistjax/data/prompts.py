"""Token ids of examples: prefix · context (or slots) · question · answer, as the tokenizer's chat
template has it.

The template is rendered once around markers and split at them, so that each piece is tokenised
alone: the same context has the same ids whatever is asked about it, and its ids can give way to
slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import jinja2
import numpy as np

from gistjax.config import DataConfig
from gistjax.data.filling import Filler, join
from gistjax.data.report import DataReport
from gistjax.data.squad import Articles, Example, Squad
from gistjax.errors import ConfigError, DataError, WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INSTRUCTION = "Answer the question with a short phrase copied from the context."
CONTEXT, QUESTION, ANSWER = "@CONTEXT@", "@QUESTION@", "@ANSWER@"
USER = f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"
PLAIN = f"{INSTRUCTION}\n\n{USER}\nAnswer:"
DATE = "26 Jul 2024"  # templates that name today's date get this one, so that prompts never change


TASKS = ("answer", "reconstruction", "continuation", "cloze")
"""What a row asks for: an answer to a question, or one of the tasks on plain text (`data.text`)."""


@dataclass(frozen=True)
class TokenizedExample:
    """An example as int32 ids. Rows that share a context share its array."""

    context_ids: np.ndarray  # [context tokens]
    question_ids: np.ndarray  # [question tokens], the template up to the answer included
    answer_ids: np.ndarray  # [answer tokens], end token included; empty if only to be answered
    context_id: int
    example_index: int
    task: str = "answer"  # one of TASKS


@dataclass(frozen=True)
class Prompt:
    """A tokenizer with its chat template cut into pieces."""

    tokenizer: PreTrainedTokenizerFast
    prefix_ids: tuple[int, ...]  # up to the context
    question_open_ids: tuple[int, ...]  # between context and question
    question_close_ids: tuple[int, ...]  # from the question to the answer
    question_lead: str  # white space that is tokenised with the question's first word
    answer_lead: str  # the same for the answer
    end_id: int
    pad_id: int

    @cached_property
    def sha256(self) -> str:
        """Of all that turns texts into ids: vocabulary and template."""
        pieces = (self.prefix_ids, self.question_open_ids, self.question_close_ids, self.end_id)
        leads = (self.question_lead, self.answer_lead)
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((pieces, leads, vocabulary)).encode()).hexdigest()

    def encode_context(self, text: str) -> np.ndarray:
        """Context ids `[C]`, not cut."""
        return _int32(self.encode_texts([text])[0].ids)

    def encode_texts(self, texts: Sequence[str]) -> list[Any]:
        """Encodings by the fast tokenizer: `ids`, and where each token stands in its text.

        A special token that is spelled out in a user's text stays plain text. Of transformers' call only what it sets is
        taken over: it makes lists of masks and types that nobody reads.
        """
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if not backend.encode_special_tokens:
            backend.encode_special_tokens = True
        return backend.encode_batch(list(texts), add_special_tokens=False)

    def encode_questions(self, questions: Sequence[str]) -> list[np.ndarray]:
        """Question ids `[S]` of each, with the template around them."""
        encodings = self.encode_texts([self.question_lead + text.strip() for text in questions])
        return [
            _int32([*self.question_open_ids, *encoding.ids, *self.question_close_ids])
            for encoding in encodings
        ]

    def encode_answers(self, answers: Sequence[str]) -> list[np.ndarray]:
        """Answer ids `[A]` of each, end token included."""
        encodings = self.encode_texts([self.answer_lead + text.strip() for text in answers])
        return [_int32([*encoding.ids, self.end_id]) for encoding in encodings]

    def encode_question(self, question: str, limit: int | None = None) -> np.ndarray:
        """Question ids `[S]` with the template around them; with a limit, the question is cut at
        its end to fit.
        """
        ids = self.encode_questions([question])[0]
        excess = len(ids) - limit if limit is not None else 0
        if excess <= 0:
            return ids
        close = len(ids) - len(self.question_close_ids)
        cut = max(close - excess, len(self.question_open_ids))
        return np.concatenate([ids[:cut], ids[close:]])

    def encode_answer(self, answer: str) -> np.ndarray:
        """Answer ids `[A]`, end token included."""
        return self.encode_answers([answer])[0]

    def encode(self, example: Example, index: int = 0) -> TokenizedExample:
        """A whole example with its first gold answer, nothing cut."""
        return TokenizedExample(
            self.encode_context(example.context),
            self.encode_question(example.question),
            self.encode_answer(example.answers[0]),
            example.context_id,
            index,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text alone."""
        return [len(encoding.ids) for encoding in self.encode_texts(texts)]

    def encode_contexts(self, texts: Sequence[str], limit: int) -> list[tuple[np.ndarray, int]]:
        """For each text its first `limit` ids `[C]`, and how many characters of the text they
        cover.
        """
        result = []
        for text, encoding in zip(texts, self.encode_texts(texts), strict=True):
            ids, kept = encoding.ids, len(text)
            if len(ids) > limit:
                ids, kept = ids[:limit], (encoding.token_to_chars(limit - 1) or (0, 0))[1]
            result.append((_int32(ids), kept))
        return result


def make_prompt(tokenizer: PreTrainedTokenizerFast) -> Prompt:
    """Cuts the tokenizer's chat template, or a plain one where it has none.

    Raises:
        WeightsError: if the template fails or loses the question or the context, or no end token is known.
    """
    if tokenizer.chat_template:
        try:
            text, answer_lead, end_text = _render_chat(tokenizer)
        except (
            Exception
        ) as error:  # a template is a program, in Jinja's sandbox: it may raise anything
            raise WeightsError(
                f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} fails "
                f"({type(error).__name__}: {error}): give it another chat_template, or none."
            ) from error
    else:
        text, answer_lead, end_text = _bos(tokenizer) + PLAIN, " ", ""
    prefix, found_context, rest = text.partition(CONTEXT)
    middle, found_question, close = rest.partition(QUESTION)
    if not (found_context and found_question):
        raise WeightsError(
            "the tokenizer's chat template does not repeat the user's message, so gistjax cannot "
            "tell where the context goes: give it another chat_template, or none."
        )
    question_open = middle.rstrip(" ")
    return Prompt(
        tokenizer,
        prefix_ids=_template_ids(tokenizer, prefix),
        question_open_ids=_template_ids(tokenizer, question_open),
        question_close_ids=_template_ids(tokenizer, close),
        question_lead=middle[len(question_open) :],
        answer_lead=answer_lead,
        end_id=_end_id(tokenizer, end_text),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


def _template_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Ids of a piece of the template: here special tokens are what they spell."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()


def _render_chat(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    """The rendered prompt, the white space before an answer, and the text that ends it."""
    turns = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": USER}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=True)
    except jinja2.TemplateError:  # the template knows no system turn
        turns = [{"role": "user", "content": f"{INSTRUCTION}\n\n{USER}"}]
        text = _render(tokenizer, turns, add_generation_prompt=True)
    answered = _render(tokenizer, [*turns, {"role": "assistant", "content": ANSWER}])
    if not answered.startswith(text):
        return text, "", ""
    lead, _, end = answered[len(text) :].partition(ANSWER)
    return text, lead, end


def _render(
    tokenizer: PreTrainedTokenizerFast,
    turns: list[dict[str, str]],
    add_generation_prompt: bool = False,
) -> str:
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
    )
    return cast(str, text)


def _bos(tokenizer: PreTrainedTokenizerFast) -> str:
    """The begin token, if the tokenizer puts one before a text."""
    first = tokenizer("a").input_ids[0]
    return tokenizer.bos_token if first == tokenizer.bos_token_id else ""


def _end_id(tokenizer: PreTrainedTokenizerFast, end_text: str) -> int:
    """The special token that ends an assistant's turn, else the tokenizer's end of text."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in _template_ids(tokenizer, end_text):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            "the tokenizer names no end token: set eos_token in tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def encode_splits(
    squad: Squad, prompt: Prompt, data: DataConfig, seed: int
) -> tuple[list[TokenizedExample], list[TokenizedExample], DataReport]:
    """Training rows, validation rows (one for each example, in order, without answers), and what
    was cut.

    Raises:
        ConfigError: if the buckets cannot hold `context_tokens` or the prompt.
        DataError: if examples were asked for and no training row is left.
    """
    check_buckets(prompt, data)
    report = squad.report + DataReport()
    train = _encode_train(squad.train, squad.train_articles, prompt, data, seed, report)
    rows = _encode_validation(
        squad.validation, squad.validation_articles, prompt, data, seed, report
    )
    if squad.train and not train:
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


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)

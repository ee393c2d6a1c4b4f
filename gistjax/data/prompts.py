"""The prompt, as the tokenizer's chat template has it: prefix · context · question · answer.

The template is rendered once around markers and split at them, so that each piece is tokenised
alone: a context has the same ids whatever is asked about it, and slots can take their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import jinja2
import numpy as np

from gistjax.data.example import Example, TokenizedExample
from gistjax.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INSTRUCTION = "Answer the question with a short phrase copied from the context."
CONTEXT, QUESTION, ANSWER = "@CONTEXT@", "@QUESTION@", "@ANSWER@"
USER = f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"
DATE = "26 Jul 2024"  # templates that name today's date get this one, so that prompts never change


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
        """Hash of all that turns texts into ids: vocabulary and template."""
        pieces = (self.prefix_ids, self.question_open_ids, self.question_close_ids, self.end_id)
        leads = (self.question_lead, self.answer_lead)
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((pieces, leads, vocabulary)).encode()).hexdigest()

    def encode_context(self, text: str) -> np.ndarray:
        """Return context ids `[C]`, not cut."""
        return _int32(self.encode_texts([text])[0].ids)

    def encode_texts(self, texts: Sequence[str]) -> list[Any]:
        """Return encodings by the fast tokenizer: `ids`, and each token's place in its text.

        A special token that is spelled out in a user's text stays plain text. The backend is called
        directly because transformers would also make lists of masks and types.
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
        """Return the ids `[S]` of each question, with the template around them."""
        encodings = self.encode_texts([self.question_lead + text.strip() for text in questions])
        return [
            _int32([*self.question_open_ids, *encoding.ids, *self.question_close_ids])
            for encoding in encodings
        ]

    def encode_answers(self, answers: Sequence[str]) -> list[np.ndarray]:
        """Return the ids `[A]` of each answer, end token included."""
        encodings = self.encode_texts([self.answer_lead + text.strip() for text in answers])
        return [_int32([*encoding.ids, self.end_id]) for encoding in encodings]

    def encode_question(self, question: str, limit: int | None = None) -> np.ndarray:
        """Return question ids `[S]` with the template around them.

        Args:
            limit: most ids; the question is cut at its end to fit.
        """
        ids = self.encode_questions([question])[0]
        excess = len(ids) - limit if limit is not None else 0
        if excess <= 0:
            return ids
        close = len(ids) - len(self.question_close_ids)
        cut = max(close - excess, len(self.question_open_ids))
        return np.concatenate([ids[:cut], ids[close:]])

    def encode_answer(self, answer: str) -> np.ndarray:
        """Return answer ids `[A]`, end token included."""
        return self.encode_answers([answer])[0]

    def encode(self, example: Example, index: int = 0) -> TokenizedExample:
        """Return the row of a whole example with its first gold answer, nothing cut."""
        return TokenizedExample(
            self.encode_context(example.context),
            self.encode_question(example.question),
            self.encode_answer(example.answers[0]),
            example.context_id,
            index,
            prefix_ids=self.prefix_ids,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text alone."""
        return [len(encoding.ids) for encoding in self.encode_texts(texts)]

    def encode_contexts(self, texts: Sequence[str], limit: int) -> list[tuple[np.ndarray, int]]:
        """Return for each text its first `limit` ids `[C]`, and the characters that they cover."""
        result = []
        for text, encoding in zip(texts, self.encode_texts(texts), strict=True):
            ids, kept = encoding.ids, len(text)
            if len(ids) > limit:
                ids, kept = ids[:limit], (encoding.token_to_chars(limit - 1) or (0, 0))[1]
            result.append((_int32(ids), kept))
        return result


def make_prompt(
    tokenizer: PreTrainedTokenizerFast, instruction: str = INSTRUCTION, user: str = USER
) -> Prompt:
    """Cut the tokenizer's chat template, or a plain one where it has none.

    Args:
        instruction: the system turn; where the template has none, the user's turn begins with it.
        user: the user's turn, with @CONTEXT@ and then @QUESTION@ in it.

    Raises:
        WeightsError: if the template fails or loses the question or the context, or no end token
            is known.
    """
    text, answer_lead, end_text = _render_prompt(tokenizer, instruction, user)
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


def _render_prompt(
    tokenizer: PreTrainedTokenizerFast, instruction: str, user: str
) -> tuple[str, str, str]:
    """Return the rendered prompt, the white space before an answer, and the text that ends it."""
    if not tokenizer.chat_template:
        return f"{_bos(tokenizer)}{instruction}\n\n{user}\nAnswer:", " ", ""
    try:
        return _render_chat(tokenizer, instruction, user)
    except Exception as error:  # a template is a program, and may raise anything
        raise WeightsError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} fails "
            f"({type(error).__name__}: {error}): give it another chat_template, or none."
        ) from error


def _template_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Return the ids of a piece of the template, in which special tokens are special."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()


def _render_chat(
    tokenizer: PreTrainedTokenizerFast, instruction: str, user: str
) -> tuple[str, str, str]:
    turns = [{"role": "system", "content": instruction}, {"role": "user", "content": user}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=True)
    except jinja2.TemplateError:  # the template knows no system turn
        turns = [{"role": "user", "content": f"{instruction}\n\n{user}"}]
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
    """Return the begin token, if the tokenizer puts one before a text."""
    first = tokenizer("a").input_ids[0]
    return str(tokenizer.bos_token) if first == tokenizer.bos_token_id else ""


def _end_id(tokenizer: PreTrainedTokenizerFast, end_text: str) -> int:
    """Return the special token that ends an assistant's turn, else the end of text."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in _template_ids(tokenizer, end_text):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            "the tokenizer names no end token: set eos_token in tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)

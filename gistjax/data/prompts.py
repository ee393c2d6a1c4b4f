"""The prompt, as the tokenizer's chat template has it: prefix · context · question · answer.

The template is rendered once around markers and cut at three places: before the context and behind
it, since slots take its place and it is compressed before its question is known, and before the
answer, which the model writes. Each piece has the ids that it has in the whole prompt, unless a
token reaches over a cut. There both training and answering have the tokens of the pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from gistjax.data.chat_template import CONTEXT, PROBE, QUESTION, Rendered, fill, render
from gistjax.data.example import Example, TokenizedExample
from gistjax.data.pieces import Encoded, PieceEncoder, Places
from gistjax.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INSTRUCTION = "Answer the question with a short phrase copied from the context."
NOT_IN_TEXT = "not in the text"
"""What a model says to a question that the context does not answer, if its task trains that."""
USER = f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"


@dataclass(frozen=True)
class Around:
    """The template around a question, and the encoder of the text in it."""

    encoder: PieceEncoder
    open_ids: tuple[int, ...]  # up to the last added token before the question; mostly none
    before: str  # from there to the question
    after: str  # from the question to the next added token
    close_ids: tuple[int, ...]  # from there to the answer


@dataclass(frozen=True)
class Prompt:
    """A tokenizer with its chat template cut into pieces."""

    tokenizer: PreTrainedTokenizerFast
    contexts: PieceEncoder
    around: Around
    answers: PieceEncoder
    prefix_ids: tuple[int, ...]  # up to the context
    question_open_ids: tuple[int, ...]  # between context and question, cut there
    question_close_ids: tuple[int, ...]  # from the question to the answer, cut there
    question_lead: str  # spaces that are tokenised with the question's first word
    answer_lead: str  # the same for the answer
    end_id: int  # ends the answers that are trained on
    pad_id: int
    other_end_ids: tuple[int, ...] = ()  # end an answer too

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer; the first is the one that is trained on."""
        return (self.end_id, *(token for token in self.other_end_ids if token != self.end_id))

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

    def encode_texts(self, texts: Sequence[str]) -> Sequence[Encoding | Encoded]:
        """Return encodings of texts that stand where the context does: `ids`, and their places.

        A special token that is spelled out in a user's text stays plain text.
        """
        return self.contexts.encode(texts)

    def encode_questions(self, questions: Sequence[str]) -> list[np.ndarray]:
        """Return the ids `[S]` of each question, with the template around them."""
        around = self.around
        texts = [around.before + question.strip() + around.after for question in questions]
        return [
            _int32([*around.open_ids, *encoding.ids, *around.close_ids])
            for encoding in around.encoder.encode(texts)
        ]

    def encode_answers(self, answers: Sequence[str]) -> list[np.ndarray]:
        """Return the ids `[A]` of each answer, end token included."""
        encodings = self.answers.encode([self.answer_lead + text.strip() for text in answers])
        return [_int32([*encoding.ids, self.end_id]) for encoding in encodings]

    def enclose(self, question: str) -> np.ndarray:
        """Return the ids `[S]` of a question that is to be changed, cut from the template."""
        [encoding] = self.around.encoder.encode([self.question_lead + question.strip()])
        return _int32([*self.question_open_ids, *encoding.ids, *self.question_close_ids])

    def encode_question(self, question: str, limit: int | None = None) -> np.ndarray:
        """Return question ids `[S]` with the template around them.

        Args:
            limit: most ids; the question is cut at its end to fit.
        """
        ids = self.encode_questions([question])[0]
        if limit is None or len(ids) <= limit:
            return ids
        ids = self.enclose(question)
        close = len(ids) - len(self.question_close_ids)
        cut = max(close - max(len(ids) - limit, 0), len(self.question_open_ids))
        return np.concatenate([ids[:cut], ids[close:]])

    def encode_answer(self, answer: str) -> np.ndarray:
        """Return answer ids `[A]`, end token included."""
        return self.encode_answers([answer])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Return an answer's ids as text, without special tokens and white space around it."""
        return decode(self.tokenizer, ids, skip_special_tokens=True).strip()

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

    def encode_contexts(
        self, texts: Sequence[str], limits: Sequence[int]
    ) -> list[tuple[np.ndarray, int]]:
        """Return for each text its first ids `[C]`, and the characters that they cover.

        Args:
            limits: most ids of each.
        """
        result = []
        for text, encoding, limit in zip(texts, self.encode_texts(texts), limits, strict=True):
            ids, kept = encoding.ids, len(text)
            if len(ids) > limit:
                ids, kept = ids[:limit], (encoding.token_to_chars(limit - 1) or (0, 0))[1]
            result.append((_int32(ids), kept))
        return result


def decode(
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int] | np.ndarray,
    skip_special_tokens: bool = False,
) -> str:
    """Return ids as the text that they stand for.

    Nothing in it is "cleaned up", as some tokenizers ask: that takes spaces out of answers.
    """
    return str(
        tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    )


def make_prompt(
    tokenizer: PreTrainedTokenizerFast, instruction: str = INSTRUCTION, user: str = USER
) -> Prompt:
    """Cut the tokenizer's chat template, or a plain one where it has none.

    Args:
        instruction: the system turn; where the template has none, the user's turn begins with it.
        user: the user's turn, with @CONTEXT@ and then @QUESTION@ in it.

    Raises:
        WeightsError: if the template fails or loses a turn, the tokenizer cannot be cut, or no end
            token is known.
    """
    rendered = render(tokenizer, instruction, user)
    start_ids = () if tokenizer.chat_template else _start_ids(tokenizer)
    for keep_space in (False, True):
        places = Places(tokenizer, keep_space)
        prompt = _cut(tokenizer, rendered, places, start_ids)
        if _joins(prompt, start_ids + _template_ids(places.start, fill(rendered.text))):
            return prompt
    raise WeightsError(
        f"{tokenizer.name_or_path or 'the tokenizer'} changes a text where it is cut, so gistjax "
        "cannot compress a part of it: use a base with another tokenizer."
    )


def _cut(
    tokenizer: PreTrainedTokenizerFast,
    rendered: Rendered,
    places: Places,
    start_ids: tuple[int, ...],
) -> Prompt:
    prefix, _, rest = rendered.text.partition(CONTEXT)
    middle, _, close = rest.partition(QUESTION)
    question_open = middle.rstrip(" ")
    opened, before = places.start.last_section(middle)
    encoder = places.behind if opened else places.within
    after, closed = places.start.sections(close)
    return Prompt(
        tokenizer,
        contexts=places.after(prefix),
        around=Around(
            encoder,
            open_ids=_template_ids(places.within, opened),
            before=before,
            after=after,
            close_ids=_template_ids(places.start, closed),
        ),
        answers=places.after(close),
        prefix_ids=start_ids + _template_ids(places.start, prefix),
        question_open_ids=_template_ids(places.within, question_open),
        question_close_ids=_template_ids(places.within, close),
        question_lead=middle[len(question_open) :],
        answer_lead=rendered.answer_lead,
        end_id=_end_id(tokenizer, _template_ids(places.within, rendered.end)),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


def _joins(prompt: Prompt, whole_ids: Sequence[int]) -> bool:
    """Return whether the pieces of the filled prompt spell what the ids of the whole spell."""
    context_ids = prompt.encode_context(PROBE[CONTEXT])
    question_ids = prompt.encode_question(PROBE[QUESTION])
    pieces = [*prompt.prefix_ids, *context_ids.tolist(), *question_ids.tolist()]
    return _spelling(prompt.tokenizer, pieces) == _spelling(prompt.tokenizer, whole_ids)


def _spelling(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Return the tokens of ids side by side; unknown ones, which may stand for several, once."""
    unknown = tokenizer.unk_token_id
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    joined: list[str] = []
    for token, index in zip(tokens, ids, strict=True):
        if index != unknown or joined[-1:] != [token]:
            joined.append(token)
    return "".join(joined)


def _template_ids(encoder: PieceEncoder, text: str) -> tuple[int, ...]:
    """Return the ids of a piece of the template, in which special tokens are special."""
    return tuple(encoder.encode([text], special=True)[0].ids) if text else ()


def _start_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts before a text by itself."""
    own = tokenizer("a", add_special_tokens=False).input_ids
    ids: list[int] = tokenizer("a").input_ids
    starts = [i for i in range(len(ids)) if ids[i : i + len(own)] == own]
    return tuple(ids[: starts[0]]) if starts else ()


def _end_id(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> int:
    """Return the special token that ends an assistant's turn, else the end of text."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in end_ids:
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            "the tokenizer names no end token: set eos_token in tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _int32(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)

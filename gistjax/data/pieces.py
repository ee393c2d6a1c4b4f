"""Pieces of a prompt, each tokenised alone into the ids that it has within the whole.

A text that is cut must not be changed by the cut. Many tokenizers put a space before each text that
they are given: normalizers with `Prepend` (Llama 2's kind), `Metaspace` pre-tokenizers (the scheme
`always`, or `first`), `ByteLevel` with `add_prefix_space`. Within a text there is none, so a copy
of the tokenizer without that step encodes what stands there. Behind an added token a new section
begins, which has the space again, except in the scheme `first`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Step = dict[str, Any]
"""A normalizer or pre-tokenizer, as in tokenizer.json."""


@dataclass(frozen=True)
class Encoded:
    """Ids of a text, and the characters of each."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def token_to_chars(self, index: int) -> tuple[int, int]:
        """Return where a token begins and ends in the text."""
        return self.spans[index]


class PieceEncoder:
    """Encodes texts that stand in one kind of place.

    Args:
        first: encodes a text up to the first added token in it.
        rest: encodes what follows, which begins with an added token.
        added: all added tokens by id, special or not.
    """

    def __init__(self, first: Tokenizer, rest: Tokenizer, added: Mapping[int, str]):
        self._first, self._rest, self._added = first, rest, added

    def encode(self, texts: Sequence[str], special: bool = False) -> Sequence[Encoding | Encoded]:
        """Return the encodings of texts: `ids`, and `token_to_chars` for each token's place.

        Args:
            special: special tokens that are spelled out are special, as in a template; by default
                they are plain text.
        """
        encodings = _encode_batch(self._first, texts, special)
        if self._first is self._rest:
            return encodings
        return [
            self._from_added(text, encoding, special)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _from_added(self, text: str, encoding: Encoding, special: bool) -> Encoding | Encoded:
        place = next((start for start, _ in self._found(text, encoding)), None)
        if place is None:
            return encoding
        [left] = _encode_batch(self._first, [text[:place]], special)
        [right] = _encode_batch(self._rest, [text[place:]], special)
        moved = [(start + place, end + place) for start, end in right.offsets]
        return Encoded(left.ids + right.ids, left.offsets + moved)

    def _found(self, text: str, encoding: Encoding) -> Iterator[tuple[int, int]]:
        """Yield the characters of each added token; not of bytes, which fall back to such ids."""
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            content = self._added.get(token)
            if content and text[start:end].strip().lower() == content.strip().lower():
                yield start, end

    def sections(self, text: str) -> tuple[str, str]:
        """Return a template's text before its first added token, and the text from there on."""
        [encoding] = _encode_batch(self._first, [text], special=True)
        place = next((start for start, _ in self._found(text, encoding)), len(text))
        return text[:place], text[place:]

    def last_section(self, text: str) -> tuple[str, str]:
        """Return a template's text up to its last added token, and what follows."""
        [encoding] = _encode_batch(self._first, [text], special=True)
        place = max((end for _, end in self._found(text, encoding)), default=0)
        return text[:place], text[place:]


class Places:
    """The encoders of one tokenizer: for its start, within a text, and behind an added token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, keep_space: bool = False):
        """Make the encoders.

        Args:
            keep_space: the space before each text belongs to its first word, cut or not, as where
                words are split at white space before it is added.
        """
        whole = tokenizer.backend_tokenizer
        if getattr(whole.model, "dropout", None):
            whole.model.dropout = None  # drawn tokens are for the training of a base
        added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
        within = whole if keep_space else _copy(whole, _without_space)
        behind = whole if keep_space else _copy(whole, _without_first_space)
        self.start = PieceEncoder(whole, whole, added)
        self.within = PieceEncoder(within, whole, added)
        self.behind = PieceEncoder(behind, whole, added)

    def after(self, text: str) -> PieceEncoder:
        """Return the encoder of what follows a template's text."""
        _, section = self.start.last_section(text)
        return self.behind if text and not section else self.within


def _encode_batch(backend: Tokenizer, texts: Sequence[str], special: bool) -> list[Encoding]:
    # The backend is called directly because transformers would also make lists of masks and types
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens == special:
        backend.encode_special_tokens = not special
    return backend.encode_batch(list(texts), add_special_tokens=False)


def _copy(backend: Tokenizer, edit: Callable[[Step], Step | None]) -> Tokenizer:
    """Return a tokenizer whose steps are edited; the same one if that changes nothing."""
    changed = _edited(backend, edit)
    if not changed:
        return backend
    return Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), **changed}))


def _edited(backend: Tokenizer, edit: Callable[[Step], Step | None]) -> dict[str, Any]:
    """Return those of a tokenizer's `normalizer` and `pre_tokenizer` that an edit changes."""
    changed: dict[str, Any] = {}
    for name in ("normalizer", "pre_tokenizer"):
        component = getattr(backend, name)
        if component is not None:
            step = json.loads(component.__getstate__())
            after = _edit(step, edit)
            if after != step:
                changed[name] = after
    return changed


def _edit(step: Step, edit: Callable[[Step], Step | None]) -> Step | None:
    """Return a step as edited, inside sequences too; None if it is to be left out."""
    for members in ("normalizers", "pretokenizers"):
        if members in step:
            edited = [_edit(member, edit) for member in step[members]]
            return {**step, members: [member for member in edited if member is not None]}
    return edit(step)


def _without_space(step: Step) -> Step | None:
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def _without_first_space(step: Step) -> Step | None:
    return _without_space(step) if step.get("prepend_scheme") == "first" else step

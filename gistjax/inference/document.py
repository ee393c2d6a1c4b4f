"""A compressed text: asked as often as one likes, kept in a file, opened again without the text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import jax
import numpy as np

from gistjax.compress.context import CompressedContext, DecodeState
from gistjax.data.tasks import written_tokens
from gistjax.errors import DataError
from gistjax.evaluation.metrics import abstains
from gistjax.experiment.confidence import Confidence
from gistjax.inference import document_file, transformers_file
from gistjax.inference.recent import Recent
from gistjax.model.kv_cache import Kept
from gistjax.runtime.sharding import replicated
from gistjax.runtime.texts import user_path

if TYPE_CHECKING:
    from gistjax.inference.engine import Engine

QUESTION_TOKENS = (64, 128, 256, 512)
"""Lengths that questions are padded to, each a compilation."""

KEPT_STATES = 2
"""Decode states that a document keeps, one for each length of questions asked last."""


@dataclass(frozen=True)
class Answer:
    """An answer, how sure the model is of it, and its cost."""

    text: str  # empty if it is withheld, or says that the context has no answer
    positions: int  # slots, entries a KV head or (full context) tokens in place of the context
    seconds: float  # its share of those that were asked together; compilation not counted
    tokens: int  # generated, the one that ends the answer included
    score: float  # if calibrated the chance that what was written is right, else its probability
    calibrated: bool
    written: str  # what the model wrote, withheld or not

    @property
    def abstained(self) -> bool:
        """Whether there is no answer."""
        return not self.text

    @property
    def seconds_per_token(self) -> float:
        """Seconds a generated token, reading the question included."""
        return self.seconds / self.tokens


class AnswerIds(NamedTuple):
    """An answer as tokens."""

    ids: list[int]  # without the token that ends it
    n_tokens: int  # generated, that one included
    log_probability: float  # of all that were generated
    seconds: float


@dataclass(eq=False)
class Document:
    """A text as its slots, or as what is kept of its entries, ready for questions."""

    engine: Engine
    context: CompressedContext  # one row, numpy arrays
    tokens: int  # of the text
    pieces: int  # compressed one by one, if the text is longer than contexts in training
    seconds: float  # to compress, and to be read before a question; 0 if opened from a file
    refined: int = 0  # steps on its entries
    coded: document_file.Stored | None = None  # of slots in few bits, which are read as numbers
    _states: Recent[DecodeState] = field(default_factory=lambda: Recent(KEPT_STATES), repr=False)
    _kept: Kept | None = field(default=None, repr=False)  # on the device, once for all states

    def __repr__(self) -> str:
        what = "entries a KV head" if self.engine.config.selects else "slots"
        bits, steps = self.stored().bits, self.refined
        rounded = f", in {bits} bits" if bits else ""
        refined = f", refined in {steps} steps" if steps else ""
        return f"Document({self.tokens} tokens in {self.slots} {what}{rounded}{refined})"

    @property
    def slots(self) -> int:
        """Number of slots that stand for the text, or of entries a KV head, on average."""
        return int(self.context.slots_B[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the slots or entries, as a file keeps them."""
        return self.stored().nbytes

    @property
    def resident_bytes(self) -> int:
        """Bytes that they take in memory to be read: of entries as packed as in the file."""
        return self.context.resident_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes in memory: `resident_bytes`, and what was read of them for questions so far."""
        read = self._states.values() if self._kept is None else self._kept
        sizes: list[int] = [x.nbytes for x in jax.tree.leaves(read)]
        return self.resident_bytes + sum(sizes)

    @overload
    def ask(self, question: str, threshold: float | None = None) -> Answer: ...

    @overload
    def ask(
        self, question: list[str] | tuple[str, ...], threshold: float | None = None
    ) -> list[Answer]: ...

    def ask(
        self, question: str | list[str] | tuple[str, ...], threshold: float | None = None
    ) -> Answer | list[Answer]:
        """Answer a question, or a list of them at once; the text is not read again.

        Args:
            threshold: withhold an answer whose chance of being right is below.

        Raises:
            ConfigError: if the threshold is not in 0..1, or the compressor has no calibration.
            DataError: if a question is empty, too long or no text.
        """
        asked = question if isinstance(question, list | tuple) else [question]
        for one in asked:
            if not isinstance(one, str):
                kind = type(one).__name__
                raise DataError(
                    f"the question must be a text (str) or a list of texts, not {kind}."
                )
        answers = self.engine.ask([(self, one) for one in asked], threshold)
        return answers if asked is question else answers[0]

    def answer_of(self, answer: AnswerIds, confidence: Confidence) -> Answer:
        """Return an answer in words, withheld where confidence says so."""
        text = self.engine.pretrained.prompt.decode(answer.ids)
        score = float(confidence.scores(answer.log_probability))
        withheld = confidence.withholds(score) or abstains(text, self.engine.abstention)
        return Answer(
            "" if withheld else text,
            self.slots,
            answer.seconds,
            answer.n_tokens,
            score,
            confidence.calibration is not None,
            written=text,
        )

    def check_question(self, question: str) -> None:
        """Refuse a question that is too long.

        Raises:
            DataError: by how much.
        """
        self.question_size(len(self.engine.pretrained.prompt.encode_question(question)))

    def question_size(self, tokens: int) -> int:
        """Return the length that a question is padded to.

        Raises:
            DataError: if it is longer than any, or than the positions that the context leaves.
        """
        if tokens > QUESTION_TOKENS[-1]:
            raise DataError(
                f"the question has {tokens} tokens, more than {QUESTION_TOKENS[-1]}: shorten it, "
                "or put what it tells into the context."
            )
        taken = int(np.ceil(self.context.length_B[0]))
        left = self.engine.positions - taken
        if tokens > left:
            raise DataError(
                f"the question has {tokens} tokens, and {self.engine.config.model.known_as} has "
                f"room for {left} behind this context: shorten one of them."
            )
        return next(size for size in QUESTION_TOKENS if size >= tokens)

    def state(self, size: int) -> DecodeState:
        """Return prompt and context as read, with room for a question of a length and an answer."""

        def read() -> DecodeState:
            room = size + written_tokens(self.engine.config)
            if self._kept is None and self.context.kept is not None:
                mesh = self.engine.pretrained.mesh
                self._kept = jax.device_put(self.context.kept, replicated(mesh))
            context = replace(self.context, kept=self._kept)
            state, seconds = self.engine.programs.prefill(context, room)
            self.seconds += seconds
            return state

        return self._states.get(size, read)

    def stored(self, bits: int | None = None) -> document_file.Stored:
        """Return slots or entries as a file holds them.

        Args, Raises:
            as `save`.
        """
        if self.coded and bits in (None, self.coded.bits):
            return self.coded  # rounding them again would change them
        return document_file.stored(self.context, bits)

    def save(self, file: str | Path, bits: int | None = None) -> int:
        """Write slots or entries as safetensors; only the compressor that made them can read them.

        Args:
            bits: 8, 4, 3 or 2, of each number of slots or entries; as they are unless given: what
                was compressed or opened in few bits stays in these.

        Returns:
            The file's size in bytes.

        Raises:
            ConfigError: if there are no such bits.
            DataError: if a number is not finite, or too large to be in few bits.
            StorageError: if the disk is full or fails.
        """
        return document_file.write(user_path(file), self.stored(bits), self._about())

    def describe(self, bits: int | None = None) -> dict[str, int]:
        """Return the bytes of each part of the file that `save` writes, in all those of the file.

        `keys` and `values` (soft tokens: `vectors`), `scales` of what is in few bits, `tables` of
        positions, or of how many entries each KV head keeps, and the file's `header`.

        Args:
            bits: as in `save`.

        Raises:
            ConfigError, DataError: as `save`.
        """
        return document_file.bytes_by_part(self.stored(bits), self._about())

    def to_transformers(self, file: str | Path) -> int:
        """Write the text as transformers asks it, in PyTorch (`sharing/transformers_reader.py`).

        Unlike a saved document it has the prompt before the text, and all numbers in the base's
        dtype. Slots and whole contexts are written too, as keys and values.

        Returns:
            The file's size in bytes.

        Raises:
            ExportError: if the base's tokenizer cannot give questions the tokens that they have
                here.
            StorageError: if the disk is full or fails.
        """
        engine = self.engine
        tokens = written_tokens(engine.config)
        prompt = transformers_file.prompt_of(engine.pretrained.prompt, tokens)
        state, _ = engine.programs.prefill(self.context, 0)
        file = user_path(file)
        about = {**engine.origin(), "adapter": str(int(engine.config.lora.rank > 0))}
        return transformers_file.write(file, state, self.context, prompt, about)

    def _about(self) -> document_file.About:
        origin = self.engine.origin()
        return document_file.About(self.tokens, self.pieces, **origin, refined=self.refined)

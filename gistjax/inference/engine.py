"""A trained compressor at work: compress a text once, ask about it as often as you like.

import gistjax

reader = gistjax.load()                       # the compressor of the repository; or load("runs/qa_r4")
memory = reader.compress("The mill was built in 1783 by Anneke Dursel. …")      # or compress(text, ratio=8)
print(memory.ask("Who built the mill?").text)
memory.save("mill.safetensors")
memory = reader.open("mill.safetensors")      # later, without the text
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext, DecodeState, join
from gistjax.compress.decoding import continue_greedily
from gistjax.config import CompressionConfig
from gistjax.data.splitting import cut_text
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.experiment.base import PretrainedBase, model_on, untuned_full_context
from gistjax.experiment.evaluator import load_trained
from gistjax.experiment.run_dir import EXPORTED, SHIPPED, check_meaning, load_config, ratio_problem
from gistjax.model.kv_cache import Cache
from gistjax.runtime.files import sha256_of
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.training.step import split_model
from gistjax.validation import validate

QUESTION_TOKENS = (64, 128, 256, 512)
"""Lengths that questions are padded to, each a compilation."""

LEAST_POSITIONS = 64
"""Contexts and memories are padded to this, or twice, four times … as much."""

CHARACTERS_A_TOKEN = 32
"""More than any text has on average: what is longer need not be tokenised to be too long."""


@dataclass(frozen=True)
class Answer:
    """An answer, and what it took. Seconds are without compilation."""

    text: str
    positions: int  # slots (or, in full context, tokens) that stood in place of the context
    seconds: float


def load(run: str | Path = SHIPPED, config: CompressionConfig | None = None) -> Engine:
    """The compressor of a run directory, in front of its base.

    Args:
        run: holds `config.json` and `compressor.safetensors`.
        config: the run's configuration with another `model.path`, by default its own.

    Raises:
        GistjaxError: if there is no such run, it was not trained for `config.ratio`, or its base cannot be had or is
            another one.
    """
    run, trained = Path(run), load_config(Path(run))
    config = config or trained
    validate(config)
    check_meaning(config, trained)
    if config.ratio != trained.ratio and (problem := ratio_problem(trained, config.ratio)):
        raise ConfigError(problem)
    pretrained, weights = load_trained(run, config)
    return Engine(config, pretrained, weights, sha256_of(run / EXPORTED))


class Engine:
    """A model that reads a text once and answers questions about it: from slots, or from the text itself.

    Args:
        foundation: base, tokenizer and prompt.
        weights: structure, trained leaves and frozen leaves.
        compressor: SHA-256 of the exported compressor, which saved memories name; empty for the base alone.
    """

    def __init__(
        self,
        config: CompressionConfig,
        pretrained: PretrainedBase,
        weights: tuple[Any, ...],
        compressor: str,
    ):
        graphdef, *self._weights = weights
        self._graphdef = graphdef
        self.config, self.compressor, self.pretrained = config, compressor, pretrained
        self._compiled: dict[Any, Callable[..., Any]] = {}
        max_tokens, end_id = config.evaluation.max_answer_tokens, pretrained.prompt.end_id

        def compress(
            weights: Any, ids_1xC: Array, length_1: Array, ratio: float
        ) -> CompressedContext:
            model = nnx.merge(graphdef, *weights)
            if model.compressor is not None:
                model.compressor.ratio = ratio
            return model.compress(ids_1xC, length_1)

        def read(weights: Any, memory: CompressedContext, room: int) -> DecodeState:
            return nnx.merge(graphdef, *weights).prefill(memory, room)

        def answer(weights: Any, reading: DecodeState, tokens_1xS: Array, length_1: Array) -> Array:
            model = nnx.merge(graphdef, *weights)
            last_1x1 = length_1[:, None] - 1
            h_1x1xD, reading = model.ask(tokens_1xS, reading, last_1x1, length_1)
            return continue_greedily(model, h_1x1xD[:, 0], reading, max_tokens, end_id)

        self._compress = jax.jit(compress, static_argnums=3)
        self._answer = jax.jit(answer)
        self._read = jax.jit(read, static_argnums=2)

    def model(self) -> CompressedLM:
        """Base, adapter and compressor as one module."""
        return nnx.merge(self._graphdef, *self._weights)

    def full_context(self) -> Engine:
        """The same base, untuned, which reads the text itself: what compression is to be compared with."""
        config = untuned_full_context(self.config)
        weights = split_model(model_on(config, self.pretrained))
        return Engine(config, self.pretrained, weights, "")

    @property
    def trained_tokens(self) -> int:
        """The longest context that the compressor was trained on; longer texts are compressed in pieces."""
        return self.config.data.context_tokens

    @property
    def max_tokens(self) -> int:
        """The longest text that fits the base's positions with a question and its answer."""
        around = len(self.pretrained.prompt.prefix_ids) + self.config.evaluation.max_answer_tokens
        return self.pretrained.source.config.max_positions - around - QUESTION_TOKENS[0]

    def compress(self, text: str, ratio: float | None = None) -> Document:
        """Reads a text once.

        Args:
            ratio: context tokens a slot, within those that the compressor was trained with; by default `config.ratio`.

        Raises:
            ConfigError: if the compressor was not trained with such a ratio.
            DataError: if the text is empty or no text, or longer than the base can hold.
        """
        if ratio is not None and (problem := ratio_problem(self.config, ratio)):
            raise ConfigError(problem)
        ratio = ratio or self.config.ratio
        prompt, limit = self.pretrained.prompt, self.max_tokens
        check_text(text, "context")
        too_long = len(text) > CHARACTERS_A_TOKEN * limit
        pieces = [] if too_long else cut_text(text, prompt, self.trained_tokens)
        tokens = sum(map(len, pieces))
        if too_long or tokens > limit:
            found = f"{len(text)} characters" if too_long else f"{tokens} tokens"
            raise DataError(
                f"the context has {found}, but {self.config.model.name} reads at most {limit} tokens: "
                "ask about a part of it."
            )
        if len(pieces) > 1 and self.config.slot_form == "key_values":
            raise DataError(
                f"the context has {tokens} tokens; slots kept as keys and values hold at most "
                f"{self.trained_tokens}: ask about a part of it, or train a compressor with "
                "--config.slot_form=soft_tokens."
            )
        memories, seconds = [], 0.0
        for ids in pieces:
            size = self._padded(len(ids))
            ids_1xC = np.pad(ids, (0, size - len(ids)))[None]
            length_1 = np.asarray([len(ids)], np.int32)
            memory, spent = self._timed(self._compress, ids_1xC, length_1, static=(ratio,))
            memories.append(jax.device_get(memory))
            seconds += spent
        memory = memories[0]
        if len(memories) > 1:
            memory = join(memories, _power(sum(int(m.slots_B[0]) for m in memories)))
        return Document(self, memory, tokens, len(pieces), seconds)

    def _padded(self, length: int) -> int:
        """C of the smallest shape that holds a context."""
        return min(_power(length), max(self.trained_tokens, length))

    def open(self, file: str | Path) -> Document:
        """What `CompressedText.save` wrote.

        Raises:
            CheckpointError: if the file is missing or damaged, or of another compressor.
        """
        file = Path(file)
        arrays, metadata = load_tensors(file)
        if metadata.get("format") != "gistjax-memory":
            raise CheckpointError(
                f"{file} holds no compressed text: give a file that `save` wrote."
            )
        if metadata.get("compressor") != self.compressor:
            raise CheckpointError(
                f"{file} was made by another compressor (SHA-256 {metadata.get('compressor', '')[:12]}…, this is "
                f"{self.compressor[:12]}…): load that one, or compress the text again."
            )
        try:
            memory = self._memory(arrays)
            tokens, pieces = int(metadata["tokens"]), int(metadata["pieces"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is no whole compressed text ({type(error).__name__}: {error}): compress the text again."
            ) from error
        return Document(self, memory, tokens, pieces, 0.0)

    def _memory(self, arrays: dict[str, np.ndarray]) -> CompressedContext:
        """Of the arrays that `save` wrote."""
        kv = None
        if "k" in arrays:
            k, v = arrays.pop("k"), arrays.pop("v")
            stacked = self.config.model.scan_layers
            kv = Cache(k, v) if stacked else Cache(tuple(k), tuple(v))
        return CompressedContext(kv=kv, **arrays)  # type: ignore[arg-type]  # numpy's are taken too

    def _timed(
        self, function: Any, *arguments: Any, static: tuple[Any, ...] = ()
    ) -> tuple[Any, float]:
        """The result, and the seconds it took; compiled before, once for each shape."""
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
        key = (function, shapes, static)
        if key not in self._compiled:
            self._compiled[key] = function.lower(self._weights, *arguments, *static).compile()
        start = time.perf_counter()
        result = jax.block_until_ready(self._compiled[key](self._weights, *arguments))
        return result, time.perf_counter() - start


@dataclass
class Document:
    """A text as its slots, ready for questions."""

    reader: Engine
    memory: CompressedContext  # one row, numpy arrays
    tokens: int  # of the text
    pieces: int  # compressed one by one, since the text is longer than contexts in training
    seconds: float  # to compress, and to read the slots before the first question; 0 if opened from a file
    _readings: dict[int, DecodeState] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"CompressedText({self.tokens} tokens in {self.slots} slots)"

    @property
    def slots(self) -> int:
        """Slots that stand for the text."""
        return int(self.memory.slots_B[0])

    def ask(self, question: str) -> Answer:
        """Answers one question; the text is not read again.

        Raises:
            DataError: if the question is empty, too long or no text.
        """
        ids, seconds = self.answer_ids(question)
        text = str(self.reader.pretrained.tokenizer.decode(ids, skip_special_tokens=True))
        return Answer(text.strip(), self.slots, seconds)

    def answer_ids(self, question: str) -> tuple[list[int], float]:
        """The answer's tokens, without the end token, and the seconds they took."""
        reader = self.reader
        prompt = reader.pretrained.prompt
        check_text(question, "question")
        ids = prompt.encode_question(question)
        size = next((size for size in QUESTION_TOKENS if size >= len(ids)), None)
        if size is None:
            raise DataError(
                f"the question has {len(ids)} tokens, more than {QUESTION_TOKENS[-1]}: shorten it, or put "
                "what it tells into the context."
            )
        left = reader.max_tokens + QUESTION_TOKENS[0] - int(np.ceil(self.memory.length_B[0]))
        if len(ids) > left:
            raise DataError(
                f"the question has {len(ids)} tokens, and {reader.config.model.name} has room for {left} behind this "
                "context: shorten one of them."
            )
        if size not in self._readings:
            room = size + reader.config.evaluation.max_answer_tokens
            self._readings[size], seconds = reader._timed(reader._read, self.memory, static=(room,))
            self.seconds += seconds
        tokens_1xS = np.pad(ids, (0, size - len(ids)))[None]
        length_1 = np.asarray([len(ids)], np.int32)
        answer_1xA, seconds = reader._timed(
            reader._answer, self._readings[size], tokens_1xS, length_1
        )
        ids_A = answer_1xA[0].tolist()
        end = ids_A.index(prompt.end_id) if prompt.end_id in ids_A else len(ids_A)
        return ids_A[:end], seconds

    def save(self, file: str | Path) -> None:
        """Writes the slots as safetensors, with the SHA-256 of the compressor that alone can read them.

        Raises:
            StorageError: if the disk is full or fails.
        """
        arrays = {
            name: getattr(self.memory, name)
            for name in ("x_BxXxD", "valid_BxX", "cut_BxX", "position_BxX", "length_B", "slots_B")
        }
        if self.memory.kv is not None:
            arrays |= {name: np.stack(getattr(self.memory.kv, name)) for name in ("k", "v")}
        metadata = {
            "format": "gistjax-memory",
            "compressor": self.reader.compressor,
            "tokens": str(self.tokens),
            "pieces": str(self.pieces),
        }
        save_tensors(Path(file), arrays, metadata)


def check_text(text: object, what: str) -> None:
    """Whether a context or a question, `what` it is, can be tokenised.

    Raises:
        DataError: if it is empty, no `str`, or holds what UTF-8 cannot, such as the bytes of another encoding.
    """
    if not isinstance(text, str):
        kind = type(text).__name__
        raise DataError(f"the {what} must be one text (str), not {kind}.")
    if not text.strip():
        raise DataError(f"the {what} is empty.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} is no UTF-8 text ({error.reason} at character {error.start}): convert it first."
        ) from error


def _power(length: int) -> int:
    size = LEAST_POSITIONS
    while size < length:
        size *= 2
    return size

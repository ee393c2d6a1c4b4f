"""A trained compressor at work: compress a text once, ask about it as often as you like.

import gistjax

engine = gistjax.load()  # the compressor that comes with gistjax; or load("runs/qa_r4")
document = engine.compress("The mill was built in 1783 by Anneke Dursel.")  # ratio=8, bits=4
print(document.ask("Who built the mill?").text)
document.save("mill.safetensors")
document = engine.open("mill.safetensors")  # later, without the text
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from gistjax.compress.budget import Budget, keeping_all
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext, join
from gistjax.compress.kept import join_kept, row_of
from gistjax.compress.learned import repeats
from gistjax.compress.parameters import split_model
from gistjax.compress.refiner import Refiner
from gistjax.config import CompressionConfig
from gistjax.data.splitting import Cut, cut_text
from gistjax.data.tasks import load_task, written_tokens
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.experiment.base import (
    PretrainedBase,
    build_model,
    in_use,
    load_trained,
    repeat_ids,
    untuned_full_context,
)
from gistjax.experiment.confidence import Calibration, read_calibration
from gistjax.experiment.hub import locate
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference import asking, document_file
from gistjax.inference.batches import in_batches
from gistjax.inference.document import QUESTION_TOKENS, Answer, Document
from gistjax.inference.document_file import power_of_two
from gistjax.inference.pool import Pool
from gistjax.inference.programs import Programs
from gistjax.inference.recent import Recent
from gistjax.inference.text import pieces_of
from gistjax.runtime.files import sha256_of
from gistjax.runtime.quantize import check_bits
from gistjax.runtime.sharding import replicated, rows_per_step
from gistjax.runtime.texts import user_path
from gistjax.validation import check_refines

K = TypeVar("K", bound=Hashable)

READ_TOKENS = 4096
"""Tokens, padding included, that are read at once on each device.

A short text alone leaves a device waiting for weights: two cores read eight of 64 tokens in half
the time. From some hundred tokens on they gain nothing more, and an interruption loses a batch.
"""
KEPT_REFINERS = 4
"""Refiners that stay, each with its compiled programs: one for each ratio."""


def load(
    run: str | Path = SHIPPED,
    config: CompressionConfig | None = None,
    base: str | Path = "",
    repo: str | None = None,
    revision: str = "",
) -> Engine:
    """Load the compressor of a run directory, or of the hub, and its base.

    Args:
        run: directory with `config.json` and `compressor.safetensors`.
        config: the run's configuration with another ratio or other limits; by default its own.
        base: folder or GGUF file of the base; by default it is found as in the run.
        repo: organisation/model of a repository on the hub, in place of a run.
        revision: of `repo`, a branch, tag or commit; by default the newest.

    Raises:
        GistjaxError: if there is no such run or repository, it was not trained for `config.ratio`,
            or its base cannot be found or is another one.
    """
    directory = RunDir(locate(run, repo, revision))
    trained = directory.config()
    config = in_use(config or trained, trained, str(base))
    pretrained, weights = load_trained(directory, config)
    compressor = sha256_of(directory.exported)
    calibration = read_calibration(directory, config)
    return Engine(config, pretrained, weights, compressor, calibration)


class Engine:
    """A model that reads a text once and answers questions from its slots, or from the text.

    Args:
        pretrained: base, tokenizer and prompt.
        weights: structure, trained leaves and frozen leaves of the model.
        compressor: SHA-256 of the exported compressor, which saved documents name; empty for the
            base alone.
        calibration: makes chances of being right of the probabilities of answers.
    """

    def __init__(
        self,
        config: CompressionConfig,
        pretrained: PretrainedBase,
        weights: tuple[Any, ...],
        compressor: str,
        calibration: Calibration | None = None,
    ):
        self.config, self.pretrained, self.compressor = config, pretrained, compressor
        self.calibration = calibration
        self.abstention = load_task(config.data.task).abstention
        max_tokens, prompt = written_tokens(config), pretrained.prompt
        mesh = pretrained.mesh
        self.programs = Programs(weights, mesh, prompt.prefix_ids, max_tokens, prompt.end_ids)
        self.tokens_at_once = READ_TOKENS
        self._refiners: Recent[Refiner] = Recent(KEPT_REFINERS)
        self.pool = Pool(partial(jax.device_put, device=replicated(mesh)))

    def ask(
        self, asked: Iterable[tuple[Document, str]], threshold: float | None = None
    ) -> list[Answer]:
        """Answer questions, each on its document; those of about equal length together.

        Args, Raises:
            as `Document.ask`, which takes those on one.
        """
        return asking.ask(self, asked, threshold)

    def model(self) -> CompressedLM:
        """Return base, adapter and compressor as one module."""
        return self.programs.model()

    def full_context(self) -> Engine:
        """Return what reads the whole text, a comparison.

        Of kept entries it is the same model, which keeps them all; else the base, untuned. A scorer
        with a second pass makes it here too.
        """
        if self.config.selects:
            whole = keeping_all(self.config)
            graphdef, *_ = split_model(build_model(whole, self.pretrained, seeded=False))
            weights = graphdef, *self.programs.leaves
            return Engine(whole, self.pretrained, weights, self.compressor, self.calibration)
        config = untuned_full_context(self.config)
        weights = split_model(build_model(config, self.pretrained))
        return Engine(config, self.pretrained, weights, "")

    @property
    def trained_tokens(self) -> int:
        """Longest context in training."""
        return load_task(self.config.data.task).limit(self.config.data).context_tokens

    @property
    def positions(self) -> int:
        """The base's positions for a context and a question, with room for the longest answer."""
        around = len(self.pretrained.prompt.prefix_ids) + written_tokens(self.config)
        return self.pretrained.source.config.max_positions - around

    @property
    def takes_any_length(self) -> bool:
        """Whether what is kept of a text's pieces is joined in one place, however many they are.

        What reads causally reads on as the base does; a bidirectional pass knows the lengths of its
        training.
        """
        return self.config.selects and self.config.encoder.bidirectional

    @property
    def piece_tokens(self) -> int:
        """Longest text that is read at once."""
        at_once = self.config.selects and not self.takes_any_length
        return self.max_tokens if at_once else self.trained_tokens

    @property
    def max_tokens(self) -> int:
        """Longest text that fits the base's positions with a question and its answer.

        Where a scorer watches it being repeated, with its repetition. No limit where pieces share
        their positions.
        """
        with_question = self.positions - QUESTION_TOKENS[0]
        if not repeats(self.config):
            return with_question
        prompt = self.pretrained.prompt
        left = self.pretrained.source.config.max_positions - len(prompt.prefix_ids)
        return min(with_question, (left - len(repeat_ids(prompt))) // 2)

    def compress(
        self,
        text: str,
        ratio: float | None = None,
        refine: int | None = None,
        bits: int | None = None,
    ) -> Document:
        """Read a text once.

        Args:
            ratio: context tokens a slot or an entry, within those that the compressor was trained
                with; by default `config.ratio`.
            refine: steps that move what is kept towards answering as all entries do; none unless
                given.
            bits: 8, 4, 3 or 2, of each number of slots or entries: the document is the one that
                `save` with such bits writes and `open` reads; as they are unless given.

        Raises:
            ConfigError: if the compressor was not trained with such a ratio, or it is no number;
                if steps are no number, or no entries are kept; or if there are no such bits.
            DataError: if the text is empty or no text, or longer than compressor or base take; or
                if a number of it cannot be in few bits.
        """
        (document,) = self._compress([text], ratio, refine, bits)
        return document

    def compress_many(
        self, texts: Iterable[str], ratio: float | None = None, bits: int | None = None
    ) -> list[Document]:
        """Read many texts, pieces of about equal length at once; else as `compress` reads one.

        Numbers may differ by their rounding.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise DataError("compress_many takes a list of texts: put the text into one.")
        return self._compress(list(texts), ratio, None, bits)

    def _compress(
        self, texts: Sequence[str], ratio: float | None, refine: int | None, bits: int | None
    ) -> list[Document]:
        if ratio is not None:
            self.check_ratio(ratio)
        if refine is not None:
            check_refines(self.config, refine)
        if bits is not None:
            check_bits(bits)
            if not self.config.compresses:
                what = "this model keeps nothing of a text that could be in few bits."
                raise ConfigError(f"bits={bits}: {what}")
        at = ratio or self.config.ratio
        pieces = {
            (number, place): ids
            for number, text in enumerate(texts)
            for place, ids in enumerate(pieces_of(text, self, at))
        }
        read = dict(chain.from_iterable(self.compress_pieces(pieces.items(), at, refine or 0)))
        parts: list[list[Document]] = [[] for _ in texts]
        for number, place in pieces:
            parts[number].append(read[number, place])
        whole = [self.join(own) if len(own) > 1 else own[0] for own in parts]
        if bits is None:
            return whole
        return [
            self._document(d.stored(bits), d.tokens, d.pieces, d.refined, d.seconds) for d in whole
        ]

    def compress_pieces(
        self, pieces: Iterable[tuple[K, np.ndarray]], ratio: float, refine: int = 0
    ) -> Iterator[list[tuple[K, Document]]]:
        """Read token ids that fit at once, as they come; those of about equal length together.

        Args:
            pieces: each with a name of the caller's.
            ratio, refine: as in `compress`; what is refined is read one by one.

        Yields:
            names and documents of a batch, as soon as it is full or nothing more comes; the seconds
            of a document are its share of the batch's.
        """

        def size_of(piece: tuple[K, np.ndarray]) -> int:
            return min(power_of_two(len(piece[1])), self.piece_tokens)

        def rows_of(size: int) -> int:
            shares = rows_per_step(self.pretrained.mesh)
            return 1 if refine else max(self.tokens_at_once // size, 1) * shares

        for size, batch in in_batches(pieces, size_of, rows_of):
            ids = [own for _, own in batch]
            if refine:
                contexts, seconds = self._refined(ids, size, ratio, refine)
            else:
                contexts, seconds = self.programs.compress(ids, size, ratio)
            yield [
                (name, Document(self, context, len(own), 1, seconds / len(batch), refine))
                for (name, own), context in zip(batch, contexts, strict=True)
            ]

    def join(self, documents: Sequence[Document]) -> Document:
        """Return several documents as one, which is asked about all of them.

        Entries of all stand in one place, slots of each behind those of the one before.

        Raises:
            DataError: if there are none.
            CheckpointError: if one is of another compressor.
        """
        if not documents:
            raise DataError("there is no document to join: give one or more.")
        if any(document.engine.origin() != self.origin() for document in documents):
            raise CheckpointError("documents of another compressor cannot be joined.")
        context = self._joined([document.context for document in documents])
        tokens, pieces = (sum(getattr(d, of) for d in documents) for of in ("tokens", "pieces"))
        seconds = sum(document.seconds for document in documents)
        refined = min(document.refined for document in documents)
        return Document(self, context, tokens, pieces, seconds, refined)

    def _joined(self, contexts: list[CompressedContext]) -> CompressedContext:
        """Return the pieces of a text as one context."""
        if self.config.selects:
            return join_kept(contexts)
        size = power_of_two(sum(int(one.slots_B[0]) for one in contexts))
        return join(contexts, size, self.pretrained.source.config)

    def _refined(
        self, ids: Sequence[np.ndarray], size: int, ratio: float, steps: int
    ) -> tuple[list[CompressedContext], float]:
        """Compress contexts and refine what is kept, as `Programs.compress` returns them."""
        weights = (self.programs.leaves[0], self.programs.leaves[1])
        context, _, seconds = self.refiner(ratio)(weights, ids, size, steps)
        return [row_of(context, row) for row in range(len(ids))], seconds

    def refiner(self, ratio: float) -> Refiner:
        """Return what refines contexts at a ratio, with the programs that it has compiled."""
        pretrained, graphdef = self.pretrained, self.programs.graphdef
        given = self.config, pretrained.prompt, pretrained.mesh, graphdef, ratio
        return self._refiners.get(ratio, lambda: Refiner(*given))

    def check_ratio(self, ratio: object) -> None:
        """Refuse a ratio that the compressor was not trained with.

        Raises:
            ConfigError: saying which it was trained with.
        """
        if not isinstance(ratio, Real) or isinstance(ratio, bool):
            kind = type(ratio).__name__
            what = "an entry" if self.config.selects else "a slot"
            raise ConfigError(f"ratio must be a number of tokens {what}, as in 4.0, not {kind}.")
        if problem := Budget.of(self.config).ratio_problem(float(ratio)):
            raise ConfigError(problem)

    def cut(self, text: str, most_tokens: int | None = None) -> list[Cut]:
        """Return a text in pieces that are read at once, of at most so many tokens."""
        most = min(self.piece_tokens, most_tokens or self.piece_tokens)
        return cut_text(text, self.pretrained.prompt, most)

    def origin(self) -> dict[str, str]:
        """Return what made the documents of this engine, as their files name it."""
        return {
            "compressor": self.compressor,
            "base": self.config.model.known_as,
            "base_sha256": self.pretrained.base_sha256,
        }

    def open(self, file: str | Path) -> Document:
        """Open what `Document.save` wrote, or `CompressedText.save` of gistjax 0.1.

        Raises:
            CheckpointError: if the file is missing or damaged, of a later version, or of another
                compressor.
        """
        file = user_path(file)
        content, numbers = document_file.read(file, self.compressor, self.pretrained.base_sha256)
        if content.of_entries != self.config.selects:
            what = "slots" if self.config.selects else "entries of the cache"
            raise CheckpointError(
                f"{file} keeps {what}, which this model does not read: load it as the document was "
                f"made, with --config.architecture={'…' if self.config.selects else 'select'}."
            )
        try:
            return self._document(content, **numbers)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise document_file.not_whole(file, error) from error

    def _document(
        self,
        content: document_file.Stored,
        tokens: int,
        pieces: int,
        refined: int,
        seconds: float = 0.0,
    ) -> Document:
        """Return the document that a file holds, as it is read from there.

        Raises:
            KeyError, TypeError, ValueError, IndexError: if the file is not whole.
        """
        base, stacked = self.pretrained.source.config, self.config.model.scan_layers
        prefix_ids_P = self.programs.prefix_ids_P
        context = document_file.context_of(content, prefix_ids_P, base, stacked)
        coded = content if content.bits and not content.of_entries else None
        return Document(self, context, tokens, pieces, seconds, refined, coded)

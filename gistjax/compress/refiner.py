"""Contexts refined in batches, from questions that their own sentences are made into."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.compress.context import CompressedContext
from gistjax.compress.refine import refine
from gistjax.config import CompressionConfig
from gistjax.data.batching import make_batch
from gistjax.data.example import Batch, TokenizedExample
from gistjax.data.prompts import Prompt, decode
from gistjax.data.text import cloze_questions
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

ABOUT = "What is the text about?"
"""Asked of a context that has no sentence to ask."""
QUESTIONS = 8
"""Of a context, at most."""
QUESTION_TOKENS = 64
"""Room for a question in its template; longer ones are left out."""
ANSWER_TOKENS = 12
"""Of the teacher's answer; a longer one is cut."""


class Refiner:
    """Refines contexts with one model, compiled once for each shape of batch.

    Args:
        prompt: of the task that will be asked.
        graphdef: the model's structure.
        ratio: tokens an entry; by default the configured one.
    """

    def __init__(
        self,
        config: CompressionConfig,
        prompt: Prompt,
        mesh: Mesh,
        graphdef: Any,
        ratio: float | None = None,
    ):
        self._seed, self._prompt, self._mesh = config.seed, prompt, mesh
        self._compiled: dict[tuple[int, ...], Any] = {}
        end_ids = prompt.end_ids

        def refined(trainable: Any, frozen: Any, batch: Batch, steps: Any) -> Any:
            return refine(
                nnx.merge(graphdef, trainable, frozen),
                batch.prefix_ids_P,
                (batch.context_ids_ExC, batch.context_length_E),
                (batch.tokens_BxS, batch.question_length_B),
                steps,
                ANSWER_TOKENS,
                end_ids,
                ratio,
            )

        self._refine = jax.jit(refined)

    def __call__(
        self,
        weights: tuple[Any, Any],
        contexts: Sequence[np.ndarray],
        tokens: int,
        steps: int,
        size: int | None = None,
    ) -> tuple[CompressedContext, np.ndarray, float]:
        """Refine contexts, padded to so many tokens, in a batch padded to at least `size` of them.

        Args:
            weights: the model's trained and frozen leaves.
            contexts: token ids of each.
            steps: of the optimizer.

        Returns:
            What is kept, in numpy arrays; the contexts' losses before and after `[2, E]`; the
            seconds that it took, compilation not counted.
        """
        start = time.perf_counter()
        shares = rows_per_step(self._mesh)
        size = -(-max(size or 0, len(contexts)) // shares) * shares
        units = [self.questions(number, ids) for number, ids in enumerate(contexts)]
        host = make_batch(units, (tokens, QUESTION_TOKENS), QUESTIONS, size)
        batch: Batch = put_batch(host, self._mesh)
        given = (*weights, batch, np.int32(steps))
        compiling = time.perf_counter()
        shape = batch.context_ids_ExC.shape
        if shape not in self._compiled:
            self._compiled[shape] = self._refine.lower(*given).compile()
        compiling = time.perf_counter() - compiling
        kept, loss_2xE = to_host(self._compiled[shape](*given))
        return kept, loss_2xE[:, : len(contexts)], time.perf_counter() - start - compiling

    def questions(self, number: int, context_ids: np.ndarray) -> list[TokenizedExample]:
        """Return rows of the questions that a context is refined on; the same in any batch."""
        prompt, none = self._prompt, np.zeros(0, np.int32)
        rng = np.random.default_rng([self._seed, len(context_ids), int(context_ids.sum())])
        text = decode(prompt.tokenizer, context_ids)
        asked = dict.fromkeys(question for question, _ in cloze_questions(text, QUESTIONS, rng))
        ids = prompt.encode_questions([*asked]) if asked else []
        fitting = [one for one in ids if len(one) <= QUESTION_TOKENS]
        fitting = fitting or [prompt.encode_question(ABOUT, QUESTION_TOKENS)]
        return [
            TokenizedExample(context_ids, one, none, number, 0, prefix_ids=prompt.prefix_ids)
            for one in fitting
        ]

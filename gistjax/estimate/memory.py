"""Device memory of a train step, by a formula over shapes: nothing is loaded, traced or compiled.

    total = base           frozen weights, in their own dtype
          + trainable      fp32
          + optimizer      Adam's two moments, fp32
          + activations    the most that a step holds beside them

The most is held where the backward pass begins: every layer has kept what its gradients need
(`Pass.kept`), and the logits stand beside their gradient. Gradients of parameters appear while
activations are freed, so they count only where micro-batches are accumulated, or if they are more.

The estimate is within 10 % of what XLA assigns for an H100 and of measured peaks
(`tests/estimate/test_memory.py`), of `configs/kept.py` 11 % above the former, and of bases of two
layers up to 18 %. `gistjax.benchmark --mode memory` measures a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from gistjax.compress.budget import Budget
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.learned import repeats
from gistjax.compress.parameters import abstract_model, parameter_counts
from gistjax.compress.scorers import CHUNK
from gistjax.config import TEXT_LOSSES, CompressionConfig, LoraConfig, ModelConfig
from gistjax.data.prompts import make_prompt
from gistjax.data.tasks import load_task
from gistjax.estimate.flops import layer_parameters
from gistjax.model.attention import choose_kernel
from gistjax.model.config import LlamaConfig
from gistjax.model.lora import EXTEND_FROM, projection_sizes
from gistjax.runtime.devices import is_deterministic
from gistjax.training.losses import MERGE_UP_TO
from gistjax.weights.registry import Source
from gistjax.weights.tokenizers import load_tokenizer

GIB = 2**30
PREFIX_TOKENS = 44
"""Prompt tokens before the context where there is no tokenizer to count them: Llama 3.1's."""
REPEAT_TOKENS = 16
"""Tokens that ask to repeat a context (KVzip), about as many as chat templates make of it."""
STATES_KEPT = 5
"""Copies of the context's states that cross-attention keeps: as they come, normed, as keys before
and after rotation, as values. Other architectures keep fewer."""


def prefix_tokens(source: Source) -> int:
    """Count the prompt's tokens before the context, by the model's tokenizer if it is installed."""
    if source.path is None:
        return PREFIX_TOKENS
    return len(make_prompt(load_tokenizer(source)).prefix_ids)


def with_question(model: CompressedLM) -> CompressedLM:
    """Return a model that was built without a prompt, asked as one with a prompt to repeat."""
    if model.selector is not None:
        model.selector.repeat_ids = (0,) * REPEAT_TOKENS
    return model


def rows_of_context(config: CompressionConfig) -> int:
    """Return how many rows a step has for each context: its questions, at each of their ratios."""
    return config.data.questions_per_context * config.ratios_per_question


def compute_dtype(model: ModelConfig) -> jnp.dtype:
    """Return the dtype of activations and products."""
    return jnp.dtype(model.compute_dtype or model.dtype)


def answer_tokens(config: CompressionConfig) -> int:
    """Answer tokens of the longest row, the end token of questions included."""
    longest = [
        load_task(name).limit(config.data).answer_tokens if config.data.train_examples else 0
        for name in config.data.task_names
    ]
    longest += [config.text.target_tokens for task in TEXT_LOSSES if config.loss_weights.get(task)]
    return min(max(longest), max(config.data.question_buckets))


def memory_estimate(
    config: CompressionConfig,
    base: LlamaConfig,
    prefix: int = PREFIX_TOKENS,
    counts: dict[str, int] | None = None,
) -> dict[str, float]:
    """Estimate the GiB that training takes on each device, by part; parameters as if replicated.

    Args:
        prefix: prompt tokens before the context.
        counts: `parameter_counts` of the model, where they are known.
    """
    counts = counts or parameter_counts(abstract_model(config, base))
    parts: dict[str, float] = {
        "base": jnp.dtype(config.model.dtype).itemsize * counts["base"],
        "trainable": 4 * counts["trainable"],
        "optimizer": 8 * counts["trainable"],
        "activations": activation_bytes(config, base, prefix, counts["trainable"]),
    }
    parts["total"] = sum(parts.values())
    return {name: round(value / GIB, 3) for name, value in parts.items()}


def activation_bytes(
    config: CompressionConfig, base: LlamaConfig, prefix: int, trainable: int
) -> float:
    """Estimate the most bytes that a step holds beside weights and optimizer.

    Args:
        prefix: prompt tokens before the context.
        trainable: number of trained parameters.
    """
    model, loss_weights = config.model, config.loss_weights
    size = compute_dtype(model).itemsize
    matrices = layer_parameters(base) * size
    through = list(passes(config, base, prefix))
    kept = sum(each.kept(base, model) for each in through)
    kept += trainable * size  # copies in the compute dtype
    if config.compresses:
        states = config.batch_size * max(config.data.context_buckets) * base.d_model
        kept += STATES_KEPT * states * size
    if loss_weights.get("generation") and config.lora.rank and base.d_model <= MERGE_UP_TO:
        kept += base.n_layers * matrices  # the merged layers that decode the model's own answers

    # fp32 logits with their gradient, then the backward pass of a layer, which is computed again
    # by remat, its attention where entries are gated or rounded, and which a scan copies out of the
    # stack of weights: whichever is more
    gold = any(loss_weights.get(name) for name in ("teacher_forcing", *TEXT_LOSSES))
    scored = gold + sum(bool(loss_weights.get(name)) for name in ("generation", "distillation"))
    rows = config.batch_size * rows_of_context(config)
    logits = scored * rows * answer_tokens(config) * base.vocab_size * (4 + size)
    layer: float = matrices if model.scan_layers else 0
    layer += max(
        each.again(base, model) + (each.layer(base, model) if model.remat else 0)
        for each in through
    )
    gradients = 4 * trainable
    most = max(kept + max(logits, layer), gradients)
    if repeats(config, trains=True):
        first = through[0].kept(base, model) + trainable * size
        most = max(most, first + repetition_bytes(config, base, prefix))
    return most + (gradients if config.accumulation > 1 else 0)


def repetition_bytes(config: CompressionConfig, base: LlamaConfig, prefix: int) -> float:
    """Estimate the bytes that KVzip's second pass holds beside the first (calculated).

    It has no gradient: a cache of both passes, their mask, one layer's products, and the
    probabilities that a chunk of queries pays, before and after the softmax.
    """
    size = compute_dtype(config.model).itemsize
    E, C = config.batch_size, max(config.data.context_buckets)
    S = REPEAT_TOKENS + C
    U = prefix + C + S
    cache = 2 * base.n_layers * E * U * base.n_kv_heads * base.head_dim * size
    layer = Pass(E, S, U, base.n_layers, config.lora, 1).layer(base, config.model)
    chunk = 2 * E * min(CHUNK, S) * U * base.n_heads * 4
    return cache + E * S * U + layer + chunk


def passes(config: CompressionConfig, base: LlamaConfig, prefix: int) -> Iterator[Pass]:
    """Yield a step's passes through the base, in its largest shapes.

    They are the encoder's, the decoder's (with several questions on a context in two passes), and
    that over the model's own answers.
    """
    model, encoder, lora = config.model, config.encoder, config.lora
    E, C = config.batch_size, max(config.data.context_buckets)
    B, S = E * rows_of_context(config), max(config.data.question_buckets)
    X, A = Budget.of(config).decoder_positions(C), answer_tokens(config)
    generates = bool(config.loss_weights.get("generation"))
    U = prefix + X + S + (A if generates else 0)
    dtype, deterministic = compute_dtype(model), is_deterministic(config)
    fused = choose_kernel(model.attention, base.head_dim, dtype, "gpu", deterministic) != "xla"

    def causal(rows: int, T: int, last: int, cache: int = 0, lora: LoraConfig = lora) -> Pass:
        return Pass(rows, T, 0 if fused else T, base.n_layers, lora, last, cache)

    def asking(rows: int, T: int, last: int, cache: int = 0) -> Pass:
        """A pass that reads a context before it, or entries kept of one."""
        if not config.selects:
            return Pass(rows, T, U, base.n_layers, lora, last, cache)
        gated = config.learns_scores and config.select.temperature > 0
        read = Entries(C * config.select.joined, gated or config.rounds, config.rounds)
        return Pass(rows, T, U, base.n_layers, lora, last, cache, read)

    trained = encoder.kind == "lora"
    if config.selects or (config.compresses and config.slot_form == "key_values"):
        behind = config.slot_place == "behind" and not config.selects
        T = prefix + C + (X if behind else 0)
        yield causal(E, T, 1, T, encoder.lora if trained else lora)
        yield asking(B, S, A)
    else:
        if config.compresses and trained:
            layers = base.n_layers if encoder.layers < 0 else encoder.layers
            keys = 0 if fused else C
            yield Pass(E, C, keys, layers, encoder.lora, C)
        if B > E:
            yield causal(E, prefix + X, 1, U)
            yield asking(B, S, A)
        else:
            yield causal(B, prefix + X + S, A, U if generates else 0)
    if generates:  # beside the cache that it reads, the loop that decodes has one
        yield asking(B, A - 1, A - 1, U)


class Entries(NamedTuple):
    """Entries kept of a context, masked, which queries read beside a cache."""

    positions: int
    again: bool  # attention to them is computed again going back (`attention.attend_context`)
    rounded: bool  # each row has a copy, in its own bits


@dataclass(frozen=True)
class Pass:
    """One pass of `rows` × `queries` positions through the base, to be differentiated."""

    rows: int
    queries: int
    keys: int  # under an explicit softmax; 0: a fused kernel, which keeps no scores
    layers: int
    lora: LoraConfig
    last: int  # queries whose states are wanted: unrolled, the last layer's FFN runs on those alone
    cache: int = 0  # positions of a cache that is held for others to read
    entries: Entries | None = None

    def kept(self, base: LlamaConfig, model: ModelConfig) -> float:
        """Return the bytes that all layers keep for the backward pass.

        With remat that is each layer's input, beside the keys and values that it reads. A scan
        then keeps its whole carry for every layer, and the cache of all layers is part of it.
        """
        size, scan = compute_dtype(model).itemsize, model.scan_layers
        position = 2 * base.n_kv_heads * base.head_dim * size  # of a cache, in one layer
        held = self.layers * self.rows * self.cache * position
        if model.remat:
            read = self.rows * (self.keys if self.keys > self.queries else 0) * position
            x = self.rows * self.queries * base.d_model * size
            return held + self.layers * (x + read * (self.layers if scan else 1))
        spared = 0 if scan else self.rows * (self.queries - self.last)
        spared_bytes = spared * self._feed_forward(base, size, scan)
        return held + self.layers * self.layer(base, model) - spared_bytes

    def layer(self, base: LlamaConfig, model: ModelConfig) -> float:
        """Return the bytes that one layer keeps: what its products and kernels read.

        Unrolled, XLA computes elementwise work a second time from its inputs, and a softmax from
        its scores. Out of a scan it takes what JAX has saved: the softmax's mask, its exponentials
        before and after division, and the weights in the compute dtype.
        """
        size, scan = compute_dtype(model).itemsize, model.scan_layers
        queries, keys = self.rows * self.queries, self.rows * (self.keys or self.queries)
        by_query = self._attention(base, size, scan) + self._feed_forward(base, size, scan)
        by_key = (2 + base.qk_norms) * base.n_kv_heads * base.head_dim * size
        scores = 0 if self.entries and self.entries.again else self._scores(base, size, scan)
        # Where x has many rows, the adapter's b is copied with w into one matrix (`model.lora`).
        extended = [i * o for i, o in projection_sizes(base).values() if queries >= EXTEND_FROM * i]
        copied = sum(extended) * size if self.lora.rank else 0
        return queries * by_query + scores + keys * by_key + copied

    def again(self, base: LlamaConfig, model: ModelConfig) -> float:
        """Return the bytes of one layer's attention to entries where it is computed again.

        They are its scores, and each row's copies of entries that are rounded; both have gradients.
        """
        if not (self.entries and self.entries.again):
            return 0
        size = compute_dtype(model).itemsize
        held = self._scores(base, size, model.scan_layers)
        if self.entries.rounded:
            held += self.rows * self.entries.positions * 2 * base.n_kv_heads * base.head_dim * size
        return 2 * held

    def _scores(self, base: LlamaConfig, size: int, scan: bool) -> int:
        """Bytes of a layer's scores; of a fused kernel each query's sum of exponentials, fp32.

        Beside entries, unrolled, the softmax's weights are kept too.
        """
        by_score = 1 + 4 + 4 + (size if size < 4 else 0) if scan else 4
        if self.entries and not self.entries.again and not scan:
            by_score += size
        return self.rows * self.queries * base.n_heads * (self.keys * by_score or 4)

    def _attention(self, base: LlamaConfig, size: int, scan: bool) -> int:
        """Bytes of a position: the norm's input, in fp32 for a scan, its output, query, output.

        Where queries and keys have norms, they are kept before and after (calculated).
        """
        D, NH = base.d_model, base.n_heads * base.head_dim
        read = D * self._adapted("q", "k", "v") + self._rank("q", "k", "v", "o")
        return D * (4 if scan else size) + (read + (2 + base.qk_norms) * NH) * size

    def _feed_forward(self, base: LlamaConfig, size: int, scan: bool) -> int:
        """Bytes of a position: the norm's input, its output, gate and up, and their product.

        A scan keeps three buffers more, of SiLU and its derivative.
        """
        D, F = base.d_model, base.d_ff
        read = D * self._adapted("gate", "up") + F * self._adapted("down")
        read += self._rank("gate", "up", "down")
        return D * (4 if scan else size) + (read + (5 if scan else 2) * F) * size

    def _rank(self, *projections: str) -> int:
        """Width of the adapters' inner products."""
        return self.lora.rank * len(set(projections) & set(self.lora.targets))

    def _adapted(self, *projections: str) -> bool:
        """Return True if the input of these projections is kept for their adapters' gradients."""
        return self._rank(*projections) > 0

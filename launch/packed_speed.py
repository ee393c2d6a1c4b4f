"""Time answers from packed entries in few bits against 16, at the shapes of a large base.

    python -m launch.packed_speed [--entries=2048] [--bits=4] [--tokens=16] [--answer_tokens=16]
        [--repeats=5] [--config.KEY=VALUE …]

Each of `config.batch_size` rows (256 unless given) has a context of its own, of which every KV head
of every layer keeps so many entries, and a question. Weights and questions are random, entries a
pattern; no row ends early. Prints JSON: bytes that stay and that come and go, the seconds of all
answers, the milliseconds of a decoded token, and how many times as fast few bits are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import soft_context
from gistjax.compress.decoding import greedy
from gistjax.compress.parameters import split_model
from gistjax.config import CompressionConfig, DataConfig, LoraConfig, ModelConfig, SelectConfig
from gistjax.estimate.measure import bare_model
from gistjax.model.codes import Codes
from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import PackedEntries
from gistjax.runtime import cli
from gistjax.runtime.devices import device_name
from gistjax.runtime.profiling import median_seconds


def some_entries(
    base: LlamaConfig, rows: int, entries: int, dtype: Any, bits: int | None
) -> PackedEntries:
    """Return as many entries of each row, layer and KV head.

    They are a pattern: random numbers would take more memory to draw than to hold.
    """
    heads = (base.n_layers, rows, base.n_kv_heads)
    H, N = base.head_dim, heads[0] * heads[1] * heads[2]
    T = N * entries

    def pattern(width: int) -> Array:
        row, column = (jax.lax.broadcasted_iota(jnp.uint32, (T, width), axis) for axis in (0, 1))
        return (row * 73 + column * 151).astype(jnp.uint8)

    def numbers(ranges: tuple[int, int]) -> Array | Codes:
        if bits is None:
            return (pattern(H) / 64 - 2).astype(dtype)
        scale, offset = (jnp.full(ranges, x, jnp.float16) for x in (4 / 2**bits, -2))
        return Codes(pattern(-(-H * bits // 8)), scale, offset, bits, H, jnp.dtype(dtype))

    start = (jnp.arange(N, dtype=jnp.int32) * entries).reshape(heads)
    count = jnp.full(heads, entries, jnp.int32)
    k, v = (jax.jit(numbers, static_argnums=0)(ranges) for ranges in ((N, H), (T, 1)))
    return PackedEntries(k, v, start, count, most=entries)


def measure(model: CompressedLM, rows: int, args: Any, bits: int | None) -> dict[str, Any]:
    """Time answers from entries in so many bits, or in the dtype of compute."""
    graphdef, *weights = split_model(model)
    base, n = model.base.config, args.answer_tokens
    nothing = jnp.zeros((rows, 0, base.d_model), model.base.dtype)
    length_B = jnp.full(rows, args.entries)
    context = soft_context(jnp.zeros(0, jnp.int32), nothing, jnp.zeros_like(length_B))
    kept = some_entries(base, rows, args.entries, model.base.dtype, bits)
    context = dataclasses.replace(context, kept=kept, length_B=length_B)
    tokens_BxS = jax.random.randint(jax.random.key(1), (rows, args.tokens), 0, base.vocab_size)
    asked = tokens_BxS, jnp.full(rows, args.tokens)

    def answer(weights: Any, context: Any, asked: tuple[Array, Array], n: int) -> Any:
        return greedy(nnx.merge(graphdef, *weights), context, *asked, n, -1)

    compiled = {
        size: jax.jit(answer, static_argnums=3).lower(weights, context, asked, size).compile()
        for size in {1, n}
    }
    first_s, total_s = (
        median_seconds(lambda size=size: compiled[size](weights, context, asked), args.repeats)
        for size in (1, n)
    )
    return {
        "resident_bytes": context.resident_bytes,
        "temporary_bytes": compiled[n].memory_analysis().temp_size_in_bytes,
        "answer_s": round(total_s, 4),
        "decode_ms_per_token": round((total_s - first_s) / max(n - 1, 1) * 1e3, 3),
    }


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure 16 bits and few, and print them."""
    model, _ = bare_model(config)
    whole, few = (measure(model, config.batch_size, args, bits) for bits in (None, args.bits))
    cli.print_result(
        {
            "base_model": config.model.known_as,
            "rows": config.batch_size,
            "entries": args.entries,
            "tokens": args.answer_tokens,
            "bits": args.bits,
            "as_they_are": whole,
            "in_few_bits": few,
            "times_as_fast": round(whole["answer_s"] / few["answer_s"], 3),
            "device": device_name(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    for name, default, about in (
        ("entries", 2048, "Entries of each KV head of a row."),
        ("tokens", 16, "Question tokens of a row."),
        ("answer_tokens", 16, "Tokens to generate for each row."),
        ("repeats", 5, "Timed calls; the median counts."),
        ("bits", 4, "Bits of a number, to compare with those of compute."),
    ):
        flags.DEFINE_integer(name, default, about, lower_bound=1, flag_values=values)


def defaults() -> CompressionConfig:
    """Return Llama 3.1 8B with random weights, 256 rows."""
    return CompressionConfig(
        architecture="select",
        ratio=1.0,
        batch_size=256,
        lora=LoraConfig(rank=0),
        loss_weights={"teacher_forcing": 1.0},
        model=ModelConfig("llama-3.1-8b", path="random"),
        select=SelectConfig("knorm", "head"),
        data=DataConfig(path="sample"),
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: defaults())

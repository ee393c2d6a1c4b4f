"""The work in a train step, and the most that the devices could do of it.

FLOPs are counted without recomputation: 2 per parameter and token forward, 2 more where activations
need a gradient; frozen matrices need no more. Attention, adapters, architecture and losses other
than teacher forcing are left out. The vocabulary product counts for every position of the decoder,
although a step computes it for answers alone, so that the share of the peak (MFU, arXiv:2204.02311)
compares with that of others, who count so.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from gistjax.compress.budget import Budget
from gistjax.config import CompressionConfig
from gistjax.data.example import Batch
from gistjax.model.config import LlamaConfig
from gistjax.model.lora import projection_sizes

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.1,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 products with fp32 accumulation, by NVIDIA's data sheets.

The first name that stands in the device's counts.
"""


def layer_parameters(base: LlamaConfig) -> int:
    """Return the number of matrix parameters in one layer."""
    return sum(d_in * d_out for d_in, d_out in projection_sizes(base).values())


def step_flops(
    config: CompressionConfig, base: LlamaConfig, contexts: float, decoded: float
) -> tuple[float, float]:
    """Return the decoder's and the encoder's FLOPs of a step, teacher forcing only.

    Args:
        contexts: tokens that the encoder reads.
        decoded: positions that the decoder reads, slots or context included.
    """
    layers = layer_parameters(base)
    decoder = layers * base.n_layers + base.vocab_size * base.d_model
    depth = base.n_layers if config.encoder.layers < 0 else config.encoder.layers
    passes = {"embeddings": 0, "hidden": 2, "lora": 4}[config.encoder.kind]
    return 4.0 * decoder * decoded, float(passes * layers * depth * contexts)


def batch_flops(config: CompressionConfig, base: LlamaConfig, batch: Batch) -> float:
    """Return the FLOPs of a step on a batch, padding not counted."""
    contexts = np.asarray(batch.context_length_E)
    tokens = batch.question_length_B.sum() + batch.answer_length_B.sum()
    if not config.compresses or config.selects:
        memory = 0 if config.architecture == "closed_book" else contexts.sum()
        return step_flops(config, base, 0, memory + tokens)[0]
    slots = Budget.of(config).slots(contexts, batch.ratio_N)
    return sum(step_flops(config, base, contexts.sum(), slots.sum() + tokens))


def least_seconds(config: CompressionConfig, base: LlamaConfig) -> Callable[[Batch], float] | None:
    """Return a function from a batch to the least seconds that the devices need for its step.

    None where their peak is not known.
    """
    kind = jax.devices()[0].device_kind
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in kind), None)
    if peak is None or (config.model.compute_dtype or config.model.dtype) != "bfloat16":
        return None
    flops_a_second = peak * 1e12 * jax.device_count()
    return lambda batch: batch_flops(config, base, batch) / flops_a_second

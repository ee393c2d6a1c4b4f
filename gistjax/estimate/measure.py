"""Measurements of a configuration on this machine: what `gistjax.benchmark` prints, a mode each."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.compress.budget import Budget
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.decoding import greedy
from gistjax.compress.parameters import split_model
from gistjax.config import CompressionConfig
from gistjax.data.batching import PlanSettings, TrainPlan
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Batch, Buckets
from gistjax.data.mixture import MixedPlan
from gistjax.estimate.flops import layer_parameters, step_flops
from gistjax.estimate.memory import (
    compute_dtype,
    memory_estimate,
    prefix_tokens,
    with_question,
)
from gistjax.estimate.train_program import train_program
from gistjax.experiment.base import build_model, build_on, find_prompt, load_pretrained
from gistjax.experiment.evaluator import make_generator
from gistjax.model.attention import choose_kernel
from gistjax.model.config import LlamaConfig
from gistjax.runtime.devices import start_jax
from gistjax.runtime.profiling import (
    GIB,
    HostMemory,
    log_kernels,
    machine_rates,
    median_seconds,
    peak_memory_gib,
)
from gistjax.runtime.sharding import make_mesh, put_batch, rows_per_step
from gistjax.training.losses import LossSettings
from gistjax.training.optimizer import make_optimizer
from gistjax.training.step import init_state, make_train_step, state_shardings
from gistjax.weights.registry import load_base, resolve


@dataclass(frozen=True)
class Workload:
    """Rows to measure with, and how often."""

    tokens: int = 64  # of question and answer
    answer_tokens: int = 16  # of them, or to generate
    repeats: int = 10  # timed calls; the median counts
    profile: int = 0  # so many of the longest kernels are logged


def measure_train(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Time one optimizer step over `accumulation` micro-batches of `batch_size` rows a device."""
    rates = machine_rates()
    model, mesh = bare_model(config)
    rows = config.batch_size * rows_per_step(mesh)
    step, compile_s = _compiled_step(config, workload, model, mesh)
    seconds = median_seconds(step, workload.repeats)
    if workload.profile:
        log_kernels(step, workload.profile)
    examples, C = rows * config.accumulation, config.data.context_tokens
    decoder, encoder = step_flops(
        config, model.base.config, C, Budget.of(config).decoder_positions(C) + workload.tokens
    )
    tflops = (decoder + encoder) * examples / seconds / 1e12 / jax.device_count()
    return {
        "rows": examples,
        "step_ms": round(seconds * 1e3, 2),
        "examples_per_s": round(examples / seconds, 1),
        "decoder_tflops": round(decoder * examples / seconds / 1e12, 1),
        "encoder_tflops": round(encoder * examples / seconds / 1e12, 1),
        **rates,
        "share_of_matmul": round(tflops / rates["matmul_tflops"], 3),
        "peak_memory_gib": peak_memory_gib(),
        "compile_s": round(compile_s, 1),
        "loss": round(float(step()["loss"]), 4),
    }


def _compiled_step(
    config: CompressionConfig, workload: Workload, model: CompressedLM, mesh: Mesh
) -> tuple[Callable[[], Any], float]:
    """A train step on full rows that goes on from its own state, and the seconds to compile it."""
    graphdef, trainable, frozen = split_model(model)
    optimizer = make_optimizer(config.optimizer, 1000, trainable)
    state = init_state(trainable, optimizer, mesh)
    settings = LossSettings(config.loss_weights, workload.answer_tokens, end_id=-1)
    train_step = make_train_step(graphdef, optimizer, settings, state_shardings(state, mesh))
    rows = config.batch_size * rows_per_step(mesh)
    host_batch = full_batch(config, rows, workload.tokens, workload.answer_tokens)
    stacked = jax.tree.map(lambda x: x[None].repeat(config.accumulation, 0), host_batch)
    batch = put_batch(stacked, mesh, leading=1)
    start = time.perf_counter()
    compiled = train_step.lower(state, frozen, batch).compile()  # type: ignore[attr-defined]
    compile_s = time.perf_counter() - start

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return metrics

    return step, compile_s


def measure_memory(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Measure the peak of a process that only trains three steps, beside the estimate.

    Weights and rows are zeros: memory does not depend on them.
    """
    source = resolve(config.model, offline=True)
    base, prefix = source.config, prefix_tokens(source)
    kernel = choose_kernel(config.model.attention, base.head_dim, compute_dtype(config.model))
    program = train_program(config, base, prefix, kernel)
    state, frozen, batch = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.arguments
    )
    start = time.perf_counter()
    compiled = program.step.lower(state, frozen, batch).compile()  # type: ignore[attr-defined]
    compile_s = time.perf_counter() - start
    for _ in range(3):
        state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(state)
    xla = compiled.memory_analysis()
    estimate = memory_estimate(config, base, prefix)
    peak = peak_memory_gib()
    return {
        "estimate_gib": estimate,
        "peak_memory_gib": peak,
        "estimate_over_peak": peak and round(estimate["total"] / peak, 3),
        "xla_gib": {
            name: round(getattr(xla, f"{name}_size_in_bytes") / GIB, 3)
            for name in ("argument", "output", "alias", "temp")
        },
        "prefix_tokens": prefix,
        "attention": kernel,
        "compile_s": round(compile_s, 1),
        "loss": round(float(metrics["loss"]), 4),
    }


def measure_generate(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Time `answer_tokens` tokens for each of `batch_size` rows, greedily; no row ends early."""
    rates = machine_rates()
    model, mesh = bare_model(config)
    graphdef, *weights = split_model(model)
    rows, n = config.batch_size * rows_per_step(mesh), workload.answer_tokens
    batch = put_batch(full_batch(config, rows, workload.tokens, 0), mesh)
    questions = (batch.tokens_BxS, batch.question_length_B)

    def answer(weights: Any, memory: Any, questions: tuple[Any, Any], n: int) -> Any:
        return greedy(nnx.merge(graphdef, *weights), memory, *questions, n, -1)

    compress = jax.jit(lambda weights, *context: nnx.merge(graphdef, *weights).compress(*context))
    answer_n = jax.jit(answer, static_argnums=3)
    context = (batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E)
    memory = compress(weights, *context)
    compress_s = median_seconds(lambda: compress(weights, *context), workload.repeats)
    prefill_s = median_seconds(lambda: answer_n(weights, memory, questions, 1), workload.repeats)
    total_s = median_seconds(lambda: answer_n(weights, memory, questions, n), workload.repeats)
    if workload.profile:
        log_kernels(lambda: answer_n(weights, memory, questions, n), workload.profile)
    token_s = (total_s - prefill_s) / max(n - 1, 1)
    held = config.data.context_tokens if config.selects else memory.size  # what is kept is masked
    read = decode_bytes(config, model.base.config, rows, held + workload.tokens + n)
    return {
        "rows": rows,
        "tokens": n,
        "compress_ms": round(compress_s * 1e3, 2),
        "prefill_ms": round(prefill_s * 1e3, 2),
        "decode_ms_per_token": round(token_s * 1e3, 3),
        "answer_s": round(total_s, 4),
        "tokens_per_s": round(rows * n / total_s, 1),
        **rates,
        "share_of_copy": round(read / token_s / 1e12 / rates["copy_tb_per_s"], 3),
        "peak_memory_gib": peak_memory_gib(),
    }


def measure_load(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Load the base onto the devices, once. On the CPU backend its arrays are host memory too."""
    mesh, source = make_mesh(config.mesh), resolve(config.model)
    jax.block_until_ready(jax.device_put(0))
    sampler = HostMemory()
    with sampler:
        start = time.perf_counter()
        base = load_base(source, config.model, mesh)
        seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(nnx.state(base))
    size = sum(leaf.nbytes for leaf in leaves)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "weights_gib": round(size / GIB, 3),
        "largest_leaf_gib": round(max(leaf.nbytes for leaf in leaves) / GIB, 3),
        "seconds": round(seconds, 2),
        "gb_per_s": round(size / seconds / 1e9, 2),
        "peak_anonymous_gib": round(sampler.peak / GIB, 3),
        "peak_resident_gib": round(resident / GIB, 3),
    }


def measure_data(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Time an epoch of batches, made and dropped."""
    _, prompt = find_prompt(config)
    start = time.perf_counter()
    dataset = load_dataset(config.data, config.seed)
    rows, _, _ = encode_splits(dataset, prompt, config.data, config.seed)
    encode_s = time.perf_counter() - start
    settings = PlanSettings(config.batch_size, config.seed, config.accumulation)
    weights, buckets = config.data.mixture, Buckets.of(config.data)
    plan = (
        MixedPlan(rows, weights, buckets, settings)
        if weights
        else TrainPlan(rows, buckets, settings)
    )
    steps = plan.steps_per_epoch
    start = time.perf_counter()
    for step in range(steps):
        plan.batch(step)
    seconds = time.perf_counter() - start
    share = plan.real_decoder_share(len(prompt.prefix_ids), Budget.of(config).decoder_positions)
    return {
        "examples": len(rows),
        "encode_s": round(encode_s, 2),
        "examples_per_s": round(steps * config.batch_size * config.accumulation / seconds),
        "real_decoder_share": round(share, 4),
        "shapes": {f"{C}+{S}": steps for (C, S), steps in plan.shapes.items()},
    }


def measure_answer(config: CompressionConfig, workload: Workload) -> dict[str, Any]:
    """Answer all validation questions twice; the second pass, which compiles nothing, counts."""
    pretrained = load_pretrained(config)
    dataset = load_dataset(config.data, config.seed)
    _, rows, _ = encode_splits(dataset, pretrained.prompt, config.data, config.seed)
    graphdef, trainable, frozen = split_model(build_model(config, pretrained))
    generator = make_generator(config, pretrained, graphdef)
    seconds = []
    for title in ("compiling", "answering"):
        start = time.perf_counter()
        answers = generator(trainable, frozen, rows, title)
        seconds.append(time.perf_counter() - start)
    return {
        "questions": len(rows),
        "first_pass_s": round(seconds[0], 2),
        "seconds": round(seconds[1], 2),
        "compress_s": round(answers.compress_s, 2),
        "answer_s": round(answers.answer_s, 2),
        "peak_memory_gib": peak_memory_gib(),
    }


MEASURES: dict[str, Callable[[CompressionConfig, Workload], dict[str, Any]]] = {
    "train": measure_train,
    "memory": measure_memory,
    "generate": measure_generate,
    "load": measure_load,
    "data": measure_data,
    "answer": measure_answer,
}


def bare_model(config: CompressionConfig) -> tuple[CompressedLM, Mesh]:
    """Build the model without a prompt around its slots; return its mesh too."""
    start_jax(config)
    mesh = make_mesh(config.mesh)
    base = load_base(resolve(config.model), config.model, mesh)
    return with_question(build_on(base, mesh, config)), mesh


def full_batch(config: CompressionConfig, rows: int, tokens: int, answer_tokens: int) -> Batch:
    """Draw rows of random tokens without padding."""
    base = resolve(config.model, offline=True).config
    rng = np.random.default_rng(config.seed)
    C = config.data.context_tokens
    return Batch(
        prefix_ids_P=np.zeros(0, np.int32),
        context_ids_ExC=rng.integers(0, base.vocab_size, (rows, C), np.int32),
        context_length_E=np.full(rows, C, np.int32),
        tokens_BxS=rng.integers(0, base.vocab_size, (rows, tokens), np.int32),
        question_length_B=np.full(rows, tokens - answer_tokens, np.int32),
        answer_length_B=np.full(rows, answer_tokens, np.int32),
        context_id_E=np.arange(rows, dtype=np.int32),
        objective_B=np.zeros(rows, np.int32),
        context_view_ExD=rng.standard_normal((rows, base.d_model), np.float32),
        kvzip_chooses_1=np.zeros(1, bool) if config.learns_scores else None,
    )


def decode_bytes(config: CompressionConfig, base: LlamaConfig, rows: int, positions: int) -> int:
    """Bytes that a decoded token must read: every matrix once, and the cache."""
    matrices = layer_parameters(base) * base.n_layers + base.vocab_size * base.d_model
    cache = 2 * base.n_layers * rows * positions * base.n_kv_heads * base.head_dim
    weight = jnp.dtype(config.model.dtype).itemsize
    return matrices * weight + cache * compute_dtype(config.model).itemsize

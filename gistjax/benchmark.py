"""How fast this machine runs a configuration, and how far that is from what the hardware can do.

    python -m gistjax.benchmark --mode train [--tokens 64] [--answer_tokens 16] [--repeats 10]
                                [--config FILE] [--config.KEY=VALUE …]

    train      a whole train step on synthetic rows: time, examples/s, TFLOP/s, share of the matmul rate, memory
    memory     the peak of training in the config's largest shapes, beside the estimate of `--dry_run`
    generate   the same rows answered: compress, prefill and decode apart
    load       the base's weights from config.model.path: GB/s and peak host memory
    data       the input pipeline on config.data alone: examples/s, share of real tokens
    answer     config.data's validation questions answered by real weights, after compilation

Rows are full: config.data.context_tokens of context, `tokens` of question and answer. Weights are random unless
config.model.path says otherwise. `training.flops` says what counts as a FLOP.
"""

from __future__ import annotations

import re
import sys
import time
from functools import partial
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig, DataConfig, ModelConfig
from gistjax.errors import ConfigError
from gistjax.estimate import out_of_memory as device_memory
from gistjax.runtime import cli
from gistjax.runtime.profiling import (
    GIB,
    HostMemory,
    log_kernels,
    machine_rates,
    median_seconds,
    peak_memory_gib,
)
from gistjax.validation import validate


def defaults() -> CompressionConfig:
    """512 → 64 with random weights and teacher forcing alone, on the questions of the package."""
    return CompressionConfig(
        accumulation=1,
        loss_weights={"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0},
        model=ModelConfig(path="random"),
        data=DataConfig(path="sample"),
    )


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    validate(config)
    if args.answer_tokens >= args.tokens:
        raise ConfigError(
            f"--answer_tokens={args.answer_tokens} leaves no question in --tokens={args.tokens}."
        )
    from gistjax.experiment import evaluator as results
    from gistjax.runtime.devices import choose_kernels

    choose_kernels(config)
    with device_memory.explained(
        config, "a forward pass" if args.mode in ("generate", "answer") else "training"
    ):
        measured = MEASURES[args.mode](config, args)
    cli.print_result(
        {
            "mode": args.mode,
            "base_model": config.model.name,
            "architecture": config.architecture,
            **measured,
            "device": results.device_name(),
            "packages": results.versions(),
        }
    )


def measure_train(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """One optimizer step over `accumulation` micro-batches of `batch_size` rows a device."""
    import jax

    from gistjax.estimate.flops import step_flops
    from gistjax.estimate.planning import memory_positions
    from gistjax.runtime.sharding import put_batch, rows_per_step
    from gistjax.training.losses import LossSettings
    from gistjax.training.optimizer import make_optimizer
    from gistjax.training.step import init_state, make_train_step, split_model, state_shardings

    rates = machine_rates()
    model, mesh = bare_model(config)
    graphdef, trainable, frozen = split_model(model)
    optimizer = make_optimizer(config.optimizer, 1000, trainable)
    state = init_state(trainable, optimizer, mesh)
    settings = LossSettings(config.loss_weights, args.answer_tokens, end_id=-1)
    train_step = make_train_step(graphdef, optimizer, settings, state_shardings(state, mesh))
    rows = config.batch_size * rows_per_step(mesh)
    host_batch = full_batch(config, rows, args.tokens, args.answer_tokens)
    stacked = jax.tree.map(lambda x: x[None].repeat(config.accumulation, 0), host_batch)
    batch = put_batch(stacked, mesh, leading=1)
    start = time.perf_counter()
    compiled = train_step.lower(state, frozen, batch).compile()  # type: ignore[attr-defined]
    compile_s = time.perf_counter() - start

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return metrics

    seconds = median_seconds(step, args.repeats)
    if args.profile:
        log_kernels(step, args.profile)
    examples = rows * config.accumulation
    C = config.data.context_tokens
    decoder, encoder = step_flops(
        config, model.base.config, C, memory_positions(config, C) + args.tokens
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


def measure_memory(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """The peak of a process that does nothing but train three steps, beside what `--dry_run` estimates. Weights and rows
    are zeros: memory does not depend on them.
    """
    import jax
    import jax.numpy as jnp

    from gistjax.estimate.planning import memory_estimate, prefix_tokens, train_program
    from gistjax.model.attention import choose_kernel
    from gistjax.weights.registry import resolve

    source = resolve(config.model, offline=True)
    base, prefix = source.config, prefix_tokens(source)
    kernel = choose_kernel(config.model.attention, base.head_dim, jnp.dtype(config.model.dtype))
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


def measure_generate(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """`answer_tokens` tokens for each of `batch_size` rows, greedily; no row ends early."""
    import jax
    from flax import nnx

    from gistjax.compress.decoding import greedy
    from gistjax.runtime.sharding import put_batch, rows_per_step
    from gistjax.training.step import split_model

    rates = machine_rates()
    model, mesh = bare_model(config)
    graphdef, *weights = split_model(model)
    rows = config.batch_size * rows_per_step(mesh)
    batch = put_batch(full_batch(config, rows, args.tokens, 0), mesh)
    questions = (batch.tokens_BxS, batch.question_length_B)

    def answer(weights: Any, memory: Any, questions: tuple[Any, Any], n: int) -> Any:
        return greedy(nnx.merge(graphdef, *weights), memory, *questions, n, -1)

    compress = jax.jit(lambda weights, *context: nnx.merge(graphdef, *weights).compress(*context))
    answer_n = jax.jit(answer, static_argnums=3)
    context = (batch.context_ids_ExC, batch.context_length_E)
    memory = compress(weights, *context)
    n = args.answer_tokens
    compress_s = median_seconds(lambda: compress(weights, *context), args.repeats)
    prefill_s = median_seconds(lambda: answer_n(weights, memory, questions, 1), args.repeats)
    total_s = median_seconds(lambda: answer_n(weights, memory, questions, n), args.repeats)
    if args.profile:
        log_kernels(lambda: answer_n(weights, memory, questions, n), args.profile)
    token_s = (total_s - prefill_s) / max(n - 1, 1)
    read = decode_bytes(config, model.base.config, rows, memory.size + args.tokens + n)
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


def measure_load(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """The base onto the devices, once. On the CPU backend its arrays are host memory too."""
    import resource

    import jax
    from flax import nnx

    from gistjax.runtime.sharding import make_mesh
    from gistjax.weights.registry import load_base, resolve

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


def measure_data(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """An epoch of batches, made and dropped."""
    from gistjax.data.batching import PlanSettings, TrainPlan
    from gistjax.data.dataset import load_dataset
    from gistjax.data.encoding import encode_splits
    from gistjax.data.example import Buckets
    from gistjax.estimate.planning import memory_positions
    from gistjax.experiment.base import find_prompt

    _, prompt = find_prompt(config)
    start = time.perf_counter()
    dataset = load_dataset(config.data, config.seed)
    rows, _, _ = encode_splits(dataset, prompt, config.data, config.seed)
    encode_s = time.perf_counter() - start
    settings = PlanSettings(config.batch_size, config.seed, config.accumulation)
    plan = TrainPlan(rows, Buckets.of(config.data), settings)
    steps = plan.steps_per_epoch
    start = time.perf_counter()
    for step in range(steps):
        plan.batch(step)
    seconds = time.perf_counter() - start
    share = plan.real_decoder_share(len(prompt.prefix_ids), partial(memory_positions, config))
    return {
        "examples": len(rows),
        "encode_s": round(encode_s, 2),
        "examples_per_s": round(steps * config.batch_size * config.accumulation / seconds),
        "real_decoder_share": round(share, 4),
        "shapes": {f"{C}+{S}": steps for (C, S), steps in plan.shapes.items()},
    }


def measure_answer(config: CompressionConfig, args: flags.FlagValues) -> dict[str, Any]:
    """All validation questions, twice; the second pass, which compiles nothing, counts."""
    from gistjax.data.dataset import load_dataset
    from gistjax.data.encoding import encode_splits
    from gistjax.experiment import base as assembly
    from gistjax.training.step import split_model

    pretrained = assembly.load_pretrained(config)
    dataset = load_dataset(config.data, config.seed)
    _, rows, _ = encode_splits(dataset, pretrained.prompt, config.data, config.seed)
    graphdef, trainable, frozen = split_model(assembly.model_on(config, pretrained))
    generator = assembly.make_generator(config, pretrained, graphdef)
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


def bare_model(config: CompressionConfig) -> tuple[Any, Any]:
    """The model without a prompt around its slots, and its mesh."""
    from gistjax.experiment.base import build_model
    from gistjax.runtime.devices import start_jax
    from gistjax.runtime.sharding import make_mesh
    from gistjax.weights.registry import load_base, resolve

    start_jax(config)
    mesh = make_mesh(config.mesh)
    base = load_base(resolve(config.model), config.model, mesh)
    return build_model(config, base, (), mesh), mesh


def full_batch(config: CompressionConfig, rows: int, tokens: int, answer_tokens: int) -> Any:
    """Random rows without padding."""
    import numpy as np

    from gistjax.data.example import Batch
    from gistjax.weights.registry import resolve

    base = resolve(config.model, offline=True).config
    rng = np.random.default_rng(config.seed)
    C = config.data.context_tokens
    return Batch(
        context_ids_ExC=rng.integers(0, base.vocab_size, (rows, C), np.int32),
        context_length_E=np.full(rows, C, np.int32),
        tokens_BxS=rng.integers(0, base.vocab_size, (rows, tokens), np.int32),
        question_length_B=np.full(rows, tokens - answer_tokens, np.int32),
        answer_length_B=np.full(rows, answer_tokens, np.int32),
        context_id_E=np.arange(rows, dtype=np.int32),
        objective_B=np.zeros(rows, np.int32),
        context_view_ExD=rng.standard_normal((rows, base.d_model), np.float32),
    )


def decode_bytes(config: CompressionConfig, base: Any, rows: int, positions: int) -> int:
    """Bytes that a decoded token must read: every matrix once, and the cache."""
    import jax.numpy as jnp

    from gistjax.estimate.flops import layer_parameters

    matrices = layer_parameters(base) * base.n_layers + base.vocab_size * base.d_model
    cache = 2 * base.n_layers * rows * positions * base.n_kv_heads * base.head_dim
    return (matrices + cache) * jnp.dtype(config.model.dtype).itemsize


MEASURES = {
    "train": measure_train,
    "memory": measure_memory,
    "generate": measure_generate,
    "load": measure_load,
    "data": measure_data,
    "answer": measure_answer,
}


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_enum("mode", "train", list(MEASURES), "What to measure.", flag_values=values)
    flags.DEFINE_integer(
        "tokens", 64, "Question and answer tokens of a row.", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer(
        "answer_tokens",
        16,
        "Answer tokens of a row, or to generate.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "repeats", 10, "Timed calls; the median counts.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "profile", 0, "Also list so many of the longest kernels.", lower_bound=0, flag_values=values
    )


if __name__ == "__main__":
    from_file = any(re.match(r"--?config(=|$)", word) for word in sys.argv[1:])
    cli.run(main, define_flags, None if from_file else lambda argv: defaults())

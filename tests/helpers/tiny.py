"""The small models that many tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.decoding import greedy
from gistjax.compress.parameters import split_model
from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    LoraConfig,
    OptimizerConfig,
)
from gistjax.data.example import Batch
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.layer import fuse_qkv, random_initializer
from gistjax.model.llama import Execution, Llama, unstack
from gistjax.model.lora import Trainable
from gistjax.model.masks import causal_mask, lengths_to_valid
from gistjax.runtime.sharding import one_device, put_batch, shardings_of
from gistjax.training import step as steps
from gistjax.training.losses import LossSettings
from gistjax.training.optimizer import make_optimizer
from gistjax.training.targets import _view

TINY = LlamaConfig(
    vocab_size=61,
    d_model=32,
    d_ff=48,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    max_positions=256,
)

FAMILIES = {
    "llama": TINY,
    "qwen2": dataclasses.replace(TINY, qkv_biases=True),
    "qwen3": dataclasses.replace(TINY, qk_norms=True, head_dim=12),
    "smollm3": dataclasses.replace(TINY, unrotated_layers=(1,)),
}
"""What a layer may have, each way once."""

PREFIX = np.array([1, 2, 3], np.int32)
"""The prompt before every context."""


def tiny_base(
    config: LlamaConfig = TINY, seed: int = 0, scan: bool = True, **execution: object
) -> Llama:
    """A random base in fp32 whose weights are large enough for its states to differ."""
    initializer = random_initializer(jax.random.key(seed), jnp.float32)
    base = Llama(config, initializer, execution=Execution(**execution))
    for leaf in (base.embedding, base.layers.qkv, base.layers.o):
        leaf[...] = leaf[...] * 10
    if base.layers.qkv_bias is not None:
        base.layers.qkv_bias[...] = base.layers.qkv_bias[...] * 30
    for turn, norm in enumerate((base.layers.q_norm, base.layers.k_norm)):
        if norm is not None:
            norm[...] = 1 + jnp.sin(jnp.arange(norm[...].size) + turn).reshape(norm[...].shape) / 2
    if base.output is not None:
        base.output[...] = base.output[...] * 30
    if not scan:
        base.layers = unstack(base.layers)
    return base


def projections(base: Llama) -> dict[str, jax.Array]:
    """The seven projections `[L, in, out]` of a base with stacked layers, unfused."""
    c, layers = base.config, base.layers
    qkv, G = layers.qkv[...], c.n_heads // c.n_kv_heads
    parts = {"q": qkv[..., :G, :], "k": qkv[..., G, :], "v": qkv[..., G + 1, :]}
    flat = {name: part.reshape(c.n_layers, c.d_model, -1) for name, part in parts.items()}
    gate, up = layers.gate_up[...][:, :, 0], layers.gate_up[...][:, :, 1]
    return {**flat, "o": layers.o[...], "gate": gate, "up": up, "down": layers.down[...]}


def put_projections(base: Llama, new: dict[str, jax.Array]) -> None:
    """The inverse of `projections`."""
    layers = base.layers
    layers.qkv[...] = fuse_qkv(new["q"], new["k"], new["v"], base.config.n_kv_heads)
    layers.gate_up[...] = jnp.stack([new["gate"], new["up"]], axis=-2)
    layers.o[...], layers.down[...] = new["o"], new["down"]


def tiny_model(
    architecture: str = "gist", *, base: Llama | None = None, seed: int = 1, **changes: object
) -> CompressedLM:
    """A model with 4 slots over contexts of up to 16 tokens, LoRA no longer at zero."""
    config = CompressionConfig(
        architecture=architecture,
        target_length=4,
        lora=LoraConfig(rank=2, alpha=2.0),
        encoder=EncoderConfig(lora=LoraConfig(rank=2, alpha=2.0)),
        data=DataConfig(context_tokens=16),
    ).replace(**changes)
    model = CompressedLM(base or tiny_base(), config, jax.random.key(seed))
    inner = model.compressor or model.selector
    for lora in (model.lora, inner and inner.encoder.lora):
        if lora is not None:
            for name, adapter in lora.adapters.items():
                key = jax.random.key(len(name))
                adapter.b[...] = 0.3 * jax.random.normal(key, adapter.b[...].shape)
    return model


class Compiled:
    """A model whose methods run as a program each, which models that differ in their weights alone
    share.

    Op by op, each call of a method would trace its layers anew, and compile them.
    """

    def __init__(self, model: CompressedLM):
        self.base, (self._graphdef, self._state) = model.base, nnx.split(model)

    def __getattr__(self, name: str):
        return functools.partial(self._call, getattr(CompressedLM, name))

    def written(self, *args: object):
        """`greedy` with this model."""
        return self._call(greedy, *args)

    def greedy(self, *args: object):
        """The tokens of `written` alone."""
        return self.written(*args).ids_BxA

    def _call(self, function, *args, **arrays):
        sizes = tuple((i, x) for i, x in enumerate(args) if isinstance(x, int))
        others = [None if isinstance(x, int) else x for x in args]
        return _run(function, self._graphdef, sizes, self._state, others, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(function, graphdef, sizes, state, args, arrays):
    for i, size in sizes:
        args[i] = size
    return function(nnx.merge(graphdef, state), *args, **arrays)


def tiny_batch(rng: np.random.Generator, B: int = 4, C: int = 16, S: int = 9) -> Batch:
    """Random rows of random lengths; rows 0 and 1 share their context."""
    question_length = rng.integers(2, 5, B)
    context_ids, context_length = rng.integers(0, 61, (B, C)), rng.integers(5, C + 1, B)
    context_ids[1], context_length[1] = context_ids[0], context_length[0]
    batch = Batch(
        prefix_ids_P=PREFIX,
        context_ids_ExC=context_ids,
        context_length_E=context_length,
        tokens_BxS=rng.integers(0, 61, (B, S)),
        question_length_B=question_length,
        answer_length_B=rng.integers(1, 5, B),
        context_id_E=np.array([0, *range(B - 1)]),
        objective_B=np.zeros(B),
    )
    batch = jax.tree.map(lambda x: x.astype(np.int32), batch)
    views = _tiny_views()(batch.context_ids_ExC, batch.context_length_E)
    return dataclasses.replace(batch, context_view_ExD=np.asarray(views))


@functools.cache
def _tiny_views():
    base = tiny_base()
    return jax.jit(lambda ids, length: _view(base, ids, length, 2))


def positions_of(valid_BxT: jax.Array) -> jax.Array:
    """Rotary positions: each real token counts the real ones before it; padding repeats."""
    return jnp.maximum(jnp.cumsum(valid_BxT, axis=1) - 1, 0)


def tiny_inputs(rng, B=3, C=16, S=7):
    """Contexts and questions of different lengths, as ids and lengths."""
    ids = jnp.array(rng.integers(0, 61, (B, C)))
    tokens = jnp.array(rng.integers(0, 61, (B, S)))
    return ids, jnp.array([16, 9, 3][:B]), tokens, jnp.array([7, 4, 5][:B])


def all_logits(base, ids, lengths):
    """The logits of every position of right padded rows, read causally."""
    valid = lengths_to_valid(jnp.array(lengths), ids.shape[1])
    return np.asarray(_logits(*nnx.split(base), jnp.array(ids), valid))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, ids, valid):
    base = nnx.merge(graphdef, state)
    return base.logits(base(base.embed(ids), positions_of(valid), causal_mask(valid))[0])


WEIGHTS = {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}


def start(mesh, model=None, weights=WEIGHTS, rate=1e-4, spike_factor=0.0):
    """State, frozen leaves and step of a training that begins."""
    graphdef, trainable, frozen = split_model(model or tiny_model("gist"))
    trainable = jax.device_put(trainable, shardings_of(trainable, mesh))
    frozen = jax.device_put(frozen, shardings_of(frozen, mesh))
    optimizer = make_optimizer(OptimizerConfig(compressor_lr=rate, lora_lr=rate), 100, trainable)
    state = steps.init_state(trainable, optimizer, mesh)
    settings, shardings = LossSettings(weights, 5, end_id=7), steps.state_shardings(state, mesh)
    return (
        state,
        frozen,
        steps.make_train_step(graphdef, optimizer, settings, shardings, spike_factor),
    )


def micro_batches(rng: np.random.Generator, K: int = 1, B: int = 8) -> Batch:
    """The batches `[K, B, …]` of a step."""
    batches = [tiny_batch(rng, B) for _ in range(K)]
    return jax.tree.map(lambda *xs: np.stack(xs), *batches)


def check_learns_alike(made):
    """Check that four steps lower the loss of what `made` returns, on two devices as on one."""
    axes, auto = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    two = jax.make_mesh((1, 2, 1), axes, axis_types=auto, devices=jax.devices()[:2])
    batches, found = micro_batches(np.random.default_rng(0)), []
    for mesh in (one_device(), two):
        state, frozen, step = start(mesh, made(), {"teacher_forcing": 1.0}, rate=1e-3)
        losses = []
        for _ in range(4):
            state, metrics = step(state, frozen, put_batch(batches, mesh, leading=1))
            losses.append(float(metrics["loss"]))
        found.append(losses)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert found[0][-1] < found[0][0]


def in_turn(names, values):
    """Cells of a grid that meet each name and each value, without a mark; the others are long."""
    names, values = list(names), list(values)
    return [
        pytest.param(name, value, marks=() if place == number % len(values) else pytest.mark.long)
        for number, name in enumerate(names)
        for place, value in enumerate(values)
    ]


BAD = ("nan loss", "inf loss", "nan gradient", "inf gradient", "spike")
"""What `make_bad` can do to a step."""


def poison(patch) -> None:
    """From now on the last micro-batch of what `make_bad` returns has a bad loss or gradient."""
    total_loss = steps.total_loss

    def poisoned(model, batch, settings, whole):
        loss, losses = total_loss(model, batch, settings, whole)
        mark = batch.context_view_ExD[0, 0]
        is_bad = [mark == _mark(kind) for kind in BAD]
        for kind, factor in enumerate((jnp.nan, jnp.inf)):
            loss = loss * jnp.where(is_bad[kind], factor, 1.0)
        x = jax.tree.leaves(nnx.state(model, Trainable))[0].ravel()[0]
        # The square root is 0 at 0; its slope is infinite there, and that times 0 is not a number.
        for kind, zero in ((2, 0 * x), (3, x - jax.lax.stop_gradient(x))):
            one = jnp.where(is_bad[kind], 0.0, 1.0)
            loss = loss + jnp.sqrt(jnp.where(is_bad[kind], zero, 1.0)) - one
        return loss * jnp.where(is_bad[4], 1000.0, 1.0), losses

    patch.setattr(steps, "total_loss", poisoned)


def make_bad(batches: Batch, kind: str) -> Batch:
    """Marks the last micro-batch, in what only the contrastive loss reads."""
    view = batches.context_view_ExD.copy()
    view[-1, 0, 0] = _mark(kind)
    return dataclasses.replace(batches, context_view_ExD=view)


def _mark(kind: str) -> float:
    return 1e6 * (1 + BAD.index(kind))  # exact in fp32, and far from any state

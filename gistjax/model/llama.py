"""Llama, Mistral, Qwen and SmolLM in Flax NNX: explicit masks and positions, adapters beside them.

The layers are unrolled, or stacked and scanned over. Shapes are suffixes of names, one letter an
axis:

    B batch rows          T positions that ask (queries)   D model width
    L layers              U positions that are asked       F feed-forward width
    N query heads         W positions whose states are wanted
    K key/value heads     G query heads per K (N = K·G)    H head width
    R LoRA rank           I, O width in, out               V vocabulary
    J heads of a K: G queries, a key, a value

Architecture: Touvron et al. 2023 (arXiv:2307.09288) and Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import Cache
from gistjax.model.layer import (
    Adapters,
    Frozen,
    Initializer,
    Inputs,
    Layer,
    Observer,
    rms_norm,
    run_layer,
    take_positions,
)
from gistjax.model.lora import LoRA, LoRAWeights
from gistjax.model.masks import Mask
from gistjax.model.rope import rope_angles
from gistjax.runtime.sharding import shard_rows


@dataclass(frozen=True)
class Execution:
    """Settings with which a decoder runs, whatever its weights are."""

    dtype: str = ""  # of activations and products; empty: as the weights are stored
    kernel: str = "xla"  # of attention without a mask array: xla | cudnn
    remat: bool = False  # recompute each layer's activations in the backward pass
    mesh: Mesh | None = None  # that the weights are spread over


class Llama(nnx.Module):
    """A pretrained decoder. Every weight is `Frozen`; adapters are passed in beside it.

    Args:
        config: sizes.
        make: fills the weights; their dtype is how they are stored.
        scan: keep the layers stacked and scan over them: compiles fast, runs slower, because every
            step copies each layer out of the stack. Otherwise each layer is a set of arrays of its
            own and the program is unrolled.
        execution: how it runs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        make: Initializer,
        scan: bool = True,
        execution: Execution | None = None,
    ):
        self.config, self.execution = config, execution or Execution()
        V, D = config.vocab_size, config.d_model
        self.embedding = Frozen(make((V, D), 0.02))
        stacked = Layer(config, make, (config.n_layers,))
        self.layers = stacked if scan else unstack(stacked)
        self.final_norm = Frozen(make((D,), 0.0))
        self.output = None if config.tie_embeddings else Frozen(make((V, D), 0.02))

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of all activations; weights that are stored in another are cast at use."""
        stored: jnp.dtype = self.embedding[...].dtype
        return jnp.dtype(self.execution.dtype) if self.execution.dtype else stored

    def embed(self, ids_BxT: Array) -> Array:
        """Token embeddings `[B, T, D]`."""
        x_BxTxD = jnp.take(self.embedding[...], ids_BxT, axis=0).astype(self.dtype)
        return shard_rows(x_BxTxD, self.execution.mesh)

    def logits(self, h_BxTxD: Array) -> Array:
        """Vocabulary scores in fp32 of states that `__call__` returned (already normed)."""
        weights_VxD = self.embedding[...] if self.output is None else self.output[...]
        return _vocabulary_scores(h_BxTxD, weights_VxD)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `length` positions, stacked like the layers."""
        stacked = isinstance(self.layers, Layer)
        return Cache.empty(self.config, batch, length, self.dtype, stacked)

    def __call__(
        self,
        x_BxTxD: Array,
        positions_BxT: Array,
        mask_BxTxU: Mask | None = None,
        lora: LoRA | None = None,
        cache: Cache | None = None,
        start: Array | int = 0,
        n_layers: int | range | None = None,
        logit_positions_BxW: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        """Run the layers over embeddings.

        Args:
            x_BxTxD: inputs, in `dtype`.
            positions_BxT: rotary positions; one row may stand for all.
            mask_BxTxU: True where a position may look, U being T or the cache's length. It may be
                of the last positions only: those before them look at each other causally. Without
                a mask all do. `Bidirectional` masks all T, and a cache must begin with them.
            lora: adapters, stacked along the layers.
            cache: keys and values seen so far; this call's are written from index `start` on.
            start: index in the cache of the first of the T positions; 0 if any of them is causal.
            n_layers: run only so many layers, or those of a range (without a cache).
            logit_positions_BxW: return the states of these positions only; the last layer spares
                the others' feed-forward. A mask must then be of all T positions, or none.

        Returns:
            States `[B, T, D]` or `[B, W, D]`, after the final norm if all layers ran, and the new
            cache.
        """
        depth = self.config.n_layers if n_layers is None else n_layers
        layers = depth if isinstance(depth, range) else range(depth)
        inputs = self._inputs(positions_BxT, mask_BxTxU)
        adapters = {} if lora is None else lora.fused(self.config, x_BxTxD.dtype)
        run = self._scan if isinstance(self.layers, Layer) else self._unroll
        given = (cache, start, layers, logit_positions_BxW, None)
        x_BxTxD, cache, _ = run(x_BxTxD, inputs, adapters, *given)
        if layers.stop == self.config.n_layers:
            x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], self.config.rms_eps)
        return x_BxTxD, cache

    def observe(
        self,
        x_BxTxD: Array,
        positions_BxT: Array,
        mask_BxTxU: Mask | None,
        lora: LoRA | None,
        cache: Cache,
        start: int,
        observe: Observer,
        weights: Any = None,
    ) -> tuple[Cache, Any]:
        """Run the layers as `__call__` does, for their cache and what an observer makes of them.

        Args:
            observe: called in every layer.
            weights: its own, a tree of arrays with an axis L in front.

        Returns:
            The new cache, and what `observe` returns, stacked over the layers.
        """
        inputs = replace(self._inputs(positions_BxT, mask_BxTxU), observe=observe)
        adapters = {} if lora is None else lora.fused(self.config, x_BxTxD.dtype)
        run = self._scan if isinstance(self.layers, Layer) else self._unroll
        # nobody reads the states: of the last layer only keys and values count
        nothing_Bx1 = jnp.zeros((x_BxTxD.shape[0], 1), jnp.int32)
        depth = range(self.config.n_layers)
        _, new, seen = run(x_BxTxD, inputs, adapters, cache, start, depth, nothing_Bx1, weights)
        assert new is not None
        return new, seen

    def _inputs(self, positions_BxT: Array, mask_BxTxU: Mask | None) -> Inputs:
        rope, run = rope_angles(self.config, positions_BxT), self.execution
        return Inputs(self.config, rope, mask_BxTxU, run.kernel, run.mesh)

    def merged(self, lora: LoRA) -> Llama:
        """Return a copy with adapters, on all of its layers, added to its weights in `dtype`."""
        base = nnx.merge(*nnx.split(self))
        stacked = isinstance(base.layers, Layer)
        layers: Any = [base.layers] if stacked else base.layers
        for name, (a_LxIxR, b_LxRxO) in lora.fused(self.config, self.dtype).items():
            change_LxIxO = jnp.einsum("lir,lr...->li...", a_LxIxR, b_LxRxO)
            assert len(change_LxIxO) == self.config.n_layers
            changes = [change_LxIxO] if stacked else jnp.unstack(change_LxIxO)
            for layer, change in zip(layers, changes, strict=True):
                setattr(layer, name, Frozen(getattr(layer, name)[...].astype(self.dtype) + change))
        return base

    def _unroll(
        self,
        x_BxTxD: Array,
        inputs: Inputs,
        adapters: Adapters,
        cache: Cache | None,
        start: Array | int,
        layers: range,
        logit_positions_BxW: Array | None,
        observer: Any,
    ) -> tuple[Array, Cache | None, Any]:
        assert isinstance(self.layers, nnx.List)

        def body(weights: Any, adapters: Adapters, x: Array, *parts: Any) -> Any:
            rope, part, logit_positions, observer = parts
            layer = nnx.merge(graphdef, weights)
            return run_layer(layer, adapters, x, inputs, rope, part, logit_positions, observer)

        body = jax.jit(
            jax.checkpoint(body) if self.execution.remat else body
        )  # traced once for all layers
        parts = {name: (jnp.unstack(a), jnp.unstack(b)) for name, (a, b) in adapters.items()}
        seen = []
        for i, layer in enumerate(self.layers[layers.start : layers.stop], layers.start):
            graphdef, weights = nnx.split(layer)
            own = {name: LoRAWeights(a[i], b[i]) for name, (a, b) in parts.items()}
            part = None if cache is None else cache.layer(i, start)
            logit_positions = logit_positions_BxW if i == layers.stop - 1 else None
            watch = jax.tree.map(lambda x, i=i: x[i], observer)
            rest = (inputs.rope_of(i), part, logit_positions, watch)
            x_BxTxD, part, observed = body(weights, own, x_BxTxD, *rest)
            cache = cache if cache is None else cache.put(i, part)
            seen.append(observed)
        return x_BxTxD, cache, jax.tree.map(lambda *x: jnp.stack(x), *seen) if seen else None

    def _scan(
        self,
        x_BxTxD: Array,
        inputs: Inputs,
        adapters: Adapters,
        cache: Cache | None,
        start: Array | int,
        layers: range,
        logit_positions_BxW: Array | None,
        observer: Any,
    ) -> tuple[Array, Cache | None, Any]:
        graphdef, stacked = nnx.split(self.layers)
        weights = jax.tree.map(
            lambda w: w[layers.start : layers.stop], (stacked, adapters, observer)
        )

        def body(carry: tuple[Array, Cache | None], xs: Any) -> tuple[Any, Any]:
            x, cache = carry
            index, (layer, adapters, observer) = xs
            part = None if cache is None else cache.layer(index, start)
            merged: Any = nnx.merge(graphdef, layer)
            rope = inputs.rope_of(index)
            x, part, seen = run_layer(merged, adapters, x, inputs, rope, part, None, observer)
            return (x, cache if part is None or cache is None else cache.put(index, part)), seen

        if self.execution.remat:
            body = jax.checkpoint(body)
        xs = jnp.arange(layers.start, layers.stop), weights
        (x_BxTxD, cache), seen = jax.lax.scan(body, (x_BxTxD, cache), xs)
        if logit_positions_BxW is not None:
            x_BxTxD = take_positions(x_BxTxD, logit_positions_BxW)
        return x_BxTxD, cache, seen


@jax.custom_vjp
def _vocabulary_scores(h: Array, weights_VxD: Array) -> Array:
    weights_VxD = weights_VxD.astype(h.dtype)
    return jnp.einsum("...d,vd->...v", h, weights_VxD, preferred_element_type=jnp.float32)


def _scores_forward(h: Array, weights_VxD: Array) -> tuple[Array, tuple[Array, Array]]:
    return _vocabulary_scores(h, weights_VxD), (h, weights_VxD)


def _scores_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    """In the states' dtype: a product of fp32 and bf16 would run in fp32; weights are frozen."""
    h, weights_VxD = residuals
    dh = jnp.einsum("...v,vd->...d", dy.astype(h.dtype), weights_VxD.astype(h.dtype))
    return dh, None


_vocabulary_scores.defvjp(_scores_forward, _scores_backward)


def unstack(stacked: Layer) -> nnx.List[Layer]:
    """The layers one by one."""
    graphdef, state = nnx.split(stacked)
    leaves, treedef = jax.tree.flatten(state)
    layers = zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)
    return nnx.List(nnx.merge(graphdef, jax.tree.unflatten(treedef, x)) for x in layers)

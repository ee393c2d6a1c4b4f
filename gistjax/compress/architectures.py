"""The architectures under test: states `[B, C, D]` of the context in, slots `[B, M, D]` out.

An architecture is called as `architecture(states_BxCxD, length_B, slots_B, M)`: how many context
tokens are real in each row, how many slots the row is to use, and how many there is room for, at
most as many as it was built for. It returns `[B, M, D]` in the states' dtype. Slots past `slots_B`
have empty windows: the decoder does not see them, but they and their gradients must be finite. What
is in a padded state changes no slot. Parameters are fp32, compute follows the states.

To add one, write a class with what `Architecture` lists, and name it: by a line in
`config.ARCHITECTURES`, or in a module of your own by its path,
`--config.architecture=my_module.MyArchitecture`. Two names with `+` between: a stack.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from gistjax.compress.encoder import check_pooling
from gistjax.compress.layers import (
    INTO,
    OUT_OF,
    Attention,
    FeedForward,
    apply,
    matrix,
    norm,
    parameter,
    standardize,
)
from gistjax.compress.stack import stack
from gistjax.compress.windows import masked_softmax, window_centres, window_means, windows
from gistjax.config import ARCHITECTURES, CompressionConfig
from gistjax.errors import ConfigError, did_you_mean, first_line
from gistjax.model.config import LlamaConfig
from gistjax.model.masks import lengths_to_valid
from gistjax.names import STACKED, parts_of, stack_problem
from gistjax.runtime.sharding import one_device, shardings_of


class Architecture(Protocol):
    """An architecture. It is built as `MyArchitecture(base_config, M, nominal_ratio, key)`.

    Each parameter declares how it lies on the mesh and whether weight decay shrinks it: make
    matrices with `layers.matrix` or `layers.parameter`. A matrix without a declaration is refused;
    vectors need none, they are replicated and not decayed.

    One more method is optional: `weights(states_BxCxD, length_B, slots_B, M)` returns the part that
    each token has in each slot, `[B, M, C]` in fp32, to look at. They sum to 1, or to 0 where a
    slot reads nothing.
    """

    gives: ClassVar[tuple[str, ...]]
    """`slots`, `scores`, or both."""

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """Slots `[B, M, D]`."""

    @staticmethod
    def resize(name: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Make a parameter of an earlier stage fit, which had another ratio or number of slots.

        Args:
            name: of the parameter, within the architecture.
            shape: the shape that it has here. An array of another one is refused.
        """


REQUIRED = {
    "gives": "a tuple of `slots`, `scores` or both",
    "__call__": "states to slots",
    "resize": "how a parameter of another size is made to fit; `architectures.first_rows` will do",
}
"""Attributes that a class must have to be an architecture."""


def find_architecture(name: str) -> type[Any]:
    """Return the class that is registered under a name, found at a dotted path, or a stack of two.

    Raises:
        ConfigError: if there is none, or it lacks something that an architecture needs.
    """
    if STACKED in name:
        if problem := stack_problem(name):
            raise ConfigError(problem)
        first, second = map(find_architecture, parts_of(name))
        return stack(first, second)  # type: ignore[arg-type]  # a class has a hash
    path = ARCHITECTURES.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ConfigError(f"architecture cannot be {name!r}{did_you_mean(name, ARCHITECTURES)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"architecture={name!r} cannot be imported ({error}): give the path of a class, such "
            "as my_module.MyArchitecture, in a module that Python finds."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"architecture={name!r} is no class, but {found!r}: give a class's path.")
    for needed, about in REQUIRED.items():
        if not any(needed in vars(kind) for kind in found.__mro__[:-1]):
            raise ConfigError(
                f"architecture={name!r} has no `{needed}` ({about}): add it to the class."
            )
    return found


def check_architecture(config: CompressionConfig, base: LlamaConfig) -> None:
    """Refuse an architecture that could not be trained, from shapes alone.

    Args:
        base: sizes of the base whose states it reads.

    Raises:
        ConfigError: naming what it lacks, or what it returns.
    """
    check_pooling(config, base)
    if not config.compresses or config.selects:
        return
    kind, name = find_architecture(config.architecture), f"architecture={config.architecture!r}"
    if "slots" not in kind.gives:
        raise ConfigError(
            f"{name} gives {' and '.join(kind.gives) or 'nothing'}, but "
            f"slot_form={config.slot_form!r} takes slots."
        )
    B, C, M, D = 2, config.data.context_tokens, config.target_length, base.d_model
    dtype = jnp.dtype(config.model.compute_dtype or config.model.dtype)

    def run() -> tuple[Any, Any]:
        module = kind(base, M, max(C // M, 1), jax.random.key(0))
        length_B, slots_B = jnp.full(B, C), jnp.full(B, M)
        return module, module(jnp.zeros((B, C, D), dtype), length_B, slots_B, M)

    try:
        module, slots = nnx.eval_shape(run)
    except Exception as error:
        raise ConfigError(
            f"{name} does not run on {B} contexts of {C} states: {first_line(error)}"
        ) from error
    shardings_of(nnx.state(module), one_device(), "compressor/architecture/")
    if (slots.shape, slots.dtype) != ((B, M, D), dtype):
        raise ConfigError(
            f"{name} returns {slots.dtype.name} {slots.shape} for {dtype.name} states {(B, C, D)} "
            f"and {M} slots: return {(B, M, D)} in the states' dtype."
        )


def first_rows(name: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The first rows where there are more than are needed, such as the queries of more slots."""
    return old[: shape[0]] if old.ndim and old.shape[1:] == shape[1:] else old


class CrossAttention(nnx.Module):
    """M learned queries attend to all states, then a feed-forward: 6·D² parameters.

    After Perceiver (Jaegle et al. 2021, arXiv:2103.03206). Query m is at the middle of window m, so
    that rotary positions tell it which part of the context is near.
    """

    gives = ("slots",)
    resize = staticmethod(first_rows)

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        key_q, key_a, key_f = jax.random.split(key, 3)
        self.queries = parameter(0.02 * jax.random.normal(key_q, (M, D)), decay=False)
        self.attention = Attention(D, base.n_heads, key_a)
        self.query_norm, self.ffn_norm = nnx.Param(jnp.ones(D)), nnx.Param(jnp.ones(D))
        self.feed_forward = FeedForward(D, D, key_f)

    def read(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """The queries after they have attended to the states."""
        queries_MxD = self.queries[:M].astype(states_BxCxD.dtype)
        x_BxMxD = jnp.broadcast_to(queries_MxD, (states_BxCxD.shape[0], *queries_MxD.shape))
        asked = self._ask(x_BxMxD, states_BxCxD, length_B, slots_B, M)
        return x_BxMxD + self.attention(*asked)

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """Return the weight of each token for each query."""
        queries_MxD = self.queries[:M].astype(states_BxCxD.dtype)
        x_BxMxD = jnp.broadcast_to(queries_MxD, (states_BxCxD.shape[0], *queries_MxD.shape))
        return self.attention.weights(*self._ask(x_BxMxD, states_BxCxD, length_B, slots_B, M))

    def _ask(
        self, x_BxMxD: Array, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int
    ) -> tuple[Array, ...]:
        """The arguments of attention."""
        B, C, _ = states_BxCxD.shape
        centres_BxM = window_centres(length_B, slots_B, M)
        places_BxC = jnp.broadcast_to(jnp.arange(C), (B, C))
        mask_BxMxC = jnp.broadcast_to(lengths_to_valid(length_B, C)[:, None], (B, M, C))
        x_BxMxD = norm(x_BxMxD, self.query_norm)
        return x_BxMxD, centres_BxM, standardize(states_BxCxD), places_BxC, mask_BxMxC

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        x_BxMxD = self.read(states_BxCxD, length_B, slots_B, M)
        return x_BxMxD + self.feed_forward(norm(x_BxMxD, self.ffn_norm))


class Gist(CrossAttention):
    """Gist queries: cross-attention, self-attention among the gists, feed-forward: 8·D² parameters.

    After Mu et al. 2023 (arXiv:2304.08467); with `slot_form = key_values` its slots stay in the
    decoder's sequence under the gist mask, as in that paper. The feed-forward is narrow to stay
    within 8·D².
    """

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        key, key_a, key_f = jax.random.split(key, 3)
        super().__init__(base, M, ratio, key)
        D = base.d_model
        self.self_attention = Attention(D, base.n_heads, key_a)
        self.self_norm = nnx.Param(jnp.ones(D))
        self.feed_forward = FeedForward(D, max(D // 16, 1), key_f)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        x_BxMxD = self.read(states_BxCxD, length_B, slots_B, M)
        B = x_BxMxD.shape[0]
        centres_BxM = window_centres(length_B, slots_B, M)
        mask_BxMxM = jnp.broadcast_to(lengths_to_valid(slots_B, M)[:, None], (B, M, M))
        h_BxMxD = norm(x_BxMxD, self.self_norm)
        x_BxMxD += self.self_attention(h_BxMxD, centres_BxM, h_BxMxD, centres_BxM, mask_BxMxM)
        return x_BxMxD + self.feed_forward(norm(x_BxMxD, self.ffn_norm))


class Conv(nnx.Module):
    """Strided depthwise convolution, pointwise mixing, adaptive pooling to M: 2·D² parameters.

    The depthwise part is WaveNet's idea of local filters (arXiv:1609.03499) without dilation. It
    starts as a mean over its kernel, which is about as wide as the nominal ratio, with several
    `ratios` the least of them. Order is kept throughout.
    """

    gives = ("slots",)

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        key_in, key_out = jax.random.split(key)
        self.stride = max(ratio // 2, 1)
        taps = 2 * self.stride - 1
        self.kernel = parameter(jnp.full((taps, D), 1.0 / taps), decay=False)
        self.mix_norm = nnx.Param(jnp.ones(D))
        self.mix_in, self.mix_out = matrix(key_in, D, D, INTO), matrix(key_out, D, D, OUT_OF)

    @staticmethod
    def resize(name: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Stretch the kernel to its new width."""
        return stretched(old, shape[0]) if name == "kernel" and len(old) else old

    def convolve(self, x_BxCxD: Array) -> Array:
        """`[B, ceil(C / stride), D]`: output i is centred on token i·stride."""
        kernel_ZxD = self.kernel[...].astype(x_BxCxD.dtype)
        width, C = kernel_ZxD.shape[0], x_BxCxD.shape[1]
        side = width // 2
        padded = jnp.pad(x_BxCxD, ((0, 0), (side, side), (0, 0)))
        taps = [padded[:, z : z + C : self.stride] * kernel_ZxD[z] for z in range(width)]
        return jnp.sum(jnp.stack(taps), axis=0)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        real_BxCx1 = lengths_to_valid(length_B, states_BxCxD.shape[1])[:, :, None]
        x_BxCxD = self.convolve(jnp.where(real_BxCx1, standardize(states_BxCxD), 0))
        h_BxCxD = jax.nn.gelu(apply(norm(x_BxCxD, self.mix_norm), self.mix_in))
        x_BxCxD = x_BxCxD + apply(h_BxCxD, self.mix_out)
        return window_means(x_BxCxD, -(-length_B // self.stride), slots_B, M)

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """The convolution's part in the windows' means: the size of its taps over channels."""
        C = states_BxCxD.shape[1]
        taps_Z = jnp.mean(jnp.abs(self.kernel[...]), axis=1)
        outputs = jnp.arange(0, C, self.stride)  # the tokens that outputs are centred on
        tap = jnp.arange(C) - outputs[:, None] + len(taps_Z) // 2
        inside = (tap >= 0) & (tap < len(taps_Z))
        spread = jnp.where(inside, taps_Z[jnp.clip(tap, 0, len(taps_Z) - 1)], 0)  # [outputs, C]
        pooled = windows(-(-length_B // self.stride), slots_B, M, len(outputs))
        weights_BxMxC = pooled.astype(jnp.float32) @ spread
        weights_BxMxC *= lengths_to_valid(length_B, C)[:, None]
        return weights_BxMxC / jnp.maximum(weights_BxMxC.sum(axis=-1, keepdims=True), 1e-30)


class Pooling(nnx.Module):
    """A learned weighting inside each of M windows, one shared projection: D² parameters.

    It starts as the plain mean of each window: no token is preferred, and the projection is the
    identity.
    """

    gives = ("slots",)
    resize = staticmethod(first_rows)

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        self.score = nnx.Param(jnp.zeros(D))
        self.projection = parameter(jnp.eye(D), OUT_OF)

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """The part of each token in each slot, `[B, M, C]` in fp32."""
        score_BxC = standardize(states_BxCxD) @ self.score[...].astype(states_BxCxD.dtype)
        inside_BxMxC = windows(length_B, slots_B, M, states_BxCxD.shape[1])
        return masked_softmax(score_BxC[:, None, :], inside_BxMxC)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        weights_BxMxC = self.weights(states_BxCxD, length_B, slots_B, M)
        x_BxMxD = weights_BxMxC.astype(states_BxCxD.dtype) @ states_BxCxD
        return apply(x_BxMxD, self.projection)


class MeanPool(nnx.Module):
    """Window means, no parameters: the control."""

    gives = ("slots",)
    resize = staticmethod(first_rows)

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        pass

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        return window_means(states_BxCxD, length_B, slots_B, M)

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """Every token of a window has the same part."""
        inside_BxMxC = windows(length_B, slots_B, M, states_BxCxD.shape[1])
        return masked_softmax(jnp.zeros(inside_BxMxC.shape), inside_BxMxC)


class Mark(nnx.Module):
    """One trained vector in every slot, D parameters: the control that reads nothing."""

    gives = ("slots",)
    resize = staticmethod(first_rows)

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        self.vector = nnx.Param(jax.random.normal(key, (base.d_model,), jnp.float32))

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        B, _, D = states_BxCxD.shape
        return jnp.broadcast_to(self.vector[...].astype(states_BxCxD.dtype), (B, M, D))

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """No token has a part."""
        return jnp.zeros((states_BxCxD.shape[0], M, states_BxCxD.shape[1]))


def stretched(kernel_ZxD: np.ndarray, width: int) -> np.ndarray:
    """A convolution's kernel at another width, `[width, D]` in its dtype.

    Each new tap takes its share of those that it overlaps.
    """
    taps_Z = np.arange(len(kernel_ZxD))
    edges = np.linspace(0, len(kernel_ZxD), width + 1)[:, None]
    overlap = np.minimum(edges[1:], taps_Z + 1) - np.maximum(edges[:-1], taps_Z)
    result: np.ndarray = np.clip(overlap, 0, None) @ kernel_ZxD
    return result.astype(kernel_ZxD.dtype)

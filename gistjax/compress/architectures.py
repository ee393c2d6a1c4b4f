"""The architectures under test: states `[B, C, D]` of the context in, slots `[B, M, D]` out.

A head is called as `head(states_BxCxD, length_B, slots_B, M)`: how many context tokens are real in each row, how many slots
the row is to use, and how many there are room for, at most as many as it was built for. It returns `[B, M, D]` in the
states' dtype; slots past `slots_B` hold values without meaning, which the decoder does not see. What stands in a padded
state changes no slot. Parameters are fp32, compute follows the states. `head.weights(…)` of the same arguments says what
part each token has in each slot, `[B, M, C]` in fp32, to look at: they sum to 1, or to 0 where a head reads none.

To add a head: write its class, add it to `HEADS`, name it in `config.ARCHITECTURES`, and write a config file.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from gistjax.model.config import LlamaConfig
from gistjax.model.llama import rms_norm
from gistjax.model.masks import lengths_to_valid
from gistjax.model.rope import apply_rope, rope_frequencies, rotations

NORM_EPS = 1e-6
ROPE_THETA = 10_000.0


def matrix(key: Array, d_in: int, d_out: int) -> nnx.Param:
    """A weight matrix whose outputs have about the variance of its inputs."""
    return nnx.Param(jax.random.normal(key, (d_in, d_out), jnp.float32) / jnp.sqrt(d_in))


def apply(x: Array, weight: nnx.Param) -> Array:
    """`x @ weight` in x's dtype."""
    return x @ weight[...].astype(x.dtype)


def norm(x: Array, scale: nnx.Param) -> Array:
    """RMS norm with a trained scale, in x's dtype."""
    return rms_norm(x, scale[...].astype(x.dtype), NORM_EPS)


def standardize(states: Array) -> Array:
    """RMS norm without parameters: it tames the huge states that some tokens have."""
    return rms_norm(states, jnp.ones((), states.dtype), NORM_EPS)


def windows(length_B: Array, slots_B: Array, M: int, C: int) -> Array:
    """`[B, M, C]`: True where token c lies in slot m's window.

    Slot m of s slots over n tokens covers `floor(m·n/s) … ceil((m+1)·n/s) - 1`, as in adaptive pooling: windows keep
    the order, leave no token out, overlap by at most one token where s does not divide n, and none of the s is empty.
    """
    n_Bx1, s_Bx1 = length_B[:, None], jnp.maximum(slots_B[:, None], 1)
    m_M = jnp.arange(M)
    first_BxM = m_M * n_Bx1 // s_Bx1
    end_BxM = -(-(m_M + 1) * n_Bx1 // s_Bx1)
    c_C = jnp.arange(C)
    inside_BxMxC = (c_C >= first_BxM[:, :, None]) & (c_C < end_BxM[:, :, None])
    return inside_BxMxC & (m_M < s_Bx1)[:, :, None] & (c_C < n_Bx1)[:, None, :]


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis in fp32 where the mask holds; zeros where it holds nowhere."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(top))
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def window_means(states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
    """Means of the states in each window, `[B, M, D]`."""
    inside_BxMxC = windows(length_B, slots_B, M, states_BxCxD.shape[1])
    weights_BxMxC = masked_softmax(jnp.zeros(inside_BxMxC.shape), inside_BxMxC)
    return weights_BxMxC.astype(states_BxCxD.dtype) @ states_BxCxD


def window_centres(length_B: Array, slots_B: Array, M: int) -> Array:
    """Where each slot's window has its middle, `[B, M]`, as a fractional token position."""
    return (jnp.arange(M) + 0.5) * (length_B / jnp.maximum(slots_B, 1))[:, None] - 0.5


def window_ends(length_B: Array, slots_B: Array, M: int) -> Array:
    """The last token of each slot's window, `[B, M]`; of unused slots, the row's last."""
    end_BxM = -(-(jnp.arange(M) + 1) * length_B[:, None] // jnp.maximum(slots_B[:, None], 1))
    return jnp.clip(end_BxM, 1, length_B[:, None]) - 1


class Attention(nnx.Module):
    """Multi-head attention with rotary positions: 4·D² parameters."""

    def __init__(self, D: int, n_heads: int, key: Array):
        keys = jax.random.split(key, 4)
        self.head_dim = D // n_heads
        self.query, self.key, self.value, self.out = (matrix(k, D, D) for k in keys)

    def __call__(
        self, x_BxMxD: Array, x_pos_BxM: Array, y_BxCxD: Array, y_pos_BxC: Array, mask_BxMxC: Array
    ) -> Array:
        """x asks, y answers: `[B, M, D]`."""
        z_BxMxNxH = jax.nn.dot_product_attention(
            self._heads(x_BxMxD, self.query, x_pos_BxM), self._heads(y_BxCxD, self.key, y_pos_BxC),
            self._heads(y_BxCxD, self.value), mask=mask_BxMxC[:, None], implementation="xla",
        )  # fmt: skip
        return apply(z_BxMxNxH.reshape(x_BxMxD.shape), self.out)

    def weights(
        self, x_BxMxD: Array, x_pos_BxM: Array, y_BxCxD: Array, y_pos_BxC: Array, mask_BxMxC: Array
    ) -> Array:
        """How much each x attends to each y, the mean over its heads, `[B, M, C]` in fp32."""
        q_BxMxNxH = self._heads(x_BxMxD, self.query, x_pos_BxM)
        k_BxCxNxH = self._heads(y_BxCxD, self.key, y_pos_BxC)
        scores_BxNxMxC = jnp.einsum("bmnh,bcnh->bnmc", q_BxMxNxH, k_BxCxNxH)
        scores_BxNxMxC = scores_BxNxMxC.astype(jnp.float32) / math.sqrt(self.head_dim)
        return jnp.mean(masked_softmax(scores_BxNxMxC, mask_BxMxC[:, None]), axis=1)

    def _heads(self, z_BxXxD: Array, weight: nnx.Param, pos_BxX: Array | None = None) -> Array:
        z_BxXxNxH = apply(z_BxXxD, weight).reshape(*z_BxXxD.shape[:2], -1, self.head_dim)
        if pos_BxX is None:
            return z_BxXxNxH
        freq = rope_frequencies(self.head_dim, ROPE_THETA)
        return apply_rope(z_BxXxNxH, rotations(pos_BxX, freq))


class FeedForward(nnx.Module):
    """Two matrices with a GELU between: 2·D·F parameters."""

    def __init__(self, D: int, F: int, key: Array):
        key_in, key_out = jax.random.split(key)
        self.into, self.out = matrix(key_in, D, F), matrix(key_out, F, D)

    def __call__(self, x_BxMxD: Array) -> Array:
        return apply(jax.nn.gelu(apply(x_BxMxD, self.into)), self.out)


class CrossAttention(nnx.Module):
    """M learned queries attend to all states, then a feed-forward: 6·D² parameters.

    After Perceiver (Jaegle et al. 2021, arXiv:2103.03206). Query m stands at the middle of window m, so that rotary
    positions tell it which part of the context is near.
    """

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        key_q, key_a, key_f = jax.random.split(key, 3)
        self.queries = nnx.Param(0.02 * jax.random.normal(key_q, (M, D), jnp.float32))
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
        """How much each query attends to each token."""
        queries_MxD = self.queries[:M].astype(states_BxCxD.dtype)
        x_BxMxD = jnp.broadcast_to(queries_MxD, (states_BxCxD.shape[0], *queries_MxD.shape))
        return self.attention.weights(*self._ask(x_BxMxD, states_BxCxD, length_B, slots_B, M))

    def _ask(
        self, x_BxMxD: Array, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int
    ) -> tuple[Array, ...]:
        """What attention is given."""
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

    After Mu et al. 2023 (arXiv:2304.08467); with `slot_form = key_values` its slots stay in the decoder's sequence
    under the gist mask, as in that paper. The feed-forward is narrow to stay within 8·D².
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

    The depthwise part is WaveNet's idea of local filters (arXiv:1609.03499) without dilation. It starts as a mean over
    its kernel, which is about as wide as the nominal ratio, with several `ratios` the least of them; order is kept throughout.
    """

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        key_in, key_out = jax.random.split(key)
        self.stride = max(ratio // 2, 1)
        self.kernel = nnx.Param(jnp.full((2 * self.stride - 1, D), 1.0 / (2 * self.stride - 1)))
        self.mix_norm = nnx.Param(jnp.ones(D))
        self.mix_in, self.mix_out = matrix(key_in, D, D), matrix(key_out, D, D)

    def convolve(self, x_BxCxD: Array) -> Array:
        """`[B, ceil(C / stride), D]`: output i is centred on token i·stride."""
        kernel_WxD = self.kernel[...].astype(x_BxCxD.dtype)
        width, C = kernel_WxD.shape[0], x_BxCxD.shape[1]
        side = width // 2
        padded = jnp.pad(x_BxCxD, ((0, 0), (side, side), (0, 0)))
        taps = [padded[:, w : w + C : self.stride] * kernel_WxD[w] for w in range(width)]
        return jnp.sum(jnp.stack(taps), axis=0)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        real_BxCx1 = lengths_to_valid(length_B, states_BxCxD.shape[1])[:, :, None]
        x_BxCxD = self.convolve(jnp.where(real_BxCx1, standardize(states_BxCxD), 0))
        h_BxCxD = jax.nn.gelu(apply(norm(x_BxCxD, self.mix_norm), self.mix_in))
        x_BxCxD = x_BxCxD + apply(h_BxCxD, self.mix_out)
        return window_means(x_BxCxD, -(-length_B // self.stride), slots_B, M)

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """Of the windows' means the convolution's part: the size of its taps, the mean over channels."""
        C = states_BxCxD.shape[1]
        taps_W = jnp.mean(jnp.abs(self.kernel[...]), axis=1)
        places_X = jnp.arange(0, C, self.stride)
        tap_XxC = jnp.arange(C) - places_X[:, None] + len(taps_W) // 2
        inside_XxC = (tap_XxC >= 0) & (tap_XxC < len(taps_W))
        spread_XxC = jnp.where(inside_XxC, taps_W[jnp.clip(tap_XxC, 0, len(taps_W) - 1)], 0)
        windows_BxMxX = windows(-(-length_B // self.stride), slots_B, M, len(places_X))
        weights_BxMxC = windows_BxMxX.astype(jnp.float32) @ spread_XxC
        weights_BxMxC *= lengths_to_valid(length_B, C)[:, None]
        return weights_BxMxC / jnp.maximum(weights_BxMxC.sum(axis=-1, keepdims=True), 1e-30)


def stretched(kernel_WxD: np.ndarray, width: int) -> np.ndarray:
    """A convolution's kernel at another width, `[width, D]` in its dtype: each new tap takes its share of those it overlaps."""
    taps_W = np.arange(len(kernel_WxD))
    edges = np.linspace(0, len(kernel_WxD), width + 1)[:, None]
    overlap = np.minimum(edges[1:], taps_W + 1) - np.maximum(edges[:-1], taps_W)
    return (np.clip(overlap, 0, None) @ kernel_WxD).astype(kernel_WxD.dtype)


class Pooling(nnx.Module):
    """A learned weighting inside each of M windows, one shared projection: D² parameters.

    It starts as the plain mean of each window: no token is preferred, and the projection is the identity.
    """

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        D = base.d_model
        self.score = nnx.Param(jnp.zeros(D))
        self.projection = nnx.Param(jnp.eye(D))

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """What part each token has in each slot, `[B, M, C]` in fp32."""
        score_BxC = standardize(states_BxCxD) @ self.score[...].astype(states_BxCxD.dtype)
        inside_BxMxC = windows(length_B, slots_B, M, states_BxCxD.shape[1])
        return masked_softmax(score_BxC[:, None, :], inside_BxMxC)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        weights_BxMxC = self.weights(states_BxCxD, length_B, slots_B, M)
        x_BxMxD = weights_BxMxC.astype(states_BxCxD.dtype) @ states_BxCxD
        return apply(x_BxMxD, self.projection)


class MeanPool(nnx.Module):
    """Window means, no parameters: the control."""

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

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        self.vector = nnx.Param(jax.random.normal(key, (base.d_model,), jnp.float32))

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        B, _, D = states_BxCxD.shape
        return jnp.broadcast_to(self.vector[...].astype(states_BxCxD.dtype), (B, M, D))

    def weights(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        """No token has a part."""
        return jnp.zeros((states_BxCxD.shape[0], M, states_BxCxD.shape[1]))


HEADS: dict[str, Any] = {
    "cross_attention": CrossAttention,
    "conv": Conv,
    "pooling": Pooling,
    "gist": Gist,
    "mean_pool": MeanPool,
    "mark": Mark,
}
"""Every head by its name in the config. Built as `Head(base_config, M, nominal_ratio, key)`."""

"""Attention for masks that a fused kernel knows, where there is one, and for explicit ones."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.errors import ConfigError
from gistjax.model.kv_cache import CacheLayer, KeptLayer, PackedEntries
from gistjax.model.masks import Bidirectional, Mask
from gistjax.model.rounding import as_stored
from gistjax.runtime.devices import is_deterministic


def attention(
    q_BxTxNxH: Array,
    k_BxTxKxH: Array,
    v_BxTxKxH: Array,
    cache: CacheLayer | None,
    mask_BxTxU: Mask | None,
    kernel: str = "xla",
) -> Array:
    """Values `[B, T, N, H]` of T queries; the softmax runs in fp32.

    Args:
        k_BxTxKxH, v_BxTxKxH: keys and values of the same T positions.
        cache: where they and earlier ones are kept; queries with a mask look there, and at what
            it holds of a context.
        mask_BxTxU: True where a query may look. It may be of the last queries only: those before
            them are causal among themselves. `Bidirectional` is of these T positions alone.
        kernel: where no array is the mask: `xla`, or `cudnn` (flash attention on NVIDIA GPUs,
            bf16).
    """
    if isinstance(mask_BxTxU, Bidirectional):
        return bidirectional_attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, mask_BxTxU, kernel)
    masked = 0 if mask_BxTxU is None else mask_BxTxU.shape[1]
    causal = q_BxTxNxH.shape[1] - masked
    parts = []
    if causal:
        q, k, v = (x[:, :causal] for x in (q_BxTxNxH, k_BxTxKxH, v_BxTxKxH))
        parts.append(causal_attention(q, k, v, kernel))
    if mask_BxTxU is not None:
        q, k, v = q_BxTxNxH[:, causal:], k_BxTxKxH, v_BxTxKxH
        if cache is not None and cache.kept is not None:
            kept = cache.kept
            if isinstance(kept, PackedEntries):
                kept = kept.windows(q)
            parts.append(attend_context(q, cache, mask_BxTxU, kept))
        else:
            if cache is not None:
                k, v = (jnp.swapaxes(x_BxKxUxH, 1, 2) for x_BxKxUxH in (cache.k, cache.v))
            parts.append(
                jax.nn.dot_product_attention(
                    q, k, v, mask=mask_BxTxU[:, None], implementation="xla"
                )
            )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def attend_context(
    q_BxTxNxH: Array, cache: CacheLayer, mask_BxTxU: Array, kept: KeptLayer
) -> Array:
    """Values `[B, T, N, H]` of the cache and of what is kept of a context, as it is to be read.

    In training they are computed again going back: logits and rounded entries are many, one set for
    each question.
    """
    attend = attend_kept if kept.gate_BxKxX is None else attend_gated
    if kept.gate_BxKxX is None and kept.bits_B is None:
        return attend(q_BxTxNxH, cache, mask_BxTxU, kept)
    again = jax.checkpoint(lambda q, cache, mask, kept: attend(q, cache, mask, as_stored(kept)))
    y_BxTxNxH: Array = again(q_BxTxNxH, cache, mask_BxTxU, kept)
    return y_BxTxNxH


def attend_kept(q_BxTxNxH: Array, cache: CacheLayer, mask_BxTxU: Array, kept: KeptLayer) -> Array:
    """Values `[B, T, N, H]`: one softmax over the cache and what is kept of a context.

    Where there are fewer rows of entries, E, than of queries, B = E·n, each is read by n in a row,
    whose masks may differ.
    """
    B, T, N, H = q_BxTxNxH.shape
    K, E = cache.k.shape[1], kept.k.shape[0]
    rows = (E, B // E)
    q_ExnxTxKxGxH = q_BxTxNxH.reshape(*rows, T, K, N // K, H)
    k, v = (x.reshape(*rows, *x.shape[1:]) for x in (cache.k, cache.v))
    logits = [
        jnp.einsum(spec, q_ExnxTxKxGxH, keys, preferred_element_type=jnp.float32) * H**-0.5
        for spec, keys in (
            ("entkgh,enkuh->enkgtu", k),
            ("entkgh,ekxh->enkgtx", kept.k),
        )
    ]
    masks = mask_BxTxU[:, None, None], kept.mask_BxKxX[:, :, None, None]
    masked = [
        jnp.where(mask.reshape(E, -1, *mask.shape[1:]), x, -jnp.inf)
        for mask, x in zip(masks, logits, strict=True)
    ]
    weights = jax.nn.softmax(jnp.concatenate(masked, axis=-1), axis=-1).astype(q_BxTxNxH.dtype)
    dense, chosen = jnp.split(weights, [cache.k.shape[2]], axis=-1)
    y_ExnxTxKxGxH = jnp.einsum("enkgtu,enkuh->entkgh", dense, v)
    y_ExnxTxKxGxH += jnp.einsum("enkgtx,ekxh->entkgh", chosen, kept.v)
    return y_ExnxTxKxGxH.reshape(B, T, N, H)


MOST_ABOVE = 4.0
"""How far, in logits, an entry that was thrown away may stand above all that was kept."""


def attend_gated(q_BxTxNxH: Array, cache: CacheLayer, mask_BxTxU: Array, kept: KeptLayer) -> Array:
    """What `attend_kept` returns, with a gradient of the gates of each KV head's own entries.

    A gate is a factor of an entry's exponential, 1 or 0, in the sum too. Its gradient tells what an
    entry that was thrown away would have brought, so it needs the logit without a mask.
    """
    B, T, N, H = q_BxTxNxH.shape
    E, K, X, _ = kept.k.shape
    assert kept.gate_BxKxX is not None
    q_ExnxTxKxGxH = q_BxTxNxH.reshape(E, B // E, T, K, N // K, H) * H**-0.5
    k, v = (x.reshape(E, B // E, *x.shape[1:]) for x in (cache.k, cache.v))
    mask = mask_BxTxU.reshape(E, B // E, 1, 1, T, -1)
    mask_kept, gate = (x.reshape(E, -1, K, 1, 1, X) for x in (kept.mask_BxKxX, kept.gate_BxKxX))
    dense = jnp.where(mask, product("entkgh,enkuh->enkgtu", q_ExnxTxKxGxH, k), -jnp.inf)
    chosen = product("entkgh,ekxh->enkgtx", q_ExnxTxKxGxH, kept.k)
    tops = [
        jnp.max(x, axis=-1, keepdims=True) for x in (dense, jnp.where(mask_kept, chosen, -jnp.inf))
    ]
    top = jax.lax.stop_gradient(jnp.maximum(*tops))
    dense = jnp.exp(dense - top)
    chosen = jnp.exp(jnp.minimum(chosen - top, MOST_ABOVE)) * gate
    total = jnp.sum(dense, axis=-1) + jnp.sum(chosen, axis=-1)
    y = jnp.einsum("enkgtu,enkuh->enkgth", dense.astype(v.dtype), v).astype(jnp.float32)
    y += jnp.einsum("enkgtx,ekxh->enkgth", chosen.astype(v.dtype), kept.v)
    y_ExnxTxKxGxH = jnp.moveaxis(y / total[..., None], 4, 2)
    return y_ExnxTxKxGxH.astype(q_BxTxNxH.dtype).reshape(B, T, N, H)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, x: Array, y: Array) -> Array:
    """Einsum in fp32 whose gradients are products in the arguments' dtype, as of other products."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _product_forward(spec: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(spec, x, y), (x, y)


def _product_backward(spec: str, xy: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    gradients: tuple[Array, Array] = jax.vjp(partial(jnp.einsum, spec), *xy)[1](
        dz.astype(xy[0].dtype)
    )
    return gradients


product.defvjp(_product_forward, _product_backward)


def causal_attention(
    q_BxTxNxH: Array, k_BxTxKxH: Array, v_BxTxKxH: Array, kernel: str = "xla"
) -> Array:
    """Each position looks at itself and those before it."""
    return _attention_by(kernel, q_BxTxNxH, k_BxTxKxH, v_BxTxKxH)


def bidirectional_attention(
    q_BxTxNxH: Array, k_BxTxKxH: Array, v_BxTxKxH: Array, mask: Bidirectional, kernel: str = "xla"
) -> Array:
    """Each position behind the prefix looks at all real ones, each of the prefix at those before.

    An empty row looks at its first position, so that no softmax runs over nothing.
    """
    P = mask.prefix
    length_B = jnp.maximum(mask.length_B, 1).astype(jnp.int32)
    behind_BxCxNxH = _attention_by(kernel, q_BxTxNxH[:, P:], k_BxTxKxH, v_BxTxKxH, length_B)
    if not P:
        return behind_BxCxNxH
    q_BxPxNxH, k_BxPxKxH, v_BxPxKxH = (x[:, :P] for x in (q_BxTxNxH, k_BxTxKxH, v_BxTxKxH))
    prefix_BxPxNxH = causal_attention(q_BxPxNxH, k_BxPxKxH, v_BxPxKxH, kernel)
    return jnp.concatenate([prefix_BxPxNxH, behind_BxCxNxH], axis=1)


def _attention_by(
    kernel: str,
    q_BxTxNxH: Array,
    k_BxUxKxH: Array,
    v_BxUxKxH: Array,
    length_B: Array | None = None,
) -> Array:
    """Each query sees the first `length` positions; without lengths, itself and those before it.

    cuDNN's backward pass takes even lengths only (jax.nn.dot_product_attention), so an odd one gets
    a position more at its end, which nobody sees.
    """
    T = q_BxTxNxH.shape[1]
    if kernel == "cudnn":
        q_BxTxNxH, k_BxUxKxH, v_BxUxKxH = (
            jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
            for x in (q_BxTxNxH, k_BxUxKxH, v_BxUxKxH)
        )
    y_BxTxNxH = jax.nn.dot_product_attention(
        q_BxTxNxH,
        k_BxUxKxH,
        v_BxUxKxH,
        is_causal=length_B is None,
        key_value_seq_lengths=length_B,
        implementation="cudnn" if kernel == "cudnn" else "xla",
    )
    return y_BxTxNxH[:, :T]


def choose_kernel(
    name: str, head_dim: int, dtype: jnp.dtype, backend: str = "", deterministic: bool | None = None
) -> str:
    """Return the kernel to run: `auto` becomes `cudnn` where flash attention can run, else `xla`.

    It cannot where steps are to be deterministic, by default what XLA was started with: XLA then
    loses the program of all but the first of several backward passes of one shape, and ends in an
    IndexError (https://github.com/openxla/xla/pull/46500).

    Args:
        name: `auto`, `cudnn` or `xla`.
        dtype: of the activations.

    Raises:
        ConfigError: if cuDNN is asked for without a GPU.
    """
    backend = backend or jax.default_backend()
    if name == "cudnn" and backend != "gpu":
        raise ConfigError(
            "model.attention='cudnn' needs a GPU, and JAX has none: set "
            "--config.model.attention=auto, or see `python -m gistjax.doctor`."
        )
    if name != "auto":
        return name
    if deterministic is None:
        deterministic = is_deterministic()
    fits = head_dim % 8 == 0 and head_dim <= 128 and dtype == jnp.bfloat16
    return "cudnn" if fits and backend == "gpu" and not deterministic else "xla"

"""The connector: from slots to what the decoder takes for token embeddings."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.layers import OUT_OF, matrix
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import Frozen, rms_norm


class Connector(nnx.Module):
    """An optional D×D projection, then the root mean square of the decoder's embeddings."""

    def __init__(self, base: LlamaConfig, kind: str, key: Array):
        self.kind = kind
        D = base.d_model
        self.projection = matrix(key, D, D, OUT_OF) if kind == "linear" else None
        self.embedding_rms = Frozen(jnp.ones((), jnp.float32))  # of the base's table, once loaded

    def __call__(self, slots_BxMxD: Array) -> Array:
        if self.kind == "none":
            return slots_BxMxD
        dtype = slots_BxMxD.dtype
        if self.projection is not None:
            slots_BxMxD = slots_BxMxD @ self.projection[...].astype(dtype)
        return rms_norm(slots_BxMxD, self.embedding_rms[...].astype(dtype), 1e-12)

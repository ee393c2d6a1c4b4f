"""The frozen base's own view of each context: what the contrastive loss compares slots with.

The base never changes, so a view is computed once for each context and not at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.data.batches import evaluation_batches
from gistjax.data.prompts import Row
from gistjax.model.llama import Llama
from gistjax.model.masks import lengths_to_valid
from gistjax.sharding import fetch, put_batch, rows_per_step


def context_views(
    base: Llama,
    rows: Sequence[Row],
    n_layers: int,
    mesh: Mesh,
    batch_size: int,
    context_buckets: Sequence[int],
    question_buckets: Sequence[int],
) -> np.ndarray:
    """The mean of the base's states over each context, `[contexts, D]` in fp32, at the context's id.

    Args:
        n_layers: base layers to run; 0 takes the embeddings.
        batch_size: contexts at a time, a device.
    """
    distinct = list({row.context_id: row for row in rows}.values())
    graphdef, state = nnx.split(base)
    view = jax.jit(
        lambda state, ids, length: _view(nnx.merge(graphdef, state), ids, length, n_layers)
    )
    size = max(row.context_id for row in distinct) + 1
    views = np.zeros((size, base.config.d_model), np.float32)
    batches = evaluation_batches(
        distinct, batch_size * rows_per_step(mesh), context_buckets, question_buckets
    )
    for indices, host_batch in batches:
        batch: Any = put_batch(host_batch, mesh)
        means_BxD = view(state, batch.context_ids_ExC, batch.context_length_E)
        ids = host_batch.context_id_E[: len(indices)]
        views[ids] = fetch(means_BxD)[: len(indices)]
    return views


def _view(base: Llama, ids_BxC: Array, length_B: Array, n_layers: int) -> Array:
    C = ids_BxC.shape[1]
    states_BxCxD, _ = base(
        base.embed(ids_BxC), jnp.arange(C)[None], n_layers=min(n_layers, base.config.n_layers)
    )
    real_BxCx1 = lengths_to_valid(length_B, C)[:, :, None]
    total_BxD = jnp.sum(jnp.where(real_BxCx1, states_BxCxD, 0), axis=1, dtype=jnp.float32)
    return total_BxD / length_B[:, None]

"""What is kept of several contexts, joined."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.kept import entries_of, join_kept, packed
from gistjax.config import SelectConfig
from gistjax.model.kv_cache import Cache
from tests.helpers.tiny import PREFIX, TINY, Compiled, tiny_base, tiny_model

UNROTATED = dataclasses.replace(TINY, unrotated_layers=(1,))
LENGTHS = (16, 9, 12)


def contexts_of(base, rng):
    """Contexts of one row each, of which every other entry is kept, and a model that reads them."""
    select = {"select": SelectConfig("knorm", "all"), "ratio": 2.0}
    model = Compiled(tiny_model("select", base=base, **select))
    ids = [np.pad(rng.integers(0, 61, n), (0, 16 - n))[None] for n in LENGTHS]
    return model, [
        jax.device_get(model.compress(PREFIX, jnp.asarray(row), jnp.array([n])))
        for row, n in zip(ids, LENGTHS, strict=True)
    ]


def turned(context, by, config):
    """A context with the keys of all its entries further on, by the cache's own rotation."""
    layers = context.kept if isinstance(context.kept, tuple) else (context.kept,)
    cache = Cache(tuple(x.k for x in layers), tuple(x.v for x in layers))
    if not isinstance(context.kept, tuple):
        cache = Cache(layers[0].k, layers[0].v)
    moved = jax.device_get(cache.turned(by, config).k)
    if not isinstance(context.kept, tuple):
        return dataclasses.replace(context, kept=dataclasses.replace(context.kept, k=moved))
    kept = tuple(dataclasses.replace(x, k=k) for x, k in zip(layers, moved, strict=True))
    return dataclasses.replace(context, kept=kept)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "scan"), [(TINY, True), (UNROTATED, False)])
def test_each_head_has_its_entries_of_every_context_where_that_one_stands(config, scan, rng):
    _, contexts = contexts_of(tiny_base(config, scan=scan), rng)
    joined = entries_of(join_kept(contexts, config))
    starts = np.cumsum([0, *LENGTHS[:-1]])
    parts = [entries_of(turned(c, int(s), config)) for c, s in zip(contexts, starts, strict=True)]
    np.testing.assert_array_equal(joined.count_LxK, sum(part.count_LxK for part in parts))
    begins = [np.cumsum([0, *part.count_LxK.ravel()]) for part in parts]
    begin = np.cumsum([0, *joined.count_LxK.ravel()])
    for head in range(joined.count_LxK.size):
        for name in ("k_TxH", "v_TxH"):
            wanted = [
                getattr(part, name)[at[head] : at[head + 1]]
                for part, at in zip(parts, begins, strict=True)
            ]
            found = getattr(joined, name)[begin[head] : begin[head + 1]]
            np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-6)


@pytest.mark.slow
def test_joined_contexts_take_up_their_positions_and_are_read(rng):
    model, contexts = contexts_of(tiny_base(), rng)
    joined = join_kept(contexts, TINY)
    assert joined.length_B == sum(LENGTHS) and joined.slots_B == sum(-(-n // 2) for n in LENGTHS)
    ready = [dataclasses.replace(c, kept=packed(entries_of(c))) for c in contexts]
    alone = join_kept(ready[:1], TINY)
    asked = jnp.array([[5, 6, 7]]), jnp.array([3])
    one, same, all_of_them = (model.states(c, *asked) for c in (ready[0], alone, joined))
    np.testing.assert_array_equal(one, same)
    assert np.all(np.isfinite(all_of_them)) and not np.allclose(one, all_of_them)

"""What is kept of several contexts, joined."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.kept import entries_of, join_kept, packed
from gistjax.config import SelectConfig
from tests.helpers.tiny import PREFIX, Compiled, tiny_base, tiny_model

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


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_each_head_has_its_entries_of_every_context_as_they_were_read(scan, rng):
    _, contexts = contexts_of(tiny_base(scan=scan), rng)
    joined = entries_of(join_kept(contexts))
    parts = [entries_of(context) for context in contexts]
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
            np.testing.assert_array_equal(found, np.concatenate(wanted))


@pytest.mark.slow
def test_joined_contexts_share_their_positions_and_their_order_is_nothing(rng):
    model, contexts = contexts_of(tiny_base(), rng)
    joined, reordered = join_kept(contexts), join_kept(contexts[::-1])
    assert joined.length_B == max(LENGTHS) and joined.slots_B == sum(-(-n // 2) for n in LENGTHS)
    ready = [dataclasses.replace(c, kept=packed(entries_of(c))) for c in contexts]
    alone = join_kept(ready[:1])
    asked = jnp.array([[5, 6, 7]]), jnp.array([3])
    one, same, all_of_them, again = (
        model.states(c, *asked) for c in (ready[0], alone, joined, reordered)
    )
    np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(all_of_them, again, atol=1e-5)
    assert np.all(np.isfinite(all_of_them)) and not np.allclose(one, all_of_them)

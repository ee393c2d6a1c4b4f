"""The run of entries that documents share: what is read from it is what each has alone."""

import dataclasses
import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress.kept import Entries, entries_of, packed
from gistjax.errors import DataError
from gistjax.inference.pool import POOL_BYTES, Pool

L, K, H = 2, 3, 4


@dataclasses.dataclass(eq=False)
class Kept:
    """What a pool reads of a document."""

    context: object


def document_of(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    count_LxK = rng.integers(0, 9, (L, K)).astype(np.int32)
    count_LxK[0, 0] += 1
    k_TxH, v_TxH = rng.normal(size=(2, count_LxK.sum(), H)).astype(dtype)
    kept = packed(Entries(k_TxH, v_TxH, count_LxK))
    return Kept(dataclasses.make_dataclass("Context", ["kept"])(kept))


def entries_read(placed, row):
    """The entries that a row reads, by layer and KV head."""
    found = []
    for layer in range(L):
        read = placed.layer(layer).windows(np.zeros(1))
        mask_KxX = np.asarray(read.mask_BxKxX)[row]
        found += [(np.asarray(read.k)[row][mask_KxX], np.asarray(read.v)[row][mask_KxX])]
    return found


@settings(max_examples=20, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), max_size=5))
def test_each_row_reads_its_own_entries_whatever_came_before(batches):
    documents = [document_of(seed) for seed in range(8)]
    pool = Pool(jax.device_put, budget=2 * 128 * H * 4)
    for batch in batches:
        placed = pool.place([documents[number] for number in batch])
        for row, number in enumerate(batch):
            own = entries_of(documents[number].context)
            read = entries_read(placed, row)
            chex.assert_trees_all_equal(np.concatenate([k for k, _ in read]), own.k_TxH)
            chex.assert_trees_all_equal(np.concatenate([v for _, v in read]), own.v_TxH)


@pytest.mark.parametrize("budget", [1, POOL_BYTES])  # 1: the runs are as long in either
def test_entries_of_another_dtype_begin_anew(budget):
    pool, narrow, wide = Pool(jax.device_put, budget), document_of(0, jnp.bfloat16), document_of(0)
    for document in (narrow, wide):
        placed = pool.place([document])
        k_TxH = np.concatenate([k for k, _ in entries_read(placed, 0)])
        np.testing.assert_array_equal(k_TxH, entries_of(document.context).k_TxH)
    assert len(pool) == 1


def test_a_budget_gives_up_what_was_asked_longest_ago():
    documents = [document_of(0) for _ in range(8)]  # of one size: each fits where another was
    budget = 2 * 128 * H * 4  # keys and values of 128 entries
    pool = Pool(jax.device_put, budget)
    first, second = documents[:2]
    pool.place([first, second])
    pool.place([first])
    for document in documents[2:]:
        pool.place([document])
        if second not in pool:
            break
    assert first in pool and second not in pool and pool.nbytes <= budget
    pool.place(documents)  # a batch that needs more gets it
    assert len(pool) == len(documents) and pool.nbytes > budget
    pool.place([first])
    assert len(pool) == 1 and pool.nbytes <= budget


def test_a_document_that_nobody_has_gives_its_place_back():
    pool = Pool(jax.device_put)
    pool.place([document_of(0), document_of(1)])
    gc.collect()
    assert len(pool) == 0


def test_a_document_is_written_once():
    pool, document = Pool(jax.device_put), document_of(0)
    pool.place([document, document])
    run = pool.place([document]).k_TxH
    assert pool.place([document]).k_TxH is run


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_fails_while_it_is_written_is_written_again(monkeypatch, when):
    pool, documents = Pool(jax.device_put), [document_of(0), document_of(1)]
    pool.place(documents[:1])
    write = pool._write

    def fails(entries, begin):
        if when == "after":  # the runs were given away by then
            write(entries, begin)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_write", fails)
    with pytest.raises(KeyboardInterrupt):
        pool.place(documents)
    monkeypatch.setattr(pool, "_write", write)
    placed = pool.place(documents)
    for row, document in enumerate(documents):
        k_TxH = np.concatenate([k for k, _ in entries_read(placed, row)])
        np.testing.assert_array_equal(k_TxH, entries_of(document.context).k_TxH)


def test_numbers_that_are_not_finite_stay_out():
    pool, sick, healthy = Pool(jax.device_put), document_of(0), document_of(1)
    sick.context.kept.v_TxH[0] = np.inf
    with pytest.raises(DataError, match="not finite"):
        pool.place([healthy, sick])
    assert np.isfinite(pool.place([healthy]).v_TxH).all()

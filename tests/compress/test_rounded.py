"""Kept entries in few bits: layout, bytes, and that evaluation answers from what a file holds."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

import gistjax
from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, entries_of, packed
from gistjax.compress.rounded import (
    restore_entries,
    restore_slots,
    round_entries,
    round_rows,
    round_slots,
    slots_of,
)
from gistjax.config import SelectConfig
from gistjax.errors import DataError
from gistjax.model.kv_cache import Cache
from gistjax.runtime.quantize import BITS
from gistjax.runtime.tensors import load_tensors
from tests.helpers.runs import SELECTED, write_run
from tests.helpers.tiny import in_turn

COUNT = np.array([[3, 0], [1, 4]], np.int32)


def entries(rng, dtype=np.float32):
    """Of eight channels, two of them large in every key."""
    k, v = rng.normal(size=(2, 8, 8)).astype(np.float32)
    k[:, [1, 5]] += 50
    return Entries(k.astype(dtype), v.astype(dtype), COUNT)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_entries_come_back_within_half_a_scale(rng, bits, dtype):
    given = entries(rng, dtype)
    arrays = round_entries(given, bits)
    back = restore_entries(arrays, bits, np.dtype(dtype).name)
    assert back["k"].dtype == back["v"].dtype == dtype
    own = np.finfo(np.float32).eps if dtype == np.float32 else float(ml_dtypes.finfo(dtype).eps)
    owner_T = np.repeat(range(3), COUNT[COUNT > 0])
    for name, scale in (("k", arrays["k_scale"][owner_T]), ("v", arrays["v_scale"])):
        exact = getattr(given, f"{name}_TxH").astype(np.float64)
        error = np.abs(back[name].astype(np.float64) - exact)
        assert (error <= scale.astype(np.float64) / 2 + 2 * own * np.abs(exact) + 1e-6).all()
    assert arrays["k_scale"].max() < 5 / (2**bits - 1), "large channels widen no other's range"


@pytest.mark.parametrize("bits", BITS)
def test_every_byte_is_as_calculated(rng, bits):
    arrays = round_entries(entries(rng), bits)
    codes, of_keys, of_values, counts = 2 * 8 * 8 * bits // 8, 3 * 8 * 4, 8 * 4, 4 * 4
    assert sum(x.nbytes for x in arrays.values()) == codes + of_keys + of_values + counts


def test_a_context_that_keeps_nothing_is_nothing():
    none = np.zeros((0, 8), np.float32)
    arrays = round_entries(Entries(none, none, 0 * COUNT), 4)
    assert restore_entries(arrays, 4, "float32")["k"].shape == (0, 8)


@pytest.mark.parametrize(("bad", "says"), [(np.nan, "not finite"), (1e6, "beyond half precision")])
def test_entries_that_have_no_code_are_refused(rng, bad, says):
    for name in ("k", "v"):
        given = entries(rng)
        getattr(given, f"{name}_TxH")[2, 3] = bad
        with pytest.raises(DataError, match=f"cannot be kept in 4 bits: .*{says}"):
            round_entries(given, 4)


@pytest.fixture(scope="module")
def selecting(tmp_path_factory):
    config = SELECTED.replace(select=SelectConfig("knorm", "all"))
    return gistjax.load(write_run(tmp_path_factory.mktemp("selecting") / "run", config))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "stacked"), in_turn(BITS, (True, False)))
def test_rounded_rows_are_what_saved_documents_hold(selecting, tmp_path, rng, bits, stacked):
    """To the last bit; what pads the batch and what is not kept stay as they are."""
    model, P = selecting.model(), selecting.programs.prefix_ids_P
    ids_BxC = rng.integers(8, 61, (3, 24)).astype(np.int32)
    context = jax.device_get(model.compress(P, ids_BxC, np.array([24, 17, 9], np.int32)))
    if stacked:
        context = dataclasses.replace(
            context, kept=jax.tree.map(lambda *x: np.stack(x), *context.kept)
        )
    rounded, size_R = round_rows(context, bits, 2)
    kept = rounded.kept
    for row in range(2):
        given = entries_of(context, row)
        one = dataclasses.replace(
            context, kept=packed(given), slots_B=context.slots_B[[row]], length_B=[24]
        )
        file = tmp_path / f"{row}"
        gistjax.Document(selecting, one, 24, 1, 0.0).save(file, bits)
        ours, opened = entries_of(rounded, row), entries_of(selecting.open(file).context)
        theirs = opened.numbers()
        assert (ours.bits, opened.bits) == (None, bits)
        for name in ("k_TxH", "v_TxH", "count_LxK"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.k_TxH != given.k_TxH).any()
        assert size_R[row] == sum(x.nbytes for x in load_tensors(file)[0].values())
    same = (entries_of(x, 2).v_TxH for x in (rounded, context))
    np.testing.assert_array_equal(*same)
    layers = ([kept], [context.kept]) if stacked else (kept, context.kept)
    for ours, theirs in zip(*layers, strict=True):
        hidden = ~theirs.mask_BxKxX
        np.testing.assert_array_equal(ours.k[hidden], theirs.k[hidden])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("form", ["soft tokens", "keys and values", "stacked"])
def test_rounded_rows_of_slots_are_what_files_hold(rng, bits, form):
    """Each row with its own number of slots; what is behind them and what pads the batch stays."""
    slots, L, B, K, X, H, D = [5, 2, 4], 3, 3, 2, 6, 8, 12
    x = rng.normal(size=(B, X, D)).astype(ml_dtypes.bfloat16)
    k, v = rng.normal(size=(2, L, B, K, X, H)).astype(np.float32)
    kv = None
    if form != "soft tokens":
        kv = Cache(k, v) if form == "stacked" else Cache(tuple(k), tuple(v))
    position = np.tile(np.arange(X), (B, 1))
    one = np.ones((B, X), bool)
    context = CompressedContext(
        np.arange(3), x, kv, one, ~one, position, np.full(B, X), np.array(slots)
    )
    rounded, size_R = round_rows(context, bits, 2)
    before, after = ((x.x_BxXxD if kv is None else x.kv) for x in (context, rounded))
    for row in range(B):
        arrays = round_slots(slots_of(context, row), bits)
        dtype = "bfloat16" if kv is None else "float32"
        back = restore_slots(arrays, bits, dtype, D)
        ours = slots_of(rounded, row)
        given = slots_of(context, row)
        assert (
            ours.keys() == back.keys() == ({"position", "x"} if kv is None else {*"kv", "position"})
        )
        for name in ours:
            wanted = (back if row < 2 else given)[name]
            assert ours[name].dtype == wanted.dtype
            np.testing.assert_array_equal(ours[name], wanted)
        if row < 2:
            assert size_R[row] == sum(x.nbytes for x in arrays.values())
            last = "x" if kv is None else "v"
            scale = arrays[f"{last}_scale"].astype(np.float64)
            exact, found = (
                one[last].astype(np.float64).reshape(len(scale), -1) for one in (given, back)
            )
            assert (np.abs(exact - found) <= scale * 0.51 + 0.01 * np.abs(exact)).all()
            assert (exact != found).any()
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        behind = old[0, 5:] if kv is None else old[..., 5:, :][..., 0, :, :, :]
        same = new[0, 5:] if kv is None else new[..., 5:, :][..., 0, :, :, :]
        np.testing.assert_array_equal(behind, same)


def test_slots_that_have_no_code_are_refused():
    slots = {"position": np.arange(2), "x": np.full((2, 8), np.inf, np.float32)}
    with pytest.raises(DataError, match="slots cannot be kept in 4 bits: .*not finite"):
        round_slots(slots, 4)

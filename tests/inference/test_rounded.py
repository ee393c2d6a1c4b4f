"""Kept entries in 8 and 4 bits: layout, bytes, and which files are refused."""

import ml_dtypes
import numpy as np
import pytest

import gistjax
from gistjax import ask
from gistjax.compress.kept import Entries, entries_of
from gistjax.config import SelectConfig
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.inference.rounded import restore_entries, round_entries
from gistjax.runtime.tensors import load_tensors, save_tensors
from tests.helpers.runs import SELECTED, write_run

KNORM = SELECTED.replace(select=SelectConfig("knorm", "all"))
COUNT = np.array([[3, 0], [1, 4]], np.int32)


def entries(rng, dtype=np.float32):
    """Of eight channels, two of them large in every key."""
    k, v = rng.normal(size=(2, 8, 8)).astype(np.float32)
    k[:, [1, 5]] += 50
    return Entries(k.astype(dtype), v.astype(dtype), COUNT)


@pytest.mark.parametrize("bits", [8, 4])
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


@pytest.mark.parametrize("bits", [8, 4])
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
    return gistjax.load(write_run(tmp_path_factory.mktemp("selecting") / "run", KNORM))


@pytest.fixture(scope="module")
def document(selecting, examples):
    return selecting.compress(examples[0].context)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_document_in_few_bits_is_opened(selecting, document, tmp_path, bits):
    file, whole = tmp_path / "document", tmp_path / "whole"
    saved = ask.save(document, file, str(bits))
    assert saved["saved_bytes"] == file.stat().st_size == document.save(file, bits)
    assert file.stat().st_size < document.save(whole) * (bits + 8) / 32
    opened = selecting.open(file)
    assert (opened.tokens, opened.slots) == (document.tokens, document.slots)
    ours, theirs = (entries_of(selecting.open(x).context) for x in (whole, file))
    np.testing.assert_array_equal(ours.count_LxK, theirs.count_LxK)
    assert 0 < np.abs(ours.v_TxH - theirs.v_TxH).max() < np.ptp(ours.v_TxH) / (2**bits - 1)
    assert load_tensors(file)[1]["bits"] == str(bits)


@pytest.mark.slow
def test_in_8_bits_the_answers_are_nearly_those(selecting, document, examples, tmp_path):
    document.save(tmp_path / "document", bits=8)
    opened = selecting.open(tmp_path / "document")
    for example in examples:
        ours, theirs = (one.ask(example.question) for one in (document, opened))
        assert theirs.score == pytest.approx(ours.score, rel=0.05)


@pytest.mark.parametrize("bits", [0, 2, 16, True, "4"])
def test_other_bits_are_refused(document, tmp_path, bits):
    with pytest.raises(ConfigError, match="saved in 8 or 4 bits, or as they are"):
        document.save(tmp_path / "document", bits)
    assert not list(tmp_path.iterdir())


def test_slots_have_no_bits(engine, examples, tmp_path):
    with pytest.raises(ConfigError, match="bits are of kept entries"):
        engine.compress(examples[0].context).save(tmp_path / "document", 8)


def change(name, value):
    return lambda arrays: arrays | {name: value(arrays[name])}


def nan(x):
    return np.where(np.arange(x.size).reshape(x.shape) == 0, np.float16(np.nan), x)


@pytest.mark.parametrize(
    ("damage", "about"),
    [
        *((lambda arrays, n=name: {k: x for k, x in arrays.items() if k != n}, {})
          for name in ("k", "k_scale", "k_offset", "v", "v_scale", "v_offset", "count")),
        *((change(name, lambda x: x[:, :-1]), {}) for name in ("k", "k_scale", "v", "v_scale")),
        *((change(name, lambda x: x[:-1]), {}) for name in ("k", "k_offset", "v_offset")),
        (change("k", lambda x: x.astype(np.int8)), {}),
        (change("v_scale", lambda x: x.astype(np.float32)), {}),
        (change("k_scale", nan), {}),
        (change("v_offset", nan), {}),
        (change("v_scale", np.negative), {}),
        (change("count", lambda x: x + 1), {}),
        (change("count", lambda x: x * np.float32(1)), {}),
        (dict, {"bits": "4"}),  # two codes would be read from each byte
        (dict, {"dtype": "int8"}),
        (dict, {"dtype": "no dtype"}),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(selecting, document, tmp_path, damage, about):
    """Whoever wrote it: the checksum is right."""
    file = tmp_path / "document"
    document.save(file, 8)
    arrays, theirs = load_tensors(file)
    save_tensors(file, damage(arrays), theirs | about)
    with pytest.raises(CheckpointError, match="no whole document .*compress the text again"):
        selecting.open(file)


def test_other_bits_in_a_file_are_refused_by_name(selecting, document, tmp_path):
    file = tmp_path / "document"
    document.save(file, 4)
    arrays, about = load_tensors(file)
    for bits in ("3", "16", "-4", "4.0", ""):
        save_tensors(file, arrays, about | {"bits": bits})
        with pytest.raises(CheckpointError, match=f"in {bits} bits, and this gistjax reads 8 and"):
            selecting.open(file)


def test_flipped_bits_and_cuts_are_seen(selecting, document, tmp_path, rng):
    file = tmp_path / "document"
    document.save(file, 4)
    whole = file.read_bytes()
    for bit in rng.integers(0, 8 * len(whole), 50):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            selecting.open(file)
    for size in rng.integers(0, len(whole), 20):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            selecting.open(file)

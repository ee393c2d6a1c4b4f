import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from gistjax.errors import CheckpointError, StorageError
from gistjax.runtime.tensors import load_tensors, save_tensors

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.asarray(3, np.int32),
    "half": np.ones(3, ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float16),
}
METADATA = {"format": "gistjax", "config": json.dumps({"sha256": "0" * 64})}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checked") / "x.safetensors"
    save_tensors(path, ARRAYS, METADATA)
    return path


def test_what_was_saved_is_loaded(saved):
    arrays, metadata = load_tensors(saved)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert {key: metadata[key] for key in METADATA} == METADATA


def test_other_readers_read_it(saved):
    with safe_open(saved, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("matrix"), ARRAYS["matrix"])
        assert file.metadata()["format"] == "gistjax"


def test_the_same_content_is_the_same_bytes(saved, tmp_path):
    save_tensors(tmp_path / "y", dict(reversed(ARRAYS.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "y").read_bytes() == saved.read_bytes()


@given(st.data())
def test_no_flipped_bit_and_no_cut_goes_unseen(saved, tmp_path_factory, data):
    content = bytearray(saved.read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_tensors(path)


def test_a_missing_file_and_a_foreign_one(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_tensors(tmp_path / "none.safetensors")
    (tmp_path / "foreign").write_bytes(b"PK\x03\x04" * 99)
    with pytest.raises(CheckpointError, match="not written by gistjax"):
        load_tensors(tmp_path / "foreign")


def test_where_it_cannot_be_written_the_old_file_stays(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save_tensors(saved, {"other": np.zeros(3)})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["x.safetensors"]

import json

import numpy as np
import pytest

from gistjax.compress.exported import (
    load_exported,
    load_stored,
    packed,
    save_exported,
    scaled_axes,
    unpacked,
)
from gistjax.errors import CheckpointError
from gistjax.experiment.run_dir import SHIPPED
from gistjax.runtime.tensors import load_tensors, save_tensors

A, B = "lora/adapters/q/a", "compressor/encoder/lora/adapters/q/b"
ABOUT = {"format": "gistjax", "config": "{}"}


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        (A, (30, 576, 64), (1,)),
        (A, (2, 4, 64), (1,)),  # a rank above the width
        ("lora/adapters/3/q/a", (576, 64), (0,)),
        (B, (30, 64, 192), (2,)),
        (B, (30, 64, 9, 64), (2, 3)),
        ("lora/adapters/3/q/b", (64, 16), (1,)),
        ("compressor/architecture/projection", (576, 576), (1,)),
        ("compressor/architecture/feed_forward/into", (576, 1536), (1,)),
        ("compressor/architecture/queries", (64, 4096), (1,)),
        ("selector/scorer/mlp/w1", (30, 576, 256), (1,)),
        ("selector/scorer/mlp/w2", (30, 256, 3), (1,)),
        ("selector/scorer/mlp/c", (30, 3), None),
        ("selector/scorer/input_norm", (30, 576), None),
        ("selector/scorer/bias", (30, 576), None),
        ("selector/profile", (30, 96, 7), None),
        ("compressor/gate", (576,), None),
        ("compressor/architecture/kernel", (9, 64), None),
        ("a/few/wide/groups", (500, 3, 9), None),
        ("scalar", (), None),
        ("compressor/architecture/a", (4, 4), None),  # no adapter's
    ],
)
def test_name_and_size_decide_what_shares_a_scale(name, shape, axes):
    assert scaled_axes(name, shape) == axes


@pytest.fixture
def leaves(rng):
    arrays = {A: rng.normal(size=(3, 40, 8)), B: rng.normal(size=(3, 8, 24)), "gate": np.ones(5)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_the_file_has_the_bytes_that_it_is_calculated_to_have(leaves, tmp_path):
    file = tmp_path / "x.safetensors"
    save_exported(file, packed(leaves), ABOUT)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    # a byte a number, four for a scale of each layer and rank, and a gate of five in fp32
    assert len(content) - header == 3 * 40 * 8 + 3 * 8 * 24 + 2 * (4 * 3 * 8) + 4 * 5
    arrays, metadata = load_exported(file)
    assert metadata["version"] == "2" and json.loads(metadata["config"]) == {}
    assert arrays.keys() == leaves.keys() and arrays["gate"].tolist() == [1] * 5
    for name in (A, B):
        bound = packed(leaves)[name + ".scale"] / 2
        assert (np.abs(arrays[name] - leaves[name]) <= bound * (1 + 1e-4)).all()
        assert np.abs(arrays[name] - leaves[name]).max() > 0


def test_stacked_and_by_layer_an_adapter_is_rounded_alike(leaves):
    whole = unpacked(packed(leaves))
    for layer in range(3):
        own = {name.replace("/q/", f"/{layer}/q/"): x[layer] for name, x in leaves.items()}
        for name, array in unpacked(packed({k: x for k, x in own.items() if x.ndim})).items():
            np.testing.assert_array_equal(array, whole[name.replace(f"/{layer}/", "/")][layer])


def test_parameters_as_they_are_have_no_version(leaves, tmp_path):
    """So that an earlier gistjax reads them."""
    save_exported(tmp_path / "x", leaves, ABOUT)
    arrays, metadata = load_exported(tmp_path / "x")
    assert "version" not in metadata
    for name, array in leaves.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_the_compressor_in_the_package_is_in_int8():
    arrays, metadata = load_exported(SHIPPED / "compressor.safetensors")
    stored, _ = load_tensors(SHIPPED / "compressor.safetensors")
    assert metadata["version"] == "2" and not any(name.endswith(".scale") for name in arrays)
    for name in ("lora/adapters/down/a", "selector/learned/project"):
        np.testing.assert_array_equal(arrays[name], stored[name] * stored[name + ".scale"])


def test_int8_is_read_from_files_of_before_the_version(leaves, tmp_path):
    """The compressor of gistjax 0.1 and 0.2.0 is such a file."""
    save_tensors(tmp_path / "x", packed(leaves), ABOUT)
    arrays, _ = load_exported(tmp_path / "x")
    np.testing.assert_array_equal(arrays[B], unpacked(packed(leaves))[B])


def without_scales(arrays):
    del arrays[B + ".scale"]


def with_nan(arrays):
    arrays[B + ".scale"][0, 1] = np.nan


def with_other_groups(arrays):
    arrays[B + ".scale"] = np.ones((3, 1, 1, 1), np.float32)


def with_scales_in_int8(arrays):
    arrays[B + ".scale"] = np.ones((3, 8, 1), np.int8)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_scales, "its scales are missing"),
        (with_nan, "a scale is not finite and positive"),
        (with_other_groups, "its scales have shape"),
        (with_scales_in_int8, "its scales are"),
    ],
)
def test_scales_that_are_none_are_refused_by_name(leaves, tmp_path, damage, says):
    """Whoever wrote them: the checksum is right."""
    arrays = packed(leaves)
    damage(arrays)
    save_exported(tmp_path / "x", arrays, ABOUT)
    with pytest.raises(CheckpointError, match=rf"x is damaged: {B}.* is in int8, and {says}"):
        load_exported(tmp_path / "x")


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"version": "3"}, "has version 3; this gistjax reads compressors up to 2"),
        ({"version": ""}, "has version ;"),
        ({"format": "gistjax-profile"}, "no compressor, but a file of format 'gistjax-profile'"),
    ],
)
def test_another_version_or_kind_of_file_is_refused_by_name(leaves, tmp_path, about, says):
    save_tensors(tmp_path / "x", leaves, {**ABOUT, **about})
    with pytest.raises(CheckpointError, match=says):
        load_stored(tmp_path / "x")


def test_weights_that_are_not_finite_are_not_rounded(leaves):
    leaves[A][1, 2, 3] = np.inf
    with pytest.raises(CheckpointError, match=f"{A} cannot be put in int8: a number is not finite"):
        packed(leaves)


def test_flipped_bits_and_cuts_are_seen(leaves, tmp_path, rng):
    file = tmp_path / "x.safetensors"
    save_exported(file, packed(leaves), ABOUT)
    whole = file.read_bytes()
    for bit in rng.integers(0, 8 * len(whole), 100):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            load_exported(file)
    for size in rng.integers(0, len(whole), 20):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            load_exported(file)

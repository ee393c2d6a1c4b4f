import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from gistjax.config import ARCHITECTURES, EncoderConfig, LoraConfig, MeshConfig
from gistjax.errors import ConfigError
from gistjax.runtime.sharding import (
    RULES,
    make_mesh,
    mesh_problem,
    path_name,
    put_batch,
    shardings_of,
    spec_of,
)
from tests.helpers.tiny import FAMILIES, tiny_base, tiny_batch, tiny_model

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def test_mesh_fills_the_axis_left_over():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            MeshConfig(fsdp=3),
            r"mesh\.fsdp=3 takes a multiple of 3 devices, but there are 8: .* 1, 2, 4 or 8",
        ),
        (MeshConfig(data=4), r"mesh\.data=4 takes 4 devices, but there are 8"),
        (MeshConfig(data=16), r"mesh\.data=16 takes 16 devices, but there are 8"),
        (MeshConfig(data=1), r"a mesh of 1 x 1 x 1 takes 1 device, but there are 8"),
        (MeshConfig(2, 2, 4), r"data=2, mesh\.fsdp=2, mesh\.tensor=4 takes 16 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        make_mesh(config)


def test_a_mesh_on_one_device():
    assert mesh_problem(MeshConfig(), 1) == mesh_problem(MeshConfig(data=1), 1) == ""
    says = mesh_problem(MeshConfig(tensor=3), 1)
    assert says.startswith("mesh.tensor=3 takes a multiple of 3 devices, but there is 1: ")
    assert says.endswith("product is 1.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_of_a_base_matches_one_rule(family):
    paths = jax.tree_util.tree_leaves_with_path(nnx.state(tiny_base(FAMILIES[family])))
    for path in (f"base/{path_name(path)}" for path, _ in paths):
        assert sum(bool(re.fullmatch(pattern, path)) for pattern, _ in RULES) == 1, path


@pytest.mark.parametrize("name", [*ARCHITECTURES, "none"])
def test_every_parameter_has_a_rule(name):
    encoder = EncoderConfig(kind="lora", lora=LoraConfig(rank=2))
    state = nnx.state(tiny_model(name, encoder=encoder, connector="linear"))
    assert jax.tree.leaves(shardings_of(state, make_mesh(MESH)))


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ConfigError, match="mystery/w"):
        spec_of("mystery/w", (4, 4), make_mesh(MESH))


def test_rules_follow_the_projections():
    mesh = make_mesh(MESH)
    for path, lead in (("base/layers/qkv", (3,)), ("base/layers/2/qkv", ())):
        spec = spec_of(path, (*lead, 32, 2, 4, 8), mesh)
        assert spec == P(*(None for _ in lead), "fsdp", "tensor", None, None)
    assert spec_of("base/layers/0/gate_up", (32, 2, 48), mesh) == P("fsdp", None, "tensor")
    assert spec_of("base/layers/0/qkv_bias", (2, 4, 8), mesh) == P("tensor", None, None)
    assert spec_of("base/layers/down", (3, 48, 32), mesh) == P(None, "tensor", "fsdp")
    assert spec_of("compressor/encoder/lora/adapters/o/a", (3, 32, 2), mesh) == P(
        None, "tensor", None
    )

    declared = {
        path_name(path): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            shardings_of(nnx.state(tiny_model("gist")), mesh)
        )
    }
    assert declared["compressor/architecture/attention/value"] == P("fsdp", "tensor")
    assert declared["compressor/architecture/queries"] == P()


def test_an_axis_that_does_not_divide_is_left_out():
    assert spec_of("base/embedding", (61, 32), make_mesh(MESH)) == P(None, "fsdp")


def test_names_keep_parameters_called_value():
    """`value` is also what nnx calls the array inside a variable: only that one is dropped."""
    names = [
        path_name(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(tiny_model("gist")))
    ]
    assert "compressor/architecture/attention/value" in names
    assert len(names) == len(set(names))
    assert not any(name.endswith("/value/value") for name in names)


def test_batches_are_split_by_rows(rng):
    mesh = make_mesh(MESH)
    batch = jax.tree.map(lambda x: np.stack([x, x]), tiny_batch(rng, B=8))
    placed = put_batch(batch, mesh, leading=1)
    assert placed.tokens_BxS.addressable_shards[0].data.shape == (2, 2, 9)
    np.testing.assert_array_equal(placed.tokens_BxS, batch.tokens_BxS)
    assert placed.tokens_BxS.dtype == jnp.int32

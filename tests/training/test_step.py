import dataclasses
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.config import EncoderConfig, LoraConfig, MeshConfig, SelectConfig
from gistjax.runtime import sharding
from gistjax.runtime.sharding import make_mesh, put_batch
from gistjax.training.step import _is_bad, no_bad_step
from tests.helpers.tiny import (
    BAD,
    FAMILIES,
    TINY,
    make_bad,
    micro_batches,
    poison,
    start,
    tiny_base,
    tiny_model,
)

LAYOUTS = {
    "replicated": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=4, tensor=2),
    "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}


EVERY_OWN = dataclasses.replace(
    FAMILIES["qwen3"],
    qkv_biases=True,
    unrotated_layers=FAMILIES["smollm3"].unrotated_layers,
)
"""Whatever a family has of its own, in one."""


def run(mesh, batches, steps=3, **kwargs):
    state, frozen, step = start(mesh, **kwargs)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen, put_batch(batches, mesh, leading=1))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.trainable)


@pytest.fixture(scope="module")
def one_device():
    return run(sharding.one_device(), micro_batches(np.random.default_rng(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=pytest.mark.long) if x == "tensor" else x for x in LAYOUTS],
)
def test_every_layout_gives_the_loss_of_one_device(layout, one_device, caplog):
    with jax.log_compiles():
        losses, _ = run(make_mesh(LAYOUTS[layout]), micro_batches(np.random.default_rng(0)))
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    assert losses[-1] < losses[0]
    compiled = [text for text in caplog.messages if text.startswith("Compiling jit(train_step)")]
    assert len(compiled) == 1, "a step compiles once"


@pytest.mark.slow
def test_unrolled_layers_give_the_loss_of_one_device(one_device, monkeypatch):
    """And so do answers decoded with adapters beside the weights."""
    monkeypatch.setattr("gistjax.training.losses.MERGE_UP_TO", 0)
    mesh = make_mesh(LAYOUTS["all three"])
    model = tiny_model("gist", base=tiny_base(scan=False, mesh=mesh))
    batches = micro_batches(np.random.default_rng(0))
    losses, _ = run(mesh, batches, model=model)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["all", *(pytest.param(x, marks=pytest.mark.long) for x in ("qwen2", "qwen3", "smollm3"))],
)
@pytest.mark.parametrize("slot_form", ["soft_tokens", "key_values"])
def test_every_family_has_the_loss_of_one_device_on_a_mesh(family, slot_form):
    losses = []
    for mesh in (sharding.one_device(), make_mesh(LAYOUTS["all three"])):
        config = dataclasses.replace(FAMILIES.get(family, EVERY_OWN), n_layers=2)
        base = tiny_base(config, scan=False, mesh=mesh)
        model = tiny_model("gist", base=base, slot_form=slot_form)
        batches = micro_batches(np.random.default_rng(0))
        losses.append(run(mesh, batches, model=model)[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scorer, spread", [("kvzip", "all"), pytest.param("h2o", "layer", marks=pytest.mark.long)]
)
def test_entries_that_are_kept_have_the_loss_of_one_device_on_a_mesh(scorer, spread):
    losses, weights = [], {"teacher_forcing": 0.5, "generation": 0.5}
    for mesh in (sharding.one_device(), make_mesh(LAYOUTS["all three"])):
        config = dataclasses.replace(TINY, n_layers=2)
        base = tiny_base(config, scan=False, mesh=mesh)
        model = tiny_model("select", base=base, ratio=2.0, select=SelectConfig(scorer, spread))
        batches = micro_batches(np.random.default_rng(0))
        losses.append(run(mesh, batches, model=model, weights=weights)[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    # a step changes which entries are kept, so the loss need not fall in three of them
    assert len(set(losses[0])) == 3


@pytest.mark.slow
def test_split_weights_are_gathered_and_activations_are_not_summed():
    """A layer's weights twice for each reading: for its products, and for their gradients."""
    mesh = make_mesh(LAYOUTS["fsdp"])
    base = tiny_base(dataclasses.replace(TINY, n_layers=2), scan=False, mesh=mesh)
    model, weights = tiny_model("gist", base=base), {"teacher_forcing": 1.0}
    state, frozen, step = start(mesh, model=model, weights=weights)
    batches = put_batch(micro_batches(np.random.default_rng(0)), mesh, leading=1)
    program = step.lower(state, frozen, batches).compile().as_text()
    down = ",".join(map(str, base.layers[0].down.shape))
    gathered = re.findall(rf"f32\[{down}\]\S* all-gather\(", program)
    assert len(gathered) == 2 * base.config.n_layers
    T = batches.tokens_BxS.shape[2]
    assert not re.search(rf"f32\[\d+,{T},\d+\]\S* all-reduce\(", program)


@pytest.mark.slow
def test_golden_losses(one_device):
    """Pinned: a change here is a change of what is computed."""
    np.testing.assert_allclose(one_device[0], GOLDEN, rtol=1e-4)


GOLDEN = [8.431521, 8.415631, 8.392308]


@pytest.mark.slow
def test_the_state_is_donated_and_the_base_stays_byte_by_byte(rng):
    mesh = make_mesh(MeshConfig())
    encoder = EncoderConfig(kind="lora", lora=LoraConfig(rank=2))
    state, frozen, step = start(mesh, tiny_model("gist", encoder=encoder))

    def digest(tree):
        leaves = jax.device_get(jax.tree.leaves(tree))
        return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()

    base_before, trained_before = digest(frozen), digest(state.trainable)
    for _ in range(2):
        before = state
        state, _ = step(before, frozen, put_batch(micro_batches(rng), mesh, leading=1))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.trainable))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    assert digest(frozen) == base_before
    assert digest(state.trainable) != trained_before


def test_no_gradient_is_formed_for_frozen_matrices():
    """No dot of the compiled step has a base matrix's shape, as weight gradients would."""
    mesh = make_mesh(MeshConfig())
    state, frozen, step = start(mesh, tiny_model("none"), {"teacher_forcing": 1.0})
    batch = put_batch(micro_batches(np.random.default_rng(0)), mesh, leading=1)
    text = step.lower(state, frozen, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert not any("-> tensor<32x48xf32>" in p or "-> tensor<48x32xf32>" in p for p in products)


def test_moments_lie_like_their_parameters():
    mesh = make_mesh(LAYOUTS["all three"])
    state, _, _ = start(mesh)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
    assert specs == {
        leaf.sharding.spec for leaf in jax.tree.leaves(state.trainable) if leaf.ndim > 1
    }
    assert len(specs) > 2


@pytest.mark.slow
def test_training_overfits_one_batch(rng):
    """The model learns a batch by heart: losses, slots, gradients and updates work together."""
    mesh = make_mesh(MeshConfig())
    weights = {"teacher_forcing": 1.0}
    losses, *_ = run(mesh, micro_batches(rng), steps=80, weights=weights, rate=1e-2)
    assert losses[-1] < 0.3 * losses[0]


@pytest.fixture(scope="module")
def guarded():
    """A step whose loss can be poisoned, and which takes ten times the mean for a spike."""
    mesh = make_mesh(MeshConfig())
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        state, frozen, step = start(mesh, weights={"teacher_forcing": 1.0}, spike_factor=10.0)
        good = micro_batches(np.random.default_rng(0), K=2)

        def run_steps(*kinds):
            """The state after steps that are bad in these ways, or good (None)."""
            after = jax.tree.map(jnp.copy, state)  # the step's own is donated
            for kind in kinds:
                batches = make_bad(good, kind) if kind else good
                after, _ = step(after, frozen, put_batch(batches, mesh, leading=1))
            return jax.device_get(after)

        yield run_steps


def content(state):
    """The bytes of parameters and optimizer."""
    return [leaf.tobytes() for leaf in jax.tree.leaves((state.trainable, state.opt_state))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_micro_batch_changes_neither_parameters_nor_optimizer(kind, guarded):
    before, after, on = guarded(None), guarded(None, kind), guarded(None, kind, None)
    assert content(after) == content(before)
    assert content(on) == content(guarded(None, None)) != content(before)
    assert (after.step, after.health.bad_steps, after.health.last_bad_step) == (2, 1, 2)
    assert after.health.mean_loss == before.health.mean_loss > 0
    assert (after.health.bad_in_a_row, on.health.bad_in_a_row, on.health.bad_steps) == (1, 0, 1)


@pytest.mark.slow
def test_bad_steps_are_counted_in_all_and_in_a_row(guarded):
    health = guarded("nan loss", "inf loss", None, "nan gradient", "nan gradient", "spike").health
    assert (health.bad_steps, health.bad_in_a_row, health.last_bad_step) == (5, 3, 6)


@pytest.mark.slow
def test_the_first_loss_is_no_spike(guarded):
    """There is nothing yet to measure it against."""
    assert guarded("spike").health.bad_steps == 0


@pytest.mark.parametrize(
    "loss, factor, bad", [(9.9, 10.0, False), (10.1, 10.0, True), (1e6, 0.0, False)]
)
def test_a_spike_is_a_multiple_of_the_recent_mean(loss, factor, bad):
    health = dataclasses.replace(no_bad_step(), mean_loss=jnp.float32(1.0))
    assert bool(_is_bad(jnp.float32(loss), jnp.float32(1.0), health, factor)) == bad

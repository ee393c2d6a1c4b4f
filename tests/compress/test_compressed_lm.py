import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.compressed_lm import answer_positions
from gistjax.config import ARCHITECTURES, EncoderConfig, LoraConfig
from gistjax.model.layer import Frozen
from gistjax.model.lora import Trainable
from gistjax.model.masks import lengths_to_valid
from tests.helpers.tiny import FAMILIES, PREFIX, Compiled, tiny_base, tiny_inputs, tiny_model

ENCODERS = {
    "embeddings": EncoderConfig(kind="embeddings"),
    "hidden": EncoderConfig(kind="hidden", layers=2),
    "lora": EncoderConfig(kind="lora", lora=LoraConfig(rank=2)),
    "bidirectional": EncoderConfig(kind="lora", bidirectional=True, lora=LoraConfig(rank=2)),
}
FORMS = [(name, "soft_tokens") for name in (*ARCHITECTURES, "none", "closed_book")] + [
    ("gist", "key_values"),
    ("pooling", "key_values"),
]
FAST = ("gist", "pooling", "none")
"""Architectures whose tests are not slow, where all are tried."""
SLOTS = [
    {},
    {"slot_start": "window_means", "slot_positions": "spread", "ratio": 3.0},
    {"slot_start": "window_ends", "slot_positions": "spread", "ratio": 3.0},
]
INSIDE = {"slot_place": "inside", "slot_start": "window_ends", "ratio": 3.0}
PLACES = [
    pytest.param(SLOTS[0], id="packed"),
    pytest.param(SLOTS[1], id="means", marks=pytest.mark.slow),
    pytest.param(SLOTS[2], id="ends", marks=pytest.mark.slow),
    pytest.param(INSIDE, id="inside", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder", "family"),
    [
        (name, encoder, family)
        if name == "gist" or encoder == "bidirectional"
        else pytest.param(name, encoder, family, marks=pytest.mark.long)
        for name in ARCHITECTURES
        for encoder, family in (
            *((encoder, "llama") for encoder in ENCODERS),
            *(("lora", family) for family in FAMILIES if family != "llama"),
        )
    ],
)
def test_every_architecture_with_every_encoder(name, encoder, family, rng):
    base = tiny_base(FAMILIES[family])
    model = Compiled(tiny_model(name, encoder=ENCODERS[encoder], base=base))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    memory = model.in_sequence(PREFIX, ids, length)
    chex.assert_shape(memory.x_BxXxD, (3, 4, 32))
    np.testing.assert_array_equal(memory.slots_B, [4, 4, 3])  # no more slots than tokens
    chex.assert_shape(model.states(memory, tokens, tokens_length), (3, 7, 32))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_padding_tokens_change_nothing(name, form, rng):
    encoder = ENCODERS["embeddings" if form == "key_values" else "bidirectional"]
    model = Compiled(tiny_model(name, slot_form=form, encoder=encoder))
    ids, length, tokens, tokens_length = tiny_inputs(rng)

    def states(ids, tokens):
        return np.asarray(
            model.states(model.in_sequence(PREFIX, ids, length), tokens, tokens_length)
        )

    padded_ids = jnp.where(jnp.arange(16) < length[:, None], ids, 60 - ids)
    padded_tokens = jnp.where(jnp.arange(7) < tokens_length[:, None], tokens, 60 - tokens)
    real = np.arange(7) < np.asarray(tokens_length)[:, None]
    np.testing.assert_array_equal(
        states(ids, tokens)[real], states(padded_ids, padded_tokens)[real]
    )


@pytest.mark.parametrize(
    ("name", "form"),
    [form if form[0] in FAST else pytest.param(*form, marks=pytest.mark.slow) for form in FORMS],
)
def test_wider_padding_changes_nothing(name, form, rng):
    model = Compiled(tiny_model(name, slot_form=form))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    wide_ids, wide_tokens = jnp.pad(ids, ((0, 0), (0, 5))), jnp.pad(tokens, ((0, 0), (0, 3)))
    narrow = model.states(model.in_sequence(PREFIX, ids, length), tokens, tokens_length)
    wide = model.states(model.in_sequence(PREFIX, wide_ids, length), wide_tokens, tokens_length)
    real = np.arange(7) < np.asarray(tokens_length)[:, None]
    np.testing.assert_allclose(np.asarray(narrow)[real], np.asarray(wide)[:, :7][real], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "slots"),
    [
        pytest.param(
            name,
            form,
            *place.values,
            id=f"{place.id}-{name}-{form}",
            marks=pytest.mark.long if place.id != "packed" and name != "gist" else (),
        )
        for name, form in FORMS
        for place in (PLACES if name in ARCHITECTURES else PLACES[:1])  # controls have no slots
    ],
)
def test_cached_answers_equal_uncached_ones(name, form, slots, rng):
    model = Compiled(tiny_model(name, slot_form=form, **slots))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    answers = np.asarray(
        model.greedy(model.compress(PREFIX, ids, length), tokens, tokens_length, 5, -1)
    )
    sequence = np.concatenate([np.asarray(tokens), np.zeros((3, 5), int)], axis=1)
    ends, rows = np.asarray(tokens_length), np.arange(3)
    for step in range(5):
        h = model.states(
            model.in_sequence(PREFIX, ids, length), jnp.array(sequence), jnp.array(ends + step)
        )
        best = np.asarray(model.base.logits(h)).argmax(-1)[rows, ends + step - 1]
        np.testing.assert_array_equal(answers[:, step], best)
        sequence[rows, ends + step] = best


@pytest.mark.parametrize("bidirectional", [False, True])
def test_encoder_mask_through_gradients(bidirectional, rng):
    encoder = ENCODERS["bidirectional" if bidirectional else "lora"]
    model = tiny_model("mean_pool", encoder=encoder)
    ids, length = jnp.arange(12).reshape(2, 6), jnp.array([6, 4])
    table = model.base.embedding[...]
    graphdef, state = nnx.split(model)

    def state_sums(x):  # a token's embedding is looked up in the table: put x there
        inner = nnx.merge(graphdef, state)
        inner.base.embedding = Frozen(table.at[:12].set(x.reshape(12, 32)))
        return inner.compressor.encoder(inner.base, ids, length).sum(-1)

    jacobian = np.asarray(jax.jit(jax.jacobian(state_sums))(table[ids]))
    influence = np.abs(jacobian).sum(-1)
    for b, t, u in np.ndindex(2, 6, 6):
        if t < length[b]:
            may_see = u < length[b] and (bidirectional or u <= t)
            assert (influence[b, t, b, u] > 0) == may_see


@pytest.mark.slow
def test_rms_connector_matches_the_embeddings(rng):
    model = tiny_model("conv")
    model.compressor.connector.embedding_rms[...] = jnp.float32(0.3)
    ids, length, *_ = tiny_inputs(rng)
    memory = model.in_sequence(PREFIX, ids, length)
    rms = np.sqrt(np.mean(np.asarray(memory.x_BxXxD) ** 2, axis=-1))
    np.testing.assert_allclose(rms[np.asarray(memory.valid_BxX)], 0.3, rtol=1e-4)


def assert_uncompressed(model, method, inputs, atol):
    """Its states after a compressed context are those after the whole one."""
    ids, length, tokens, tokens_length = inputs
    ours, whole = Compiled(model), Compiled(tiny_model("none"))
    real = lengths_to_valid(tokens_length, tokens.shape[1])
    context = getattr(ours, method)(PREFIX, ids, length)
    chex.assert_trees_all_close(
        ours.states(context, tokens, tokens_length)[real],
        whole.states(whole.in_sequence(PREFIX, ids, length), tokens, tokens_length)[real],
        atol=atol,
    )


def test_mean_pool_of_one_token_a_slot_is_the_uncompressed_model(rng):
    pooled = tiny_model("mean_pool", target_length=16, connector="none")
    assert_uncompressed(pooled, "in_sequence", tiny_inputs(rng), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slots"),
    [
        (name, slots)
        if slots is SLOTS[1] or name == "gist"
        else pytest.param(name, slots, marks=pytest.mark.long)
        for name in ARCHITECTURES
        for slots in SLOTS[1:]
    ],
)
def test_training_starts_at_the_uncompressed_model(name, slots, rng):
    """A slot a token: window means are the embeddings, and the head's gate is shut."""
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    changes = {**slots, "ratio": 1.0, "target_length": 16, "connector": "none"}
    slotted, whole = Compiled(tiny_model(name, **changes)), Compiled(tiny_model("none"))
    real = lengths_to_valid(tokens_length, tokens.shape[1])
    chex.assert_trees_all_close(
        slotted.states(slotted.in_sequence(PREFIX, ids, length), tokens, tokens_length)[real],
        whole.states(whole.in_sequence(PREFIX, ids, length), tokens, tokens_length)[real],
        atol=1e-5,
    )


def test_slots_of_a_ratio_and_their_positions(rng):
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    model = Compiled(tiny_model("pooling", target_length=16, ratio=4.0, slot_positions="spread"))
    memory = model.in_sequence(PREFIX, ids, length)
    np.testing.assert_array_equal(memory.slots_B, [4, 3, 1])  # of 16, 9 and 3 tokens
    np.testing.assert_allclose(memory.position_BxX[0], [1.5, 5.5, 9.5, 13.5])
    np.testing.assert_allclose(memory.position_BxX[1, :3], [1.0, 4.0, 7.0])
    np.testing.assert_array_equal(memory.length_B, length)
    chex.assert_shape(memory.x_BxXxD, (3, 4, 32))


@pytest.mark.slow
def test_each_row_may_have_its_own_ratio(rng):
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    model = Compiled(tiny_model("pooling", target_length=16, ratio=4.0, ratios=(2.0, 4.0)))
    ratio = jnp.array([2.0, 4.0, 2.0])
    memory = model.in_sequence(PREFIX, ids, length, ratio)
    np.testing.assert_array_equal(memory.slots_B, [8, 3, 2])
    chex.assert_shape(memory.x_BxXxD, (3, 8, 32))  # room for the least ratio
    h = model.states(memory, tokens, tokens_length)
    for b in range(3):
        alone = Compiled(tiny_model("pooling", target_length=16, ratio=float(ratio[b])))
        expected = alone.states(alone.in_sequence(PREFIX, ids, length), tokens, tokens_length)
        n = tokens_length[b]
        chex.assert_trees_all_close(h[b, :n], expected[b, :n], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slots_inside_the_context_start_at_the_uncompressed_model(name, rng):
    changes = {**INSIDE, "ratio": 1.0, "target_length": 16, "connector": "none"}
    slotted = tiny_model(name, slot_form="key_values", **changes)
    assert_uncompressed(slotted, "compress", tiny_inputs(rng), 1e-4)


@pytest.mark.slow
def test_slots_inside_the_context_are_its_windows_last_tokens(rng):
    ids, length, *_ = tiny_inputs(rng)
    model = Compiled(tiny_model("gist", slot_form="key_values", target_length=16, **INSIDE))
    memory = model.in_sequence(PREFIX, ids, length)
    np.testing.assert_array_equal(memory.slots_B, [6, 3, 1])  # of 16, 9 and 3 tokens
    seen = np.asarray(memory.valid_BxX & ~memory.cut_BxX)
    np.testing.assert_array_equal(np.flatnonzero(seen[1]), [2, 5, 8])
    np.testing.assert_array_equal(np.flatnonzero(seen[2]), [2])
    kept = model.compress(PREFIX, ids, length)
    chex.assert_shape(kept.x_BxXxD, (3, 6, 32))
    np.testing.assert_array_equal(kept.valid_BxX.sum(1), [6, 3, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "slots"),
    [*(pytest.param("llama", *each.values, id=each.id) for each in PLACES),
     *((family, SLOTS[1]) for family in FAMILIES if family != "llama")],
)  # fmt: skip
def test_slots_as_keys_and_values_are_those_under_the_gist_mask(family, slots, rng):
    base = tiny_base(FAMILIES[family], scan=False)
    model = Compiled(tiny_model("gist", slot_form="key_values", base=base, **slots))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    kept, plain = model.compress(PREFIX, ids, length), model.in_sequence(PREFIX, ids, length)
    real = lengths_to_valid(tokens_length, tokens.shape[1])
    chex.assert_trees_all_close(
        *(model.states(m, tokens, tokens_length)[real] for m in (kept, plain)), atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("none", {}),
        ("gist", {}),
        ("gist", {"slot_form": "key_values"}),
        ("pooling", {"slot_start": "window_means", "slot_positions": "spread"}),
        ("pooling", {"slot_form": "key_values", **INSIDE}),
    ],
)
def test_a_memory_that_is_read_once_answers_each_question_as_if_alone(name, changes, rng):
    model = Compiled(tiny_model(name, base=tiny_base(scan=False), **changes))
    ids, length, tokens, tokens_length = tiny_inputs(rng, B=3)
    tokens6, length6 = jnp.repeat(tokens, 2, 0)[::-1], jnp.repeat(tokens_length, 2)[::-1]
    alone = model.in_sequence(PREFIX, jnp.repeat(ids, 2, 0), jnp.repeat(length, 2))
    wanted = jnp.stack([length6 - 1, length6 - 2], axis=1)
    expected, one = model.prefill_with(alone, tokens6, length6, 3, wanted, seen_B=length6 - 1)
    reading = model.prefill(model.compress(PREFIX, ids, length), 7 + 3).repeat(2)
    h, other = model.append(tokens6, reading, wanted, length6 - 1)
    chex.assert_trees_all_close(h, expected, atol=1e-4)
    more = tokens6[:, :3]
    chex.assert_trees_all_close(
        *(model.decode_step(more, reading, 0)[0] for reading in (one, other)), atol=1e-4
    )


@pytest.mark.slow
def test_an_encoder_of_its_own_makes_the_keys_and_values(rng):
    model = tiny_model("mean_pool", slot_form="key_values", encoder=ENCODERS["lora"])
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)
    ids, length, tokens, tokens_length = tiny_inputs(rng)

    def total(trainable):
        model = nnx.merge(graphdef, trainable, frozen)
        h = model.states(model.compress(PREFIX, ids, length), tokens, tokens_length)
        return jnp.sum(jnp.sin(h))

    grad = jax.jit(jax.grad(total))(trainable)
    for lora in (grad.lora, grad.compressor.encoder.lora):
        moved = [name for name in lora.adapters if float(jnp.abs(lora.adapters[name].a[...]).max())]
        assert set(moved) == set(lora.adapters)


def test_closed_book_sees_no_context(rng):
    model = Compiled(tiny_model("closed_book"))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    one, other = (
        model.states(model.in_sequence(PREFIX, x, length), tokens, tokens_length)
        for x in (ids, 60 - ids)
    )
    chex.assert_trees_all_equal(one, other)


def test_trainable_leaves_are_lora_architecture_and_connector():
    model = tiny_model("gist", encoder=ENCODERS["lora"], connector="linear")
    _, trainable, frozen = nnx.split(model, Trainable, ...)
    assert set(trainable) == {"lora", "compressor"}
    assert set(trainable.compressor) == {"encoder", "architecture", "connector"}
    assert set(frozen) == {"base", "compressor"}
    assert [x.shape for x in jax.tree.leaves(frozen.compressor)] == [()]


@pytest.mark.slow
def test_answer_positions_start_at_the_last_question_token():
    np.testing.assert_array_equal(
        answer_positions(jnp.array([2, 4]), 3, size=6), [[1, 2, 3], [3, 4, 5]]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slot_form", "scan"), [("soft_tokens", False), ("key_values", False), ("soft_tokens", True)]
)
def test_wanted_states_are_those_of_all(slot_form, scan, rng):
    """The last layer runs on them alone; values and gradients stay what they are."""
    model = tiny_model("gist", base=tiny_base(scan=scan), slot_form=slot_form)
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    wanted = jnp.stack([tokens_length - 1, tokens_length - 2], axis=1)
    memory = Compiled(model).in_sequence(PREFIX, ids, length)

    def few(x):
        return model.states(dataclasses.replace(memory, x_BxXxD=x), tokens, tokens_length, wanted)

    def all_of_them(x):
        h = model.states(dataclasses.replace(memory, x_BxXxD=x), tokens, tokens_length)
        return jnp.take_along_axis(h, wanted[:, :, None], axis=1)

    x = memory.x_BxXxD
    chex.assert_trees_all_close(*(jax.jit(f)(x) for f in (few, all_of_them)), rtol=1e-4, atol=1e-5)
    grads = [
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))(x) for f in (few, all_of_them)
    ]
    chex.assert_trees_all_close(*grads, rtol=1e-3, atol=1e-5)

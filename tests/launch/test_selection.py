"""Selection of key/value entries: budgets, the straight-through gate, what is thrown away."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.errors import ConfigError, DataError
from launch.selection import analyse, budget, prepare
from launch.selection.attention import Part, attend
from launch.selection.batches import Split, group_questions, question_batch, training_batch
from launch.selection.leaves import load, new_leaves, save
from launch.selection.model import encoder_and_decoder, random_base
from launch.selection.options import RATIOS, Options
from launch.selection.passes import Entries, Frozen, compress, read_tails, real_tokens
from launch.selection.run import run
from launch.selection.train import teacher_hidden

TINY = {"tiny": True, "rank": 2, "batch": 2, "eval_batch": 2, "cudnn": False}
LEARNED = {"score": "mlp", "temperature": 1.0, "adapters": 2, "bidirectional": True}


def encode(texts):
    return [[ord(c) % 128 + 300 for c in text[-30:]] for text in texts]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = prepare.Texts()
    rng = np.random.default_rng(0)
    golds = {}
    for article in range(6):
        texts.add(article, "".join(rng.choice(list("abcdefgh "), 24 + article)))
        for _ in range(3):
            golds[f"q{len(golds)}"] = ["ab"]
            texts.ask(f"q{len(golds) - 1}", "who?", ["ab"])
    longer = replace(texts, contexts=[f"{context}." for context in texts.contexts])
    for name, some in {"train": texts, "train_filled": longer, "validation": texts}.items():
        held = (np.arange(6) >= 4) & name.startswith("train")
        prepare.write_split(some, held, name, encode, folder)
    prepare.write_prompt(lambda texts: [[5, 6, 7], [8, 9], [2]], folder)
    (folder / "golds.json").write_text(json.dumps(golds))
    (folder / "vocab.json").write_text(json.dumps(["x"] * 49152))
    return folder


@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_nth_largest_is_exact(rng, n):
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    x[0, 0] = -np.inf
    found = budget.nth_largest(jnp.array(x), jnp.array([n]), (0, 1, 2))
    assert float(found.squeeze()) == np.sort(x.ravel())[::-1][n - 1]


def test_slots_are_so_many_for_any_context_or_all_it_has():
    found = budget.entries_a_head(jnp.array([33, 100]), (32, 64))
    np.testing.assert_array_equal(found, [[32, 33, 9, 5, 3, 2], [32, 64, 25, 13, 7, 4]])


@pytest.mark.slow
def test_slots_are_exact(rng):
    context = np.arange(8)[None] < np.array([[8], [5]])
    score = jnp.array(rng.normal(size=(3, 2, 2, 8)), jnp.float32)
    cut = budget.cut_by_score(score, context, jnp.array([8, 5]), slots=(3, 6))
    kept = np.asarray(cut.kept_LxBxKxR).sum((0, 2)) / 6
    np.testing.assert_array_equal(kept, [[3, 6, 2, 1, 1, 1], [3, 5, 2, 1, 1, 1]])
    assert np.isneginf(cut.threshold_LxBxKxR[:, 1, :, 1]).all()  # nothing is decided there


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": "0,32"},
        {"slots": "-1"},
        {"slots": "32,"},
        {"slots": "many"},
        {"slots": "1,2,3,4,5,6,7"},
        {"seconds": 1.0},
        {"full": True},
        {"calibrate": True, "profile": "p.npz"},
        {"spread": "profile", "profile": "p.npz"},
        {"also": "mlp@profile,mlp@global", "profile": "p.npz"},
        {"time": True},
    ],
)
def test_slots_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="--slots"):
        Options(**{"slots": "32,64", **wrong})


def test_answers_are_filed_under_ratios_or_slots():
    names = Options(slots="32,64").budget_names
    assert names == ("32 slots", "64 slots", "4", "8", "16", "32")
    assert [names[i] for i in Options(slots="32,64").ratio_ids] == ["32 slots", "64 slots"]
    assert Options().budget_names == ("1", "2", "4", "8", "16", "32")


def test_filled_contexts_hold_the_paragraph_that_is_asked_about():
    texts = prepare.Texts()
    for i in range(6):
        texts.add(i // 3, f"paragraph {i} tells of {i}")
        texts.ask(f"q{i}", "of what?", [str(i)])
    filled = prepare.filled(texts, lambda some: [text.split() for text in some], budget=16)
    assert (filled.ids, filled.context_of) == (texts.ids, texts.context_of)
    for own, context in zip(texts.contexts, filled.contexts, strict=True):
        paragraphs = context.split("\n\n")
        assert own in paragraphs and set(paragraphs) < set(texts.contexts)
        assert len(set(paragraphs)) == len(paragraphs)
        assert own in " ".join(context.split()[:16]) and len(context.split()) >= 15


def test_what_is_held_out_is_held_out_of_filled_contexts_too(data):
    for plain, filled in [("train", "train_filled"), ("held", "held_filled")]:
        a, b = Split(data, plain), Split(data, filled)
        np.testing.assert_array_equal(a.questions, b.questions)
        assert len(a.questions)
        assert [len(x) for x in b.contexts] == [len(x) + 1 for x in a.contexts]


def test_whole_articles_are_held_out_until_they_have_enough_questions(monkeypatch):
    texts = prepare.Texts()
    for i in range(12):
        texts.add(i // 2, f"paragraph {i}")
        texts.ask(f"q{i}", "what?", ["paragraph"])
    monkeypatch.setattr(prepare, "HELD_OUT", 3)
    held = prepare.held_out(texts).reshape(6, 2)
    assert held.sum() == 4 and (held[:, 0] == held[:, 1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_budgets_are_exact(rng, fixed):
    L, B, K, T = 3, 2, 2, 40
    length = np.array([33, 17])
    context = np.arange(T)[None] < length[:, None]
    score = jnp.array(rng.normal(size=(L, B, K, T)), jnp.float32)
    profile = rng.uniform(0.01, 1, (L, K, 6)).astype(np.float32)
    profile[0, 0] = 0.9  # keeps all it has at low ratios; the others share the rest
    profile[..., 0] = 1
    cut = budget.cut_by_score(score, context, length, jnp.array(profile) if fixed else None)
    wanted = np.ceil(length[:, None] / np.array(RATIOS)) * L * K
    kept = np.asarray(cut.kept_LxBxKxR)
    if fixed:  # where a KV head keeps all it has, its surplus is not given to others
        assert (kept.sum((0, 2)) <= wanted).all()
        np.testing.assert_array_equal(kept.sum((0, 2))[:, 2:], wanted[:, 2:])
    else:
        np.testing.assert_array_equal(kept.sum((0, 2)), wanted)


@pytest.mark.slow
def test_gate_is_hard_forward_and_reaches_what_was_thrown_away(rng):
    q, k, v = (
        jnp.array(rng.normal(size=s), jnp.float32) for s in [(1, 2, 1, 2, 4)] + [(1, 6, 1, 4)] * 2
    )
    score = jnp.array(rng.normal(size=(1, 1, 1, 6)), jnp.float32)
    threshold = jnp.sort(score)[..., 3:4]
    mask = score >= threshold
    context = jnp.ones((1, 1, 1, 6), bool)

    def read(score):
        gate = budget.straight_through(mask, score, threshold, context, 1.0)
        return attend(q, Part(k, v, mask, gate=gate))

    hard = attend(q, Part(k, v, mask))
    np.testing.assert_allclose(read(score), hard, rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda s: (read(s) ** 2).sum())(score)
    assert (np.abs(gradient[~mask]) > 1e-6).all() and (np.abs(gradient[mask]) > 1e-6).all()


@pytest.mark.slow
def test_entries_thrown_away_cannot_change_an_answer(data, rng):
    options = Options(data=str(data), ratios="8", **TINY, **LEARNED)
    frozen = Frozen(random_base(data), None, None)
    leaves = new_leaves(frozen.base, options)
    split = Split(data, "validation")
    groups = group_questions(split, options.buckets, None)[0][:2]
    batch, _ = question_batch(split, groups, 2, 0, options)
    layers = encoder_and_decoder(frozen.base, leaves)
    found = compress(frozen, leaves, layers, batch, options)
    at = found.cut.threshold_LxBxKxR[..., RATIOS.index(8), None]
    context = real_tokens(frozen.base, batch).context_BxT[None, :, None]
    kept = (context & (found.cut.score_LxBxKxT >= at)).swapaxes(2, 3)[..., None]
    gone = (context & (found.cut.score_LxBxKxT < at)).swapaxes(2, 3)[..., None]
    noise = jnp.array(rng.normal(size=found.entries.keys.shape) * 5, jnp.float32)
    real = batch.question_BxM >= 0

    def hidden(over):
        noisy = Entries(*(jnp.where(over, noise, x) for x in found.entries))
        compressed = found._replace(entries=noisy)
        return read_tails(frozen.base, layers[1], None, compressed, batch, options)[0][real]

    plain = hidden(jnp.zeros_like(gone))
    np.testing.assert_array_equal(hidden(gone), plain)
    assert np.abs(hidden(kept) - plain).max() > 1e-3


@pytest.mark.slow
def test_teacher_reads_as_it_was_trained(data):
    """The full-context model is causal, also when it teaches a student that is not."""
    options = Options(data=str(data), kl=1.0, teacher="-", **TINY, **LEARNED)
    base = random_base(data)
    adapter = jax.tree.map(lambda x: x + 0.02, new_leaves(base, options)["enc"])
    split = Split(data, "validation")
    groups = group_questions(split, options.buckets, np.random.default_rng(0))[0][:2]
    batch = training_batch(split, groups, 2, 0, options, np.random.default_rng(0))

    def taught(bidirectional):
        way = replace(options, bidirectional=bidirectional)
        return teacher_hidden(Frozen(base, adapter, None), batch, way)

    np.testing.assert_array_equal(taught(True), taught(False))


def test_int8_leaves_are_close(data, tmp_path):
    leaves = new_leaves(random_base(data), Options(**TINY, **LEARNED))
    save(leaves, tmp_path / "x.npz", bits=8)
    loaded = load(tmp_path / "x.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(leaves)
    for a, b in zip(jax.tree.leaves(leaves), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=float(jnp.abs(a).max()) / 200 + 1e-6)


@pytest.mark.slow
def test_a_run_writes_what_it_promises(data, tmp_path):
    out = {"data": str(data), "out": str(tmp_path), "seconds": 600.0}
    run(Options(name="full", full=True, epochs=2.0, **out, **TINY))
    teacher = str(tmp_path / "full.npz")
    profile = {"profile": str(tmp_path / "p.npz"), "calibrate": True, "also": "mlp@profile"}
    more = {"kl": 0.5, "teacher": teacher, "init": teacher, "epochs": 4.0, "evaluate": "held:4"}
    found = run(Options(name="cut", **more, **profile, **out, **TINY, **LEARNED))
    assert np.isfinite([h["loss"] for h in found["train"]["history"]]).all()
    assert set(found["held:4|mlp@profile"]["table"]) == {str(r) for r in RATIOS}
    parts = np.load(tmp_path / "p.npz")["profile"]
    assert (np.diff(parts, axis=-1) <= 0).all()
    cut = {"init": str(tmp_path / "cut.npz"), "evaluate": "held:4", "slots": "2,50"}
    out |= {"seconds": 0.0}
    of_slots = run(Options(name="slots", **cut, **out, **TINY, **LEARNED))["held:4|mlp@global"]
    assert set(of_slots["table"]) == {"2 slots", "50 slots"}
    split = Split(data, "held", 4)
    tokens = np.mean([len(split.contexts[i]) for i in set(split.context_of[split.questions])])
    shares = np.mean(of_slots["share"], (0, 1))
    assert shares[1] == 1
    # equal tokens tie in the first layer of this scorer, and ties are all kept
    assert 2 / tokens <= shares[0] < 2.2 / tokens
    assert "mlp/w1" in " ".join(np.load(tmp_path / "cut.q8.npz").files)
    assert json.loads((tmp_path / "cut.held4.mlp-global.json").read_text()).keys() == {
        str(r) for r in RATIOS
    }


def test_answers_are_compared_at_the_same_budget(data, tmp_path):
    """Percents and differences of two questions on one paragraph, and of two on another."""
    ids = ["q0", "q1", "q3", "q4"]

    def file(name, right):
        answers = {at: {i: "ab" if i in some else "x" for i in ids} for at, some in right.items()}
        (tmp_path / name).write_text(json.dumps(answers))
        return tmp_path / name

    analysis = analyse.Analysis(data)
    cut = file("cut", {"32": ids[:1], "32 slots": ids[:3]})
    full, other = file("full", {"1": ids[:2]}), file("other", {"32 slots": ids})
    row = analysis.row("32 slots", cut, full, other)
    assert (row["f1"], row["percent"], row["n"]) == (0.75, 150, 4)
    assert (row["minus_full"], row["minus_against"]) == (0.25, -0.25)
    assert row["minus_full_interval"] == [0, 0.5]
    with pytest.raises(DataError, match="no answers at 32, but at 32 slots"):
        analysis.row("32", cut, full, other)
    assert "minus_against" not in analysis.row("32", cut, full, None)

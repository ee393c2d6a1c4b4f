"""A profile: what each KV head keeps, counted, written, and used in place of scores."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

import gistjax
from gistjax import profile as command
from gistjax.compress.kept import entries_of
from gistjax.compress.profile import read_profile, write_profile
from gistjax.compress.spread import PROFILE_RATIOS, keep
from gistjax.config import CompressionConfig, EvaluationConfig, SelectConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.errors import CheckpointError, ConfigError, StorageError
from gistjax.evaluate import evaluate_run
from gistjax.experiment import base
from gistjax.experiment.base import load_trained
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from tests.helpers.runs import ASKED, UNSCORED, write_run

FULL = CompressionConfig(
    architecture="none",
    loss_weights={"teacher_forcing": 1.0},
    model=ASKED.model,
    lora=ASKED.lora,
    data=ASKED.data,
    evaluation=dataclasses.replace(ASKED.evaluation, batch_size=1),
)
KEYDIFF = SelectConfig("keydiff")
N = 3


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A finished run that reads its context whole."""
    run = write_run(tmp_path_factory.mktemp("profile") / "full", FULL)
    (run / "metrics.json").write_text("{}")
    return run


@pytest.fixture(scope="module")
def profile(full):
    """A profile of it, and what the command says of that."""
    file = full.parent / "profile.safetensors"
    config = command.defaults(RunDir(full)).replace(select=KEYDIFF)
    return file, command.profile_run(full, config, file, N)


TEXT = "The mill was built in 1783 by Anneke Dursel, and burned down twice."


def first_contexts(prompt):
    """The tokens of the first distinct contexts that training draws and that fit."""
    data = dataclasses.replace(FULL.data, validation_examples=0)
    rows, *_ = encode_splits(load_dataset(data, FULL.seed), prompt, data, FULL.seed)
    return list(dict.fromkeys(tuple(row.context_ids.tolist()) for row in rows))[:N]


@pytest.mark.slow
def test_parts_are_those_that_the_budget_of_all_heads_keeps(full, profile):
    """Each context alone, unpadded, kept anew at each ratio."""
    file, said = profile
    config = FULL.replace(architecture="select", select=KEYDIFF)
    pretrained, parts = load_trained(RunDir(full), config)
    model, prompt = nnx.merge(*parts), pretrained.prompt
    read = jax.jit(
        lambda prefix, context: model.selector.read(model.base, model.lora, prefix, context)
    )
    kept_RxLxK, tokens = 0, 0
    for context_ids in first_contexts(prompt):
        ids = jnp.asarray(context_ids)[None]
        n = ids.shape[1]
        context = ids, jnp.array([n])
        prefix = jnp.asarray(prompt.prefix_ids)
        score = read(prefix, context)[1]
        heads = score.shape[0] * score.shape[2]
        totals = [jnp.array([heads * -(-n // int(ratio))]) for ratio in PROFILE_RATIOS]
        kept = [keep(score, context[1], total, "all").kept.sum((1, 3)) for total in totals]
        kept_RxLxK, tokens = kept_RxLxK + np.stack(kept), tokens + n
    found, about = load_tensors(file)
    wanted = np.moveaxis(kept_RxLxK, 0, -1) / tokens
    np.testing.assert_allclose(found["parts"], np.minimum.accumulate(wanted, -1), rtol=1e-6)
    assert (wanted[..., 0] == 1).all() and len(np.unique(wanted[..., 3])) > 1
    del about["sha256"]
    origin = {"format": "gistjax-profile", "base_sha256": pretrained.base_sha256}
    assert about == {**origin, "scorer": "keydiff", "contexts": f"{N}", "tokens": f"{tokens}"}
    own = {"profile": str(file), "base_model": "tiny-random"}
    assert said == {**own, "scorer": "keydiff", "contexts": N, "tokens": tokens}


def with_profile(file, **changes):
    select = dataclasses.replace(KEYDIFF, spread="profile", profile=str(file))
    return FULL.replace(architecture="select", ratio=8.0, select=select, **changes)


@pytest.mark.slow
def test_a_full_context_is_evaluated_and_asked_with_it(full, profile, tmp_path):
    config = with_profile(profile[0])
    metrics = evaluate_run(full, config, kept_entries=tmp_path / "kept.json")
    assert metrics["architecture"] == "select" and metrics["n_examples"] == 4
    parts = np.array(json.loads((tmp_path / "kept.json").read_text())["parts"])
    at_8 = read_profile(str(profile[0]))[..., PROFILE_RATIOS.index(8)]
    np.testing.assert_allclose(parts, at_8, atol=0.01)
    document = gistjax.load(full, config).compress(TEXT)
    assert document.ask("Who?").text is not None
    other = with_profile(tmp_path / "none")
    with pytest.raises(CheckpointError, match="none"):
        evaluate_run(full, other)


@pytest.mark.parametrize("wrong", ["missing", "no profile", "other base", "other sizes"])
def test_a_profile_that_does_not_fit_is_refused_before_the_base_is_loaded(
    wrong, full, tmp_path, monkeypatch
):
    file, shape = tmp_path / "p", (2, 2, len(PROFILE_RATIOS))
    if wrong == "no profile":
        save_tensors(file, {"parts": np.ones(shape, np.float32)}, {})
    elif wrong != "missing":
        shape = (3, *shape[1:]) if wrong == "other sizes" else shape
        write_profile(file, np.ones(shape), {"base_sha256": wrong})

    def load(*_):
        raise AssertionError("the base is loaded")

    monkeypatch.setattr(base, "load_pretrained", load)
    for use in (evaluate_run, gistjax.load):
        with pytest.raises((CheckpointError, ConfigError), match=f"{file}"):
            use(full, with_profile(file))


def trains(**select):
    select = SelectConfig("knorm", **select)
    return UNSCORED.replace(
        architecture="select",
        ratio=8.0,
        max_steps=2,
        loss_weights={"teacher_forcing": 1.0},
        select=select,
    )


@pytest.mark.slow
def test_a_trained_run_has_its_profile_and_goes_on_with_no_other(profile, tmp_path):
    file = tmp_path / "profile.safetensors"
    file.write_bytes(profile[0].read_bytes())
    config, run = trains(spread="profile", profile=str(file)), tmp_path / "run"
    gistjax.run_single_ablation(config, run)
    parts = load_tensors(run / "compressor.safetensors")[0]["selector/profile"]
    np.testing.assert_array_equal(parts, read_profile(str(file)))
    other = trains(spread="profile", profile=str(file), bytes=0).replace(init_from=str(run))
    about = load_tensors(file)[1]
    write_profile(file, parts * 0.5, about)
    before = (run / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="another profile.*`select.profile`"):
        gistjax.run_single_ablation(config, run)
    assert (run / "config.json").read_bytes() == before
    gistjax.run_single_ablation(other, tmp_path / "next")  # a stage of its own names its own
    next_parts = load_tensors(tmp_path / "next" / "compressor.safetensors")[0]["selector/profile"]
    np.testing.assert_array_equal(next_parts, read_profile(str(file)))
    file.unlink()
    asked = config.replace(
        data=ASKED.data, evaluation=EvaluationConfig(1, 4, bootstrap_samples=5, baseline=False)
    )
    assert evaluate_run(run, asked)["n_examples"] == 4
    engine = gistjax.load(run)
    assert engine.compress(TEXT).ask("Who?").text is not None
    whole = engine.full_context().compress(TEXT)
    assert whole.slots == whole.tokens
    with pytest.raises(CheckpointError, match="profile.safetensors"):
        gistjax.run_single_ablation(config, run)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "profile"])
def test_a_learned_run_is_asked_with_another_spread(trained, tmp_path):
    """With its own scorer: a spread is no weight, and a profile comes from its file."""
    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    halves = np.broadcast_to([1.0, *[0.5] * 6], (2, 2, len(PROFILE_RATIOS)))
    uneven = halves * np.array([[[0.5], [1.0]], [[0.75], [0.25]]])
    write_profile(own, halves, {})
    write_profile(other, uneven, {})
    profile = str(own) if trained == "profile" else ""
    select = SelectConfig("pooling", trained, profile)
    config = trains().replace(select=select, ratio=4.0, ratios=(2.0, 4.0), data=ASKED.data)
    run = write_run(tmp_path / "run", config)
    arrays, metadata = load_tensors(run / "compressor.safetensors")
    arrays["selector/learned/shift"] = arrays["selector/learned/shift"] + 1.0
    save_tensors(run / "compressor.safetensors", arrays, metadata)

    def counts(spread, profile=""):
        asked = dataclasses.replace(select, spread=spread, profile=str(profile))
        engine = gistjax.load(run, config.replace(select=asked, ratio=2.0))
        learned = engine.model().selector.learned["shift"][...]
        np.testing.assert_array_equal(learned, arrays["selector/learned/shift"])
        document = engine.compress(TEXT)
        return entries_of(document.context).count_LxK, -(-document.tokens // 2)

    even_LxK, n = counts("head")
    assert (even_LxK == n).all()
    free_LxK, n = counts("all")
    assert free_LxK.sum() == 4 * n and len(np.unique(free_LxK)) > 1
    uneven_LxK, n = counts("profile", other)
    assert uneven_LxK.sum() <= 4 * n
    assert np.argsort(uneven_LxK.ravel()).tolist() == [3, 0, 2, 1]
    with pytest.raises(CheckpointError, match="none"):
        counts("profile", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"select.scorer: .* trained with another value"):
        gistjax.load(run, config.replace(select=dataclasses.replace(select, scorer="conv")))


def wrong_parts(parts, change):
    return {
        "shape": parts[:, :, :-1],
        "values": parts * 2,
        "not a number": parts * np.nan,
        "type": parts.astype(np.float16),
    }[change]


@pytest.mark.parametrize("change", ["shape", "values", "not a number", "type", "format", "name"])
def test_what_is_no_profile_is_refused(change, tmp_path):
    parts, name, about = np.ones((2, 2, len(PROFILE_RATIOS)), np.float32), "parts", {}
    if change == "format":
        about = {"format": "gistjax"}
    elif change == "name":
        name = "part"
    else:
        parts = wrong_parts(parts, change)
    file = tmp_path / "p"
    save_tensors(file, {name: parts}, {"format": "gistjax-profile", **about})
    with pytest.raises(ConfigError, match="holds no profile.*gistjax.profile"):
        read_profile(str(file))


@pytest.mark.slow
def test_a_profile_of_another_base_is_refused(tmp_path, full):
    file = tmp_path / "p"
    write_profile(file, np.ones((2, 2, len(PROFILE_RATIOS))), {"base_sha256": "a" * 64})
    read_profile(str(file), base_sha256="a" * 64)
    with pytest.raises(ConfigError, match="another base.*SHA-256 aaaaaaaaaaaa…, this is bbbbbb"):
        read_profile(str(file), base_sha256="b" * 64)
    with pytest.raises(ConfigError, match="another base"):
        evaluate_run(full, with_profile(file))
    write_profile(file, np.ones((3, 5, len(PROFILE_RATIOS))), {})
    config = trains(spread="profile", profile=str(file))
    with pytest.raises(ConfigError, match="3 layers with 5 KV heads, and this base has 2 with 2"):
        gistjax.run_single_ablation(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="name their file with --config.select.profile"):
        gistjax.run_single_ablation(trains(spread="profile"), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({}, [], "--output is missing"),
        ({}, ["--output=DIR/no/p"], "there is no folder"),
        ({"architecture": "gist"}, ["--output=DIR/p"], "'gist' keeps no entries"),
        ({"architecture": "closed_book"}, ["--output=DIR/p"], "'closed_book' keeps no entries"),
        ({}, ["--output=DIR/p", "--config.select.scorer=question_aware"], "a profile is for any"),
        ({}, ["--output=DIR/p", "--config.data.train_examples=0"], "train_examples above 0"),
        ({}, ["--output=DIR/p", "--config.lora.rank=3"], "lora.rank: this model was trained"),
        ({}, ["--output=DIR/p", "--contexts=0"], "contexts"),
        ({"architecture": "select"}, ["--output=DIR/p", "--config.select.scorer=knorm"], "select"),
    ],
)
def test_what_has_no_profile_is_refused(changes, words, says, tmp_path, monkeypatch):
    RunDir(tmp_path).config_file.write_text(
        json.dumps({"config": FULL.replace(**changes).to_json()})
    )
    values = flags.FlagValues()
    command.define_flags(values)
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    monkeypatch.setattr(sys, "argv", ["profile", f"--run={tmp_path}", *words])
    with pytest.raises((ConfigError, StorageError), match=says):
        config = cli.parse(sys.argv, lambda argv: command.defaults(RunDir(tmp_path)), values)
        command.main(config, values)
    assert not (tmp_path / "p").exists()

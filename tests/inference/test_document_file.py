"""Saved documents: what is in the file, and which files are refused."""

import dataclasses

import numpy as np
import pytest
from safetensors import safe_open

import gistjax
from gistjax.compress.kept import entries_of
from gistjax.config import ModelConfig, SelectConfig
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.experiment.base import find_prompt
from gistjax.inference.document_file import is_document, power_of_two
from gistjax.runtime.tensors import load_tensors, save_tensors
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import SELECTED, write_run

KEPT = CONFIG.replace(slot_form="key_values", slot_positions="packed")
STACKED = KEPT.replace(model=ModelConfig("tiny-random", dtype="float32", scan_layers=True))
FORMS = {"soft tokens": CONFIG, "keys and values": KEPT, "stacked layers": STACKED}


@pytest.fixture(scope="module", params=FORMS)
def formed(request, tmp_path_factory):
    """A configuration of each form, its run, and its engine, whose programs are compiled once."""
    run = write_run(tmp_path_factory.mktemp("formed") / "run", FORMS[request.param])
    return FORMS[request.param], run, gistjax.load(run)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "document.safetensors"


def rewrite(file, arrays=None, **metadata):
    """The file with other arrays or metadata, and a checksum that fits."""
    theirs, about = load_tensors(file)
    del about["sha256"]
    save_tensors(file, theirs if arrays is None else arrays, {**about, **metadata})


@pytest.mark.slow
def test_a_saved_document_answers_as_before(formed, examples, file):
    _, run, engine = formed
    document = engine.compress(examples[0].context)
    assert document.save(file) == file.stat().st_size
    opened = gistjax.load(run).open(file)
    assert (opened.tokens, opened.slots, opened.pieces) == (document.tokens, document.slots, 1)
    assert opened.seconds == 0 and opened.nbytes == document.nbytes
    for example in examples:
        assert opened.ask(example.question).text == document.ask(example.question).text


@pytest.mark.slow
@pytest.mark.parametrize("spread", ["all", pytest.param("layer", marks=pytest.mark.long)])
def test_saved_entries_answer_as_before(spread, examples, file, tmp_path):
    """And hold what the budget says, a count a KV head beside it."""
    config = SELECTED.replace(select=SelectConfig("kvzip", spread))
    engine = gistjax.load(write_run(tmp_path / "run", config))
    base = engine.pretrained.source.config
    for ratio in (1.0, 4.0, 9.0):
        document = engine.compress(examples[0].context, ratio)
        assert document.save(file) == file.stat().st_size
        opened = gistjax.load(tmp_path / "run").open(file)
        assert (opened.tokens, opened.slots) == (document.tokens, document.slots)
        arrays, about = load_tensors(file)
        n = base.n_layers * base.n_kv_heads * -(-document.tokens // ratio)
        assert arrays["k"].shape == arrays["v"].shape == (n, base.head_dim)
        assert arrays["count"].sum() == n and about["version"] == "3"
        for example in examples:
            assert opened.ask(example.question).text == document.ask(example.question).text
    document.ask("why " * 40)
    states = document._states._values.values()
    assert len(states) == 2 and len({id(state.cache.kept.k_TxH) for state in states}) == 1
    moved = arrays["count"].copy()
    moved[0, 0], moved[-1, -1] = -1, moved[-1, -1] + moved[0, 0] + 1
    wrong = ({"count": arrays["count"] + 1}, {"count": moved}, {"count": arrays["count"] * 1.0})
    for change, tokens in [*((change, document.tokens) for change in wrong), ({}, 0)]:
        rewrite(file, {**arrays, **change}, tokens=str(tokens))
        with pytest.raises(CheckpointError, match="no whole document .*compress the text again"):
            engine.open(file)


@pytest.mark.slow
def test_long_texts_of_similar_lengths_share_their_programs(tmp_path):
    """A context of entries is read at once, also where it is longer than those of training."""
    data = dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,))
    config = SELECTED.replace(select=SelectConfig("knorm"), data=data)
    engine = gistjax.load(write_run(tmp_path / "run", config))
    long, longer = (engine.compress("a word " * n) for n in (15, 17))
    assert 64 < long.tokens < longer.tokens < 128 and long.pieces == longer.pieces == 1
    assert len(engine.programs._compiled) == 1


@pytest.mark.slow
def test_entries_of_a_text_in_pieces_are_kept_and_asked(examples, file, tmp_path):
    encoder = dataclasses.replace(SELECTED.encoder, bidirectional=True)
    data = dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,))
    config = SELECTED.replace(select=SelectConfig("knorm"), encoder=encoder, data=data)
    engine = gistjax.load(write_run(tmp_path / "run", config))
    text = " ".join(dict.fromkeys(example.context for example in examples))[:300]
    document = engine.compress(text, 4.0)
    document.save(file)
    opened = engine.open(file)
    assert opened.pieces == document.pieces >= 3 and opened.tokens == document.tokens > 128
    question = examples[0].question
    assert opened.ask(question).written == document.ask(question).written
    for rounded in (opened, engine.compress(text, 4.0, bits=4)):
        rounded.save(tmp_path / f"{rounded is opened}", 4)
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()
    several = gistjax.load(write_run(tmp_path / "any", config.replace(ratio=0.0)))
    several.compress(text[:60])
    with pytest.raises(DataError, match="goes in pieces of up to 64, .*: give a ratio"):
        several.compress(text)


def test_a_text_that_is_read_twice_has_half_the_positions(tmp_path):
    config = SELECTED.replace(select=SelectConfig("knorm"))
    engine = gistjax.load(write_run(tmp_path / "run", config))
    assert 1500 < engine.max_tokens < 2048
    engine.config = config.replace(select=SelectConfig("kvzip"))
    assert 900 < engine.max_tokens < 1024 and engine.positions > 1900
    data = dataclasses.replace(config.data, context_tokens=1100, context_buckets=(1100,))
    find_prompt(config.replace(data=data))
    with pytest.raises(ConfigError, match="'kvzip' reads a context twice"):
        find_prompt(engine.config.replace(data=data))


@pytest.mark.slow
def test_slots_and_entries_are_told_apart(engine, examples, file, tmp_path):
    selected = gistjax.load(write_run(tmp_path / "run", SELECTED))
    selected.compress(examples[0].context).save(file)
    arrays, _ = load_tensors(file)
    rewrite(file, compressor=engine.compressor)
    with pytest.raises(CheckpointError, match="keeps entries of the cache"):
        engine.open(file)


@pytest.mark.slow
def test_a_text_in_pieces_is_kept_too(engine, examples, file):
    text = " ".join(dict.fromkeys(example.context for example in examples))
    document = engine.compress(text[:1500])
    document.save(file)
    opened = engine.open(file)
    assert opened.pieces == document.pieces >= 3
    question = examples[0].question
    assert opened.ask(question).text == document.ask(question).text


@pytest.mark.slow
def test_only_slots_in_use_are_kept_and_what_made_them(formed, file):
    config, _, engine = formed
    document = engine.compress("Ada wrote the first program. " * 3)
    document.save(file)
    base = engine.pretrained.source.config
    slots, layers = document.slots, (base.n_layers, base.n_kv_heads)
    assert slots < document.context.size
    with safe_open(file, "numpy") as content:
        shapes = {name: content.get_tensor(name).shape for name in content.keys()}  # noqa: SIM118
        about = content.metadata()
    if config.slot_form == "key_values":
        kv = (*layers, slots, base.head_dim)
        assert shapes == {"k": kv, "v": kv, "position": (slots,)}
    else:
        assert shapes == {"x": (slots, base.d_model), "position": (slots,)}
    assert document.nbytes == sum(4 * np.prod(shape) for shape in shapes.values())
    assert (about["format"], about["version"]) == ("gistjax-document", "2")
    assert (about["gistjax"], about["base"]) == (gistjax.__version__, "tiny-random")
    assert about["compressor"] == engine.compressor and len(engine.compressor) == 64
    assert about["base_sha256"] == engine.pretrained.base_sha256


@pytest.mark.slow
def test_the_file_of_gistjax_0_1_is_opened(formed, examples, file):
    """Which kept the row with its padding, under the names of the fields."""
    *_, engine = formed
    document = engine.compress(examples[0].context)
    context = document.context
    arrays = {
        name: getattr(context, name)
        for name in ("x_BxXxD", "valid_BxX", "cut_BxX", "position_BxX", "length_B", "slots_B")
    }
    if context.kv is not None:
        arrays |= {name: np.stack(getattr(context.kv, name)) for name in ("k", "v")}
    about = {"compressor": engine.compressor, "tokens": str(document.tokens), "pieces": "1"}
    save_tensors(file, arrays, {"format": "gistjax-memory", **about})
    assert is_document(file)
    opened = engine.open(file)
    assert (opened.tokens, opened.slots) == (document.tokens, document.slots)
    for example in examples:
        assert opened.ask(example.question).text == document.ask(example.question).text
    save_tensors(file, arrays, {"format": "gistjax-memory", **about, "compressor": "0" * 64})
    with pytest.raises(CheckpointError, match="another compressor .*compress the text again"):
        engine.open(file)


def test_a_document_of_another_compressor_or_base_is_refused(engine, examples, file, tmp_path):
    engine.compress(examples[0].context).save(file)
    other = write_run(tmp_path / "other", CONFIG.replace(seed=1))
    with pytest.raises(
        CheckpointError, match=r"another compressor \(SHA-256 .*compress the text again"
    ):
        gistjax.load(other).open(file)
    rewrite(file, base_sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"another base \(SHA-256 000000000000…"):
        engine.open(file)
    rewrite(file, base_sha256="", compressor="")
    with pytest.raises(CheckpointError, match="does not say which base made it"):
        engine.full_context().open(file)


def test_a_later_version_is_refused_by_name_and_version(engine, examples, file):
    engine.compress(examples[0].context).save(file)
    rewrite(file, version="6", gistjax="0.9.0")
    with pytest.raises(
        CheckpointError,
        match=rf"version 6, written by gistjax 0.9.0; this is {gistjax.__version__}, .*update",
    ):
        engine.open(file)


def test_what_is_no_document_is_refused(engine, rundir, tmp_path):
    with pytest.raises(CheckpointError, match="holds no document"):
        engine.open(rundir / "compressor.safetensors")
    with pytest.raises(CheckpointError, match="cannot read .*missing: No such file"):
        engine.open(tmp_path / "missing")
    (tmp_path / "text").write_text("no safetensors at all")
    with pytest.raises(CheckpointError, match="text has no checksum"):
        engine.open(tmp_path / "text")
    for name in (rundir / "compressor.safetensors", tmp_path / "missing", tmp_path / "text"):
        assert not is_document(name)


@pytest.mark.slow
def test_a_document_without_all_of_its_arrays_is_refused(formed, examples, file):
    *_, engine = formed
    engine.compress(examples[0].context).save(file)
    whole, content = load_tensors(file)[0], file.read_bytes()
    cases = [({n: a for n, a in whole.items() if n != name}, {}) for name in whole]
    cases += [({**whole, name: array[..., :-1]}, {}) for name, array in whole.items()]
    for arrays, metadata in [*cases, (whole, {"tokens": "many"}), (whole, {"positions": ""})]:
        rewrite(file, arrays, **metadata)
        with pytest.raises(CheckpointError, match="no whole document"):
            engine.open(file)
        file.write_bytes(content)
    assert engine.open(file).slots


def test_sizes_are_powers_of_two():
    assert [power_of_two(n) for n in (0, 1, 64, 65, 128, 129)] == [64, 64, 64, 128, 128, 256]


@pytest.mark.slow
def test_a_refined_document_says_so_and_is_opened(examples, tmp_path):
    engine = gistjax.load(
        write_run(tmp_path / "run", SELECTED.replace(select=SelectConfig("knorm")))
    )
    refined, plain = (engine.compress(examples[0].context, refine=n) for n in (2, None))
    assert refined.refined == 2 and "refined in 2 steps" in repr(refined)
    assert plain.refined == 0 and "refined" not in repr(plain)
    ours, theirs = entries_of(refined.context), entries_of(plain.context)
    np.testing.assert_array_equal(ours.count_LxK, theirs.count_LxK)
    assert not np.array_equal(ours.v_TxH, theirs.v_TxH)
    refined.save(tmp_path / "document")
    opened = engine.open(tmp_path / "document")
    assert opened.refined == 2
    np.testing.assert_array_equal(entries_of(opened.context).v_TxH, ours.v_TxH)
    coded = engine.compress(examples[0].context, refine=2, bits=4)
    opened.save(tmp_path / "coded", 4)
    coded.save(tmp_path / "document")
    assert (tmp_path / "document").read_bytes() == (tmp_path / "coded").read_bytes()
    with pytest.raises(ConfigError, match="refine=True"):
        engine.compress(examples[0].context, refine=True)

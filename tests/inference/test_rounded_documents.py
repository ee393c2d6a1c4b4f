"""Documents in few bits, and which files are refused."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import flags

import gistjax
from gistjax import ask, evaluate
from gistjax.compress.kept import entries_of, packed
from gistjax.errors import CheckpointError, ConfigError
from gistjax.inference.recent import Recent
from gistjax.runtime.quantize import BITS
from gistjax.runtime.tensors import load_tensors, save_tensors
from tests.helpers.asked import answer_ids
from tests.helpers.runs import ASKED, KNORM, write_run


@pytest.fixture(scope="module")
def document(selecting, examples):
    return selecting.compress(examples[0].context)


@pytest.mark.parametrize("bits", BITS)
def test_a_document_in_few_bits_is_opened(selecting, document, tmp_path, bits):
    file, whole = tmp_path / "document", tmp_path / "whole"
    saved = ask.save(document, file, bits)
    assert saved["saved_bytes"] == file.stat().st_size == document.save(file, bits)
    assert file.stat().st_size < document.save(whole) * (bits + 8) / 32
    opened = selecting.open(file)
    assert (opened.tokens, opened.slots) == (document.tokens, document.slots)
    ours, theirs = (entries_of(selecting.open(x).context).numbers() for x in (whole, file))
    np.testing.assert_array_equal(ours.count_LxK, theirs.count_LxK)
    assert 0 < np.abs(ours.v_TxH - theirs.v_TxH).max() < np.ptp(ours.v_TxH) / (2**bits - 1)
    assert load_tensors(file)[1]["bits"] == str(bits)


def test_the_widths_of_documents_are_those_of_the_commands():
    for command in (ask, evaluate):
        values = flags.FlagValues()
        command.define_flags(values)
        assert values["bits"].parser.enum_values == [*map(str, BITS)]


@pytest.mark.parametrize("bits", [None, *BITS])
def test_the_parts_of_a_file_are_described(document, tmp_path, bits):
    file = tmp_path / "document"
    size = document.save(file, bits)
    parts, arrays = document.describe(bits), load_tensors(file)[0]
    assert sum(parts.values()) == size and parts["header"] < 2_000
    assert (parts["keys"], parts["values"]) == (arrays["k"].nbytes, arrays["v"].nbytes)
    assert parts["tables"] == arrays["count"].nbytes
    n, heads = len(arrays["v"]), np.count_nonzero(arrays["count"])
    assert parts.get("scales") == (4 * n + 4 * 16 * heads if bits else None)


def test_the_parts_of_slots_are_described(engine, examples, tmp_path):
    document = engine.compress(examples[0].context)
    parts, size = document.describe(), document.save(tmp_path / "document")
    assert [*parts] == ["vectors", "tables", "header"] and sum(parts.values()) == size
    assert parts["vectors"] == document.slots * 64 * 4
    for bits in BITS:
        parts, size = document.describe(bits), document.save(tmp_path / "document", bits)
        assert [*parts] == ["vectors", "scales", "tables", "header"] and sum(parts.values()) == size
        assert parts["vectors"] == document.slots * 64 * bits // 8
        assert parts["scales"] == document.slots * 4


@pytest.mark.slow
def test_in_8_bits_the_answers_are_nearly_those(selecting, document, examples, tmp_path):
    document.save(tmp_path / "document", bits=8)
    opened = selecting.open(tmp_path / "document")
    for example in examples:
        ours, theirs = (one.ask(example.question) for one in (document, opened))
        assert theirs.score == pytest.approx(ours.score, rel=0.05)


@pytest.mark.parametrize("bits", BITS)
def test_an_opened_document_stays_packed_and_answers_as_its_numbers_do(
    selecting, document, examples, tmp_path, bits
):
    file = tmp_path / "document"
    size = document.save(file, bits)
    opened = selecting.open(file)
    assert opened.nbytes == sum(x.nbytes for x in load_tensors(file)[0].values())
    assert opened.nbytes < opened.resident_bytes <= 1.1 * opened.nbytes
    whole = packed(entries_of(opened.context).numbers())
    restored = dataclasses.replace(
        opened, context=dataclasses.replace(opened.context, kept=whole), _states=Recent(1)
    )
    assert restored.resident_bytes > (24 / (bits + 1)) * opened.resident_bytes
    for example in examples[:2] if bits == 4 else ():
        ours, theirs = (answer_ids(one, example.question) for one in (opened, restored))
        assert ours.ids == theirs.ids
        assert ours.log_probability == pytest.approx(theirs.log_probability, rel=1e-5)
    again = tmp_path / "again"  # not rounded once more
    assert opened.save(again) == size and again.read_bytes() == file.read_bytes()
    for other in set(BITS) - {bits}:
        opened.save(again, other)
        assert load_tensors(again)[1]["bits"] == str(other)


FORMS = {
    "entries": KNORM,
    "soft tokens": ASKED,
    "keys and values": ASKED.replace(slot_form="key_values", slot_positions="packed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compressed_in_few_bits_a_document_is_the_one_that_is_saved_and_opened(
    examples, tmp_path, form
):
    """To the last bit, in memory and answers too; and it stays in its bits."""
    engine = gistjax.load(write_run(tmp_path / "run", FORMS[form]))
    text, file, again = examples[0].context, tmp_path / "file", tmp_path / "again"
    plain = engine.compress(text)
    size = plain.save(file, 4)
    opened, coded = engine.open(file), engine.compress(text, bits=4)
    assert coded.seconds > 0 and repr(coded) == repr(plain)[:-1] + ", in 4 bits)"
    assert coded.resident_bytes == opened.resident_bytes
    assert (coded.resident_bytes < plain.resident_bytes / 4) == (form == "entries")  # fp32
    jax.tree.map(np.testing.assert_array_equal, coded.context, opened.context)
    for document in (coded, opened):
        assert document.save(again) == size and again.read_bytes() == file.read_bytes()
        assert document.describe() == plain.describe(4) != plain.describe()
        assert document.nbytes == sum(x.nbytes for x in load_tensors(file)[0].values())
    for example in examples[:2]:
        ours, theirs, exact = (answer_ids(one, example.question) for one in (coded, opened, plain))
        assert (ours.ids, ours.log_probability) == (theirs.ids, theirs.log_probability)
        assert ours.log_probability != exact.log_probability


@pytest.mark.slow
def test_entries_of_equal_shapes_and_wider_windows_have_a_program_of_their_own(document, examples):
    kept = document.context.kept
    wide = dataclasses.replace(kept, most=len(kept.v_TxH))
    context = dataclasses.replace(document.context, kept=wide)
    wider = dataclasses.replace(document, context=context, _states=Recent(1), _kept=None)
    ours, theirs = (answer_ids(one, examples[0].question) for one in (document, wider))
    assert kept.most < wide.most and ours.ids == theirs.ids


@pytest.mark.parametrize("bits", [0, 1, 5, 16, True, "4"])
def test_other_bits_are_refused(document, tmp_path, bits):
    with pytest.raises(ConfigError, match="saved in 8, 4, 3 or 2 bits, or as they are"):
        document.save(tmp_path / "document", bits)
    with pytest.raises(ConfigError, match="saved in 8, 4, 3 or 2 bits, or as they are"):
        document.engine.compress("Who?", bits=bits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", BITS)
def test_slots_in_few_bits_are_opened(engine, examples, tmp_path, bits):
    file, document = tmp_path / "document", engine.compress(examples[0].context)
    document.save(file, bits)
    opened = engine.open(file)
    n = document.slots
    assert (opened.tokens, opened.slots) == (document.tokens, n)
    ours, theirs = (one.context for one in (document, opened))
    np.testing.assert_array_equal(ours.position_BxX[0, :n], theirs.position_BxX[0, :n])
    x, y = (np.asarray(one.x_BxXxD)[0, :n] for one in (ours, theirs))
    step = np.ptp(x, axis=1, keepdims=True) / (2**bits - 1)
    assert np.abs(x - y).max() > 0 and (np.abs(x - y) < 0.51 * step).all()
    assert {k: load_tensors(file)[1][k] for k in ("version", "bits", "width")} == {
        "version": "5",
        "bits": str(bits),
        "width": "64",
    }


@pytest.mark.parametrize(
    ("damage", "about"),
    [
        *((lambda arrays, n=name: {k: x for k, x in arrays.items() if k != n}, {})
          for name in ("x", "x_scale", "x_offset", "position")),
        (lambda arrays: change("x", lambda x: x[:, :-1])(arrays), {}),
        (lambda arrays: change("x_scale", lambda x: x[:-1])(arrays), {}),
        (lambda arrays: change("x_scale", np.negative)(arrays), {}),
        (lambda arrays: change("x_offset", nan)(arrays), {}),
        (lambda arrays: change("position", lambda x: x[:-1])(arrays), {}),
        (dict, {"bits": "4"}),
        (dict, {"width": "32"}),
        (dict, {"width": "-64"}),
        (dict, {"width": "wide"}),
        (dict, {"dtype": "int8"}),
    ],
)  # fmt: skip
def test_a_file_of_slots_that_is_not_whole_is_refused(engine, examples, tmp_path, damage, about):
    file = tmp_path / "document"
    engine.compress(examples[0].context).save(file, 8)
    arrays, theirs = load_tensors(file)
    save_tensors(file, damage(arrays), theirs | about)
    with pytest.raises(CheckpointError, match="no whole document .*compress the text again"):
        engine.open(file)


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
    for bits in ("5", "16", "-4", "4.0", ""):
        save_tensors(file, arrays, about | {"bits": bits})
        with pytest.raises(
            CheckpointError, match=f"in {bits} bits, and this gistjax reads 8, 4, 3 or 2"
        ):
            selecting.open(file)

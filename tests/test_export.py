"""What is given away: the folder with its card, prompt embeddings, and the hub's dry run."""

import json
import os
import shutil
import sys

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gistjax
from gistjax import export
from gistjax.compress.exported import load_exported, packed
from gistjax.config import EncoderConfig, ModelConfig, SelectConfig
from gistjax.errors import CheckpointError, ConfigError, ExportError, StorageError, WeightsError
from gistjax.experiment.confidence import Calibration, write_calibration
from gistjax.experiment.evaluator import write_unscored
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.weights.tokenizers import BYTE_TEMPLATE
from tests.helpers.asked import answer_ids
from tests.helpers.folders import write_base
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import write_run

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = "Ada wrote the first program. She lived in London."
METRICS = {
    "final_f1": 0.5,
    "final_f1_interval": [0.4, 0.6],
    "final_em": 0.25,
    "n_examples": 9,
    "seed": 1,
    "effective_compression_ratio": 3.9,
    "shuffled_f1": 0.03,
    "baseline_f1": 0.7,
    "baseline_em": 0.6,
}


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    packed = CONFIG.replace(slot_positions="packed")
    rundir = write_run(tmp_path_factory.mktemp("run") / "r8", packed)
    (rundir / "metrics.json").write_text(json.dumps(METRICS))
    return rundir


@pytest.fixture
def command(rundir, monkeypatch, capsys):
    """Runs the command and returns the object that it prints."""

    def call(*words, run=rundir):
        values = flags.FlagValues()
        export.define_flags(values)
        monkeypatch.setattr(sys, "argv", ["export", f"--run={run}", *words])
        config, rest = cli._parse(sys.argv, lambda argv: RunDir(run).config(), values)
        export.main(config, values, rest)
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.slow
def test_an_exported_folder_is_loaded_like_a_run_and_has_a_card(command, rundir, tmp_path):
    out = command("--output", str(tmp_path / "out"))
    assert out["files"] == ["README.md", "compressor.safetensors", "config.json"]
    theirs = gistjax.load(tmp_path / "out").compress(TEXT).ask("Who?")
    assert theirs.text == gistjax.load(rundir).compress(TEXT).ask("Who?").text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| this compressor | 0.500 [0.400, 0.600] | 0.250 |" in card
    assert "one slot for each 8 tokens, which " in card and "On 9 validation questions" in card


@pytest.mark.slow
def test_a_run_that_keeps_entries_is_exported_as_it_was_trained(command, tmp_path):
    kept = CONFIG.replace(
        architecture="select",
        slot_start="architecture",
        slot_positions="packed",
        loss_weights={"teacher_forcing": 1.0},
    )
    run = write_run(tmp_path / "kept", kept.replace(select=SelectConfig("keydiff", "head")))
    command("--output", str(tmp_path / "out"), run=run)
    theirs = gistjax.load(tmp_path / "out").compress(TEXT).ask("Who?")
    assert theirs.text == gistjax.load(run).compress(TEXT).ask("Who?").text
    adapter = command("--to=peft", f"--output={tmp_path}/adapter", run=run)
    assert adapter["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    whole = write_run(
        tmp_path / "whole", kept.replace(architecture="none", ratio=0.0, target_length=64)
    )
    with pytest.raises(ConfigError, match="as it was trained: leave --config.architecture out"):
        command(
            f"--output={tmp_path}/cut",
            "--config.architecture=select",
            "--config.ratio=8",
            run=whole,
        )


def test_the_card_of_a_run_with_predictions_has_its_f1_by_coverage(command, rundir, tmp_path):
    run = shutil.copytree(rundir, tmp_path / "run")
    rows = [{"id": f"q{i}", "f1": float(i >= 10), "score": i / 20} for i in range(20)]
    (run / "predictions.json").write_text(json.dumps(rows))
    command(f"--output={tmp_path}/out", run=run)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 100% | 0.500 |\n| 90% | 0.556 |\n" in card


def test_an_adapter_of_random_weights_is_written_with_a_warning(command, caplog, tmp_path):
    command("--to=peft", f"--output={tmp_path}")
    assert "trained on random weights of the sizes of tiny-random" in caplog.text
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-random"


@pytest.mark.slow
def test_prompt_embeddings_give_the_same_answer_at_consecutive_positions(command, rundir, tmp_path):
    """What an engine does: one causal pass over the embeddings, positions 0, 1, 2 …, with the
    decoder's LoRA.
    """
    (tmp_path / "text.txt").write_text(TEXT)
    questions = ["Who wrote?", "Where did she live?"]
    command(
        "--to=prompt_embeds",
        "--output",
        str(tmp_path),
        f"--context={tmp_path}/text.txt",
        *questions,
    )
    tensors = load_file(tmp_path / "prompt_embeds.safetensors")
    engine = gistjax.load(rundir)
    document = engine.compress(TEXT)
    model = engine.model()
    for i, question in enumerate(questions):
        prompt_TxD = tensors[f"question_{i}"]
        answer = answer_ids(document, question).ids
        assert answer
        embeds_TxD = np.concatenate([prompt_TxD, np.asarray(model.base.embed(jnp.asarray(answer)))])
        h_1xTxD, _ = model.base(
            jnp.asarray(embeds_TxD)[None], jnp.arange(len(embeds_TxD))[None], lora=model.lora
        )
        logits_1xAxV = model.base.logits(h_1xTxD[:, len(prompt_TxD) - 1 : -1])
        assert jnp.argmax(logits_1xAxV[0], axis=-1).tolist() == answer
    with safe_open(tmp_path / "prompt_embeds.safetensors", "numpy") as file:
        assert file.metadata()["question_1"] == "Where did she live?"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, "slots have spread positions"),
        (
            {"slot_form": "key_values", "slot_positions": "packed"},
            "slots are keys and values of every layer",
        ),
        (
            {"architecture": "select", "slot_start": "architecture", "slot_positions": "packed"},
            None,
        ),
    ],
)
def test_slots_that_engines_cannot_place_are_refused(command, rundir, tmp_path, changes, cause):
    """From the configuration alone, before weights are read."""
    stored = json.loads((rundir / "config.json").read_text())
    stored["config"] = CONFIG.replace(**changes).to_json()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "text.txt").write_text(TEXT)
    told = f"but this compressor's {cause}: train one with .*soft_tokens"
    kept = "but this run keeps entries of the key/value cache.*architecture=pooling .*soft_tokens"
    with pytest.raises(ExportError, match=told if cause else kept):
        command(
            "--to=prompt_embeds",
            f"--output={tmp_path}/out",
            f"--context={tmp_path}/text.txt",
            "Who?",
            run=tmp_path,
        )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--output is missing"),
        (["--output=out", "Who?"], "questions are for --to prompt_embeds"),
        (["--output=out", "--to=prompt_embeds", "Who?"], "needs --context FILE"),
        (["--output=out", "--to=peftt"], "peftt"),
        (["--output=out", "--dry_run"], "--dry_run is of --push"),
        (["--output=out", "--to=peft", "--bits=8"], "--bits is of --to safetensors"),
        (["--output=out", "--bits=4"], "bits"),
        (["--output=out", "--push=one/two/three", "--dry_run"], "named organisation/model"),
        (["--output=out", "--push=alone", "--dry_run"], "named organisation/model"),
    ],
)
def test_mistakes_are_named(command, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        command(*words)


def test_what_stands_in_the_folder_is_neither_lost_nor_given_away(command, tmp_path):
    (tmp_path / "README.md").write_text("# Mine")
    with pytest.raises(ConfigError, match=r"README\.md is not of this command"):
        command(f"--output={tmp_path}")
    assert os.listdir(tmp_path) == ["README.md"]
    (tmp_path / "README.md").rename(tmp_path / "notes.md")
    for _ in range(2):  # its own card it may write over
        out = command(f"--output={tmp_path}", "--push=me/compressor", "--dry_run")
        assert "notes.md" not in out["files"] and len(out["files"]) == 3


def test_another_run_is_not_written_over(command, rundir, tmp_path):
    other = shutil.copytree(rundir, tmp_path / "other")
    before = (other / "compressor.safetensors").read_bytes()
    (other / "compressor.safetensors").write_bytes(before[::-1])
    with pytest.raises(ConfigError, match=r"compressor\.safetensors is not of this command"):
        command(f"--output={other}")
    (other / "checkpoint").mkdir()
    (other / "README.md").write_text("library_name: gistjax")
    with pytest.raises(ConfigError, match="checkpoint is not of this command"):
        command(f"--output={other}")
    assert (other / "compressor.safetensors").read_bytes() == before[::-1]
    assert command(f"--output={rundir}")["files"][0] == "README.md", "a run gets its card"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("compressor.safetensors", b"hi"),
        ("metrics.json", b'{"final_f1'),
        ("predictions.json", b'[{"score": 0.5}]'),
        ("predictions.json", b'[{"f1": 1, "score": null}]'),
    ],
)
def test_a_damaged_run_is_not_exported(command, rundir, tmp_path, name, content):
    run = shutil.copytree(rundir, tmp_path / "run")
    (run / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        command(f"--output={tmp_path}/out", run=run)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").touch()
    for to in ("safetensors", "peft"):
        with pytest.raises(StorageError, match="file cannot be made"):
            command(f"--output={tmp_path}/file", f"--to={to}")


def test_a_run_keeps_its_own_weights(command, rundir):
    with pytest.raises(ConfigError, match="--bits takes another --output than the run"):
        command(f"--output={rundir}", "--bits=8")


def test_an_unfinished_run_is_refused(command, rundir, tmp_path):
    (tmp_path / "config.json").write_bytes((rundir / "config.json").read_bytes())
    for to in ("safetensors", "peft"):
        with pytest.raises(CheckpointError, match="is the run finished"):
            command("--output", str(tmp_path / "out"), f"--to={to}", run=tmp_path)


def test_a_dry_run_of_a_push_asks_nothing_of_the_hub(command, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    out = command("--output", str(tmp_path / "out"), "--push=me/compressor", "--dry_run")
    assert out["pushed"] is False and out["repository"] == "me/compressor"
    assert set(out["files"]) == {"README.md", "compressor.safetensors", "config.json"}
    assert all(size > 0 for size in out["files"].values())


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory):
    """A run whose base is given by its folder alone, and that names other local folders."""
    home = tmp_path_factory.mktemp("home")
    model = ModelConfig(path=str(write_base(home / "mine")), dtype="float32")
    config = CONFIG.replace(
        model=model, slot_positions="packed", init_from=str(home / "earlier"), teacher="~/teacher"
    )
    (home / "mine" / "chat_template.jinja").write_text(BYTE_TEMPLATE)
    return write_run(home / "run", config)


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir()).decode(errors="replace")


def test_a_base_given_by_its_folder_is_called_by_it_and_no_folder_is_told(
    command, from_folder, tmp_path, caplog
):
    """In card, configuration, adapter, metadata and metrics; and not by the default's name."""
    home = from_folder.parent
    for to in ("safetensors", "peft"):
        command(f"--output={tmp_path / to}", f"--to={to}", run=from_folder)
        told = contents(tmp_path / to)
        for secret in (str(home), "lama-3.1", "~/teacher"):
            assert secret not in told
    assert "trained on weights of a folder (mine)" in caplog.text
    card = (tmp_path / "safetensors" / "README.md").read_text()
    assert "# A context compressor for mine\n" in card and "base_model" not in card
    assert "First say where the base is." in card and ', base="FOLDER_OR_GGUF' in card
    assert "(`earlier`)" in card
    adapter = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "mine"
    config = RunDir(tmp_path / "safetensors").config()
    assert (config.model.path, config.model.name, config.teacher) == ("", "mine", "teacher")
    metrics = write_unscored(RunDir(tmp_path), RunDir(from_folder).config(), 1)
    assert metrics["base_model"] == "mine"
    own = (from_folder / "compressor.safetensors").read_bytes()
    assert own == (tmp_path / "safetensors" / "compressor.safetensors").read_bytes()


def test_an_exported_folder_finds_its_base_where_it_is_told(command, from_folder, tmp_path):
    command(f"--output={tmp_path / 'out'}", run=from_folder)
    with pytest.raises(WeightsError, match="no model is known as 'mine'.*`base` of gistjax.load"):
        gistjax.load(tmp_path / "out")
    engine = gistjax.load(tmp_path / "out", base=from_folder.parent / "mine")
    assert engine.origin()["base"] == "mine"
    with pytest.raises(CheckpointError, match=r"other base weights .*\(folder: mine\)"):
        gistjax.load(tmp_path / "out", base=other_base(from_folder.parent / "mine", tmp_path))


def other_base(folder, tmp_path):
    """The same base but for one number."""
    shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    return tmp_path / "other"


def test_a_compressor_that_named_folders_is_copied_without_them(
    command, from_folder, tmp_path, caplog
):
    """As runs of gistjax 0.1 do."""
    run = shutil.copytree(from_folder, tmp_path / "run")
    arrays, metadata = load_tensors(run / "compressor.safetensors")
    config = json.dumps(RunDir(run).config().to_json())
    save_tensors(run / "compressor.safetensors", packed(arrays), {"config": config})
    command(f"--output={tmp_path / 'out'}", run=run)
    assert str(from_folder.parent) not in contents(tmp_path / "out")
    assert "documents of the run are not opened by this copy" in caplog.text
    copied, theirs = load_tensors(tmp_path / "out" / "compressor.safetensors")
    assert theirs["config"] == metadata["config"] and theirs["version"] == "2"
    for name, array in load_tensors(run / "compressor.safetensors")[0].items():
        np.testing.assert_array_equal(copied[name], array)


def first_logits(run):
    """What the model makes of the question's last token."""
    document = gistjax.load(run).compress(TEXT)
    tokens_1xS = jnp.asarray([document.engine.pretrained.prompt.encode_question("Who?")])
    model = document.engine.model()
    last_1x1 = jnp.full((1, 1), tokens_1xS.shape[1] - 1)
    length_1 = jnp.full(1, tokens_1xS.shape[1])
    h_1x1xD, _ = model.prefill_with(document.context, tokens_1xS, length_1, 4, last_1x1)
    return np.asarray(model.base.logits(h_1x1xD)).ravel()


@pytest.mark.slow
def test_in_8_bits_a_compressor_answers_nearly_alike(command, rundir, tmp_path, caplog, rng):
    """Its card says how many bytes, and that its scores are those of the run."""
    run = shutil.copytree(rundir, tmp_path / "run")
    arrays, metadata = load_tensors(run / "compressor.safetensors")
    trained = {k: x + 0.02 * rng.normal(size=x.shape).astype(x.dtype) for k, x in arrays.items()}
    save_tensors(run / "compressor.safetensors", trained, metadata)
    write_calibration(RunDir(run), Calibration(0.5, 0.0), {})
    out = tmp_path / "out"
    assert "calibration.json" not in command(f"--output={out}", "--bits=8", run=run)["files"]
    assert "documents of the run are not opened" in caplog.text
    assert "calibrate the copy" in caplog.text
    whole, small = (folder / "compressor.safetensors" for folder in (run, out))
    arrays, metadata = load_tensors(small)
    assert metadata["version"] == "2" and small.stat().st_size < 0.4 * whole.stat().st_size
    assert arrays["lora/adapters/q/a"].dtype == np.int8
    size = sum(array.nbytes for array in arrays.values())
    card = (out / "README.md").read_text()
    assert f"take {size:,} bytes, large matrices in int8; the scores were measured before" in card
    untrained, ours, theirs = (first_logits(folder) for folder in (rundir, run, out))
    changed = np.abs(ours - untrained).mean()
    assert 0 < np.abs(theirs - ours).mean() < 0.02 * changed
    assert "already" not in caplog.text
    again = command(f"--output={tmp_path / 'again'}", "--bits=8", run=out)
    assert f"{out} is in int8 already: --bits=8 changes nothing" in caplog.text
    assert "README.md" in again["files"]
    assert (tmp_path / "again" / "compressor.safetensors").read_bytes() == small.read_bytes()
    command(f"--output={tmp_path / 'peft'}", "--to=peft", run=out)
    factor = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    a_LxDxR = load_exported(small)[0]["lora/adapters/q/a"]
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(factor[name], a_LxDxR[1].T)


def test_what_may_name_folders_is_not_pushed(command, from_folder):
    with pytest.raises(ConfigError, match="another --output than the run"):
        command(f"--output={from_folder}", "--push=me/x", "--dry_run", run=from_folder)


def test_a_cut_is_not_exported_whatever_its_encoder_is(command, tmp_path):
    encoder = EncoderConfig(kind="lora", bidirectional=True)
    full = CONFIG.replace(architecture="none", encoder=encoder).to_json()
    (tmp_path / "config.json").write_text(json.dumps({"config": full}))
    with pytest.raises(ConfigError, match="a cut of a full context is not exported.*the copy"):
        command(f"--output={tmp_path}/out", "--config.architecture=select", run=tmp_path)


@pytest.mark.parametrize("to", ["safetensors", "peft"])
def test_another_meaning_is_not_exported(command, to, tmp_path):
    with pytest.raises(ConfigError, match="lora.alpha: this model was trained with another value"):
        command(f"--output={tmp_path / 'out'}", f"--to={to}", "--config.lora.alpha=1")

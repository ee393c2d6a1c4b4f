"""Compressors that are fetched from a hub, here one on this machine."""

import json
import shutil

import huggingface_hub
import pytest

import gistjax
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.hub import fetch
from gistjax.experiment.run_dir import RunDir
from gistjax.export import Request, export_safetensors
from tests.helpers.asked import answer_ids
from tests.helpers.hub import COMMIT, Hub, serve
from tests.helpers.runs import ASKED, write_run

TEXT = "Ada wrote the first program. She lived in London."


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, and what `export --push` uploads of it."""
    home = tmp_path_factory.mktemp("exported")
    run = write_run(home / "run", ASKED)
    names = export_safetensors(Request(run, ASKED, home / "out", [], []))
    return run, home / "out", names


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that the library asks in place of the real one, with a cache of its own."""
    hub = Hub(gated="me/gated")
    with serve(hub) as address:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        url = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_what_is_pushed_is_loaded_and_nothing_else_is_fetched(exported, hub, tmp_path, monkeypatch):
    run, out, names = exported
    hub.repos["me/compressor"] = shutil.copytree(out, tmp_path / "repo")
    for other in ("evil.py", "pickle.bin", "pytorch_model.safetensors"):
        (tmp_path / "repo" / other).write_text("never read")
    engine = gistjax.load(repo="me/compressor")
    ours, theirs = (answer_ids(e.compress(TEXT), "Who?") for e in (gistjax.load(run), engine))
    assert theirs.ids == ours.ids and theirs.log_probability == ours.log_probability
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"compressor.safetensors", "config.json"} < set(names)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert RunDir(fetch("me/compressor")).exported.is_file(), "the cache is enough"
    assert len(hub.asked) == asked


def test_a_revision_is_fetched_or_refused(exported, hub):
    hub.repos["me/compressor"] = exported[1]
    assert fetch("me/compressor", COMMIT) == fetch("me/compressor", "main")
    with pytest.raises(CheckpointError, match="has no revision 'v2': give a branch"):
        fetch("me/compressor", "v2")


def test_a_local_folder_never_touches_the_network(exported, hub):
    gistjax.load(exported[1])
    assert not hub.asked


@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("me/nothing", "the hub has no model me/nothing, or it is private: check the name"),
        ("me/gated", "me/gated is gated: ask for access"),
    ],
)
def test_a_repository_that_is_not_there_is_told(hub, repo, says):
    with pytest.raises(CheckpointError, match=says):
        fetch(repo)


def test_a_hub_that_is_not_reached_is_told(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="hub cannot be reached for me/x .*give its folder"):
        fetch("me/x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hub cannot be reached for me/x"):
        fetch("me/x")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, r"holds no compressor \(.*config.json cannot be read"),
        ({"config.json": {"model_type": "llama"}}, r"holds no compressor \(.*config.json is dam"),
        ({"config.json": {"config": ASKED.to_json()}}, r"no compressor \(.*compressor.safetensors"),
    ],
)
def test_another_repository_is_told_from_a_compressor(hub, tmp_path, files, says):
    folder = hub.repos["me/model"] = tmp_path / "repo"
    folder.mkdir()
    (folder / "README.md").write_text("a model")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        fetch("me/model")


def test_a_repository_makes_nobody_import_code(exported, hub, tmp_path, monkeypatch):
    folder = hub.repos["me/own"] = shutil.copytree(exported[1], tmp_path / "repo")
    about = json.loads((folder / "config.json").read_text())
    about["config"]["architecture"] = "evil.Evil"
    (folder / "config.json").write_text(json.dumps(about))
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="'evil.Evil', .*`import evil` first"):
        gistjax.load(repo="me/own")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"repo": "alone"}, "repo=alone: a repository is named organisation/model"),
        ({"repo": "one/two/three"}, "repo=one/two/three: a repository is named"),
        ({"repo": "../secret"}, "a repository is named organisation/model"),
        ({"repo": ["me/x"]}, "a repository is named organisation/model"),
        ({"repo": "me/x", "run": "runs/qa"}, "run='runs/qa' and repo='me/x': give one of them"),
        ({"revision": "v2"}, "revision='v2' is of a repo"),
        ({"repo": "a/b", "revision": 5}, "revision=5 must be a text"),
    ],
)
def test_mistakes_are_named(hub, given, says):
    with pytest.raises(ConfigError, match=says):
        gistjax.load(**given)
    assert not hub.asked

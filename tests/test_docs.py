"""Pages say what is so: links lead somewhere, commands and files exist, worked examples run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from gistjax import config as configuration
from gistjax.__main__ import COMMANDS
from gistjax.config import DataConfig
from gistjax.data.tasks import load_task
from gistjax.reporting import config_page
from gistjax.settings import walk
from gistjax.train import run_single_ablation
from tests.helpers import last_token
from tests.helpers.pages import PAGES, ROOT, python_blocks
from tests.helpers.runs import TRAINED

LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
MODULE = re.compile(r"python -m ((?:gistjax|launch|tests)(?:\.\w+)*)")
COMMAND = re.compile(r"`gistjax ([a-z]+)")
SCRIPT = re.compile(r"(?:python|bash|sbatch) (launch/[\w.]+)")
KEY = re.compile(r"--config\.([a-z_]\w*(?:\.[a-z_]\w*)*)")
FILE = re.compile(r"`((?:gistjax|configs|launch|docs|tests)/[\w./*-]*)[^`]*`")
KEYS = {name for name, *_ in walk(configuration.CompressionConfig())}
KEYS |= {f"loss_weights.{name}" for name in configuration.DEFAULT_LOSS_WEIGHTS}
KEYS |= {f"data.tasks.{name}" for name in configuration.TASKS}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """The anchors of a page's headings, as they are made on the hosts of repositories."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@each_page
def test_links_lead_somewhere(page):
    for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{link} is not there"
        assert target.is_relative_to(ROOT), f"{link} is outside"
        assert not anchor or anchor in anchors(target), f"{link} has no heading #{anchor}"


@each_page
def test_commands_and_their_keys_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in MODULE.findall(text):
        assert importlib.util.find_spec(module), f"no module {module}"
    assert set(COMMAND.findall(text)) <= set(COMMANDS)
    for script in SCRIPT.findall(text):
        assert (ROOT / script).is_file(), f"no program {script}"
    if page.name != "CHANGELOG.md":
        assert {key for key in KEY.findall(text) if key.islower()} <= KEYS


@each_page
def test_files_that_are_named_exist(page):
    if page.name == "CHANGELOG.md":
        return  # it names what is gone
    for name in FILE.findall(page.read_text(encoding="utf-8")):
        assert list(ROOT.glob(name.rstrip("/"))), f"{name} is not there"


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 7 * 1024


def test_the_page_of_the_configuration_is_up_to_date():
    written = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    assert written == config_page.config_page(), f"write it again: {config_page.COMMAND}"


def test_the_architecture_of_contributing_is_the_one_that_is_tested():
    """`tests/compress/test_adding_an_architecture.py` trains it, and asks it."""
    code = Path(last_token.__file__).read_text(encoding="utf-8")
    assert code.partition("\n\n")[2] == python_blocks("CONTRIBUTING.md")["last_token.py"]


@pytest.mark.slow
def test_the_task_of_contributing_is_trained(tmp_path, monkeypatch):
    (tmp_path / "notes.py").write_text(python_blocks("CONTRIBUTING.md")["notes.py"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(configuration.TASKS, "notes", "notes")
    row = re.search(r"```json\n(.*)\n```", (ROOT / "CONTRIBUTING.md").read_text()).group(1)
    rows = [json.loads(row) | {"context": f"Note {n}. The tap is open."} for n in range(16)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(
        task="notes",
        path=str(tmp_path),
        context="paragraph",
        context_tokens=64,
        context_buckets=(64,),
        question_buckets=(128,),
        validation_examples=2,
    )
    metrics = run_single_ablation(TRAINED.replace(max_steps=1, data=data), tmp_path / "run")
    assert metrics["n_examples"] == 2 and load_task("notes").answer_tokens == 5

"""The wheel: what is in it, and that it works in another folder than the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import hatchling.build
import pytest

import gistjax

ROOT = Path(__file__).parents[1]
DATA = {
    "py.typed",
    "data/sample/article.txt",
    "data/sample/train.json",
    "data/sample/validation.json",
    "estimate/step_times.json",
    "reporting/templates/report.css",
    "reporting/templates/report.html.j2",
    "reporting/templates/report.js",
    "serving/page.html",
    "shipped/smollm2_135m/compressor.safetensors",
    "shipped/smollm2_135m/config.json",
    "shipped/smollm2_135m/metrics.json",
    "weights/tiny_facts/chat_template.jinja",
    "weights/tiny_facts/config.json",
    "weights/tiny_facts/model.safetensors",
    "weights/tiny_facts/tokenizer.json",
    "weights/tiny_facts/tokenizer_config.json",
}
"""Every file of the package that is no code."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds a wheel in this process, and returns its path."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        before = Path.cwd()
        os.chdir(ROOT)
        try:
            return folder / getattr(hatchling.build, kind)(str(folder))
        finally:
            os.chdir(before)

    return make


@pytest.fixture(scope="module")
def unpacked(build, tmp_path_factory):
    """The wheel, unpacked as pip would."""
    wheel, folder = build("build_wheel"), tmp_path_factory.mktemp("site")
    assert wheel.name == f"gistjax-{gistjax.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 22e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site, folder, *words):
    """Runs Python elsewhere, with the unpacked wheel alone on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_has_code_data_configs_and_notices(unpacked):
    package = unpacked / "gistjax"
    found = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    code = {str(path.relative_to(ROOT / "gistjax")) for path in (ROOT / "gistjax").rglob("*.py")}
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    assert configs and found == code | DATA | configs
    licences = {path.name for path in unpacked.glob("*.dist-info/licenses/*")}
    assert licences == {"LICENSE", "NOTICE"}
    assert {path.name for path in unpacked.iterdir() if "dist-info" not in path.name} == {"gistjax"}


def test_a_config_is_found_by_name_from_the_wheel(unpacked, tmp_path):
    words = ("-m", "gistjax", "train", "--config=gist_m64.py", "--dry_run")
    done = run(unpacked, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["nominal_compression_ratio"] == 8.0


def test_the_compressor_is_found_in_the_wheel(unpacked, tmp_path):
    code = (
        "from gistjax.experiment.run_dir import SHIPPED, RunDir\n"
        "from gistjax.runtime.tensors import load_tensors\n"
        "load_tensors(SHIPPED / 'compressor.safetensors')\n"
        "print(RunDir(SHIPPED).config().model.name)"
    )
    done = run(unpacked, tmp_path, "-c", code)
    assert done.stdout.strip() == "smollm2-135m-instruct", done.stderr


def test_an_editable_install_finds_the_package_beside_a_clone_of_its_name(build, tmp_path):
    """In the folder that holds the clone, a `gistjax` without code is found first."""
    with zipfile.ZipFile(build("build_editable")) as archive:
        (name,) = (name for name in archive.namelist() if "dist-info" not in name)
        assert name.endswith(".pth")
        assert archive.read(name).decode().strip() == str(ROOT)
    (tmp_path / "gistjax").mkdir()
    done = run(ROOT, tmp_path, "-c", "import gistjax; print(gistjax.__file__)")
    assert done.stdout.strip() == str(ROOT / "gistjax" / "__init__.py"), done.stderr

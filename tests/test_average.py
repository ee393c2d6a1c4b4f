import json
from dataclasses import replace

import numpy as np
import pytest

from gistjax.average import average
from gistjax.compress import EXPORTED
from gistjax.compress.exported import load_exported
from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import RunDir, provenance
from gistjax.runtime.tensors import hash_tensors, load_tensors, save_tensors


@pytest.fixture
def write(tmp_path):
    def write_run(
        name, values, base="a" * 64, start="c" * 64, profile="d" * 64, arrays=None, **settings
    ):
        run = tmp_path / name
        run.mkdir()
        config = replace(CompressionConfig(init_from="start"), **settings)
        hashes = {"base_sha256": base, "start_sha256": start, "profile_sha256": profile}
        about = {"config": config.to_json(), **hashes}
        (run / "config.json").write_text(json.dumps(about))
        (run / "metrics.json").write_text("{}")
        b = np.outer(values, np.ones(4)).astype(np.float32)
        own = {"a": np.array(values, np.float32), "lora/adapters/q/b": b}
        save_tensors(run / EXPORTED, arrays or own)
        return run

    return write_run


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_mean_is_of_every_run(write, tmp_path, dtype):
    runs = [write(f"s{seed}", [seed, -3.0 * seed], seed=seed) for seed in (1, 2, 6)]
    mean = tmp_path / "mean"
    average(runs, mean, dtype)
    arrays, about = load_tensors(mean / EXPORTED)
    assert arrays["a"].dtype == dtype and arrays["a"].tolist() == [3, -9]
    assert RunDir(mean).config() == RunDir(runs[0]).config()
    assert json.loads(about["config"]) == RunDir(runs[0]).about()["config"]
    assert RunDir(mean).about()["mean_of"] == ["s1", "s2", "s6"]
    with pytest.raises(CheckpointError, match="has files in it"):
        average(runs, mean)
    with pytest.raises(CheckpointError, match="a mean already"):
        average([mean, runs[1]], tmp_path / "again")


def test_a_mean_in_int8_has_its_matrices_in_it_alone(write, tmp_path):
    runs = [write(f"s{seed}", [seed, -3.0 * seed], seed=seed) for seed in (1, 2)]
    average(runs, tmp_path / "mean", "int8")
    stored, about = load_tensors(tmp_path / "mean" / EXPORTED)
    assert stored["lora/adapters/q/b"].dtype == np.int8 and about["version"] == "2"
    arrays, _ = load_exported(tmp_path / "mean" / EXPORTED)
    assert arrays["a"].tolist() == [1.5, -4.5]
    expected = np.outer([1.5, -4.5], np.ones(4))
    np.testing.assert_allclose(arrays["lora/adapters/q/b"], expected, rtol=1e-6)


def test_the_start_has_a_share_in_the_mean(write, tmp_path):
    start = write("start", [8.0, 0.0])
    sha256 = hash_tensors(load_exported(start / EXPORTED)[0])
    alike = {"start": sha256, "init_from": str(start)}
    runs = [write(f"s{seed}", [seed, -3.0 * seed], seed=seed, **alike) for seed in (1, 3)]
    average(runs, tmp_path / "mean", start_share=0.25)
    assert load_tensors(tmp_path / "mean" / EXPORTED)[0]["a"].tolist() == [3.5, -4.5]
    assert RunDir(tmp_path / "mean").about()["start_share"] == 0.25

    save_tensors(start / EXPORTED, {"a": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="is not what the runs started from"):
        average(runs, tmp_path / "changed", start_share=0.25)
    alike["start"] = hash_tensors(load_exported(start / EXPORTED)[0])
    runs = [write(f"less{seed}", [seed, 1.0], seed=seed, **alike) for seed in (1, 3)]
    with pytest.raises(ConfigError, match="has no lora/adapters/q/b like the runs'"):
        average(runs, tmp_path / "more", start_share=0.25)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ConfigError, "differ in ratio", {"ratio": 8.0}),
        (ConfigError, "differ in init_from", {"init_from": "elsewhere"}),
        (CheckpointError, "other parameters", {"values": [1, 2, 3]}),
        (CheckpointError, "another base", {"base": "b" * 64}),
        (CheckpointError, "another start", {"start": "b" * 64}),
        (CheckpointError, "another profile", {"profile": "b" * 64}),
        (ConfigError, "the same seed", {"seed": CompressionConfig().seed}),
    ],
)
def test_unlike_runs_are_refused(write, tmp_path, error, message, changes):
    runs = [write("one", [1, 2]), write("two", **{"values": [1, 2], "seed": 7, **changes})]
    with pytest.raises(error, match=message):
        average(runs, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def write_start(folder, names, architecture="none"):
    """An earlier stage with these parameters; returns the hash that runs from it note."""
    arrays = {name: np.ones(2, np.float32) for name in names}
    folder.mkdir()
    metadata = provenance(CompressionConfig(architecture, loss_weights={"teacher_forcing": 1.0}))
    save_tensors(folder / EXPORTED, arrays, metadata)
    return hash_tensors(arrays)


OWN = "compressor/architecture/projection"
ENCODER = "selector/encoder/lora/adapters/q/a"


@pytest.mark.parametrize(
    ("architecture", "start", "new", "said"),
    [
        ("select", "none", ["selector/learned/project", "selector/gists"], ""),
        ("select", "none", [ENCODER, ENCODER[:-1] + "b"], f"has no {ENCODER}: each run drew them"),
        ("gist", "none", [OWN], f"has no {OWN}:"),
        ("pooling", "none", [OWN], ""),
        ("conv", "conv", ["compressor/gate"], ""),
        ("conv", "conv", ["compressor/connector/projection"], "connector/projection"),
        ("cross_attention", "gist", [OWN], f"has no {OWN}:"),
    ],
)
def test_what_each_run_drew_by_its_seed_has_no_mean(
    write, tmp_path, caplog, architecture, start, new, said
):
    had = ["lora/adapters/q/a", "lora/adapters/q/b"]
    had += [OWN] if start == "gist" else []  # of another architecture: not taken over
    noted = write_start(tmp_path / "start", had, start)
    shared = {"init_from": str(tmp_path / "start"), "architecture": architecture, "start": noted}
    names = {name: np.ones(2, np.float32) for name in [*had, *new]}
    runs = [write(f"s{seed}", [1], arrays=names, seed=seed, **shared) for seed in (1, 2)]
    if said:
        with pytest.raises(ConfigError, match=said):
            average(runs, tmp_path / "mean")
        assert not (tmp_path / "mean").exists()
    else:
        average(runs, tmp_path / "mean")
        assert not caplog.messages
    (tmp_path / "start" / EXPORTED).unlink()
    average(runs, tmp_path / "unknown")
    assert "make sure that it had all parameters" in caplog.text


def test_a_run_must_be_finished(write, tmp_path):
    runs = [write("one", [1]), write("two", [1], seed=7)]
    (runs[1] / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        average(runs, tmp_path / "mean")


def test_a_mean_needs_two_runs_of_one_start(write, tmp_path):
    with pytest.raises(ConfigError, match="two or more"):
        average([write("one", [1])], tmp_path / "mean")
    alone = [write(name, [1], init_from="") for name in ("two", "three")]
    with pytest.raises(ConfigError, match="init_from"):
        average(alone, tmp_path / "mean")

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from gistjax import sweep
from gistjax.compress import EXPORTED
from gistjax.compress.architectures import find_architecture
from gistjax.compress.budget import is_full_context
from gistjax.compress.compressor import Compressor
from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment import base
from gistjax.runtime.sharding import path_name
from gistjax.settings import walk
from gistjax.sweep import Run, check, choose, read_sweep, run_sweep
from gistjax.weights.registry import KNOWN

ROOT = Path(__file__).parents[1]
TINY = {
    "model.name": "tiny-random",
    "model.dtype": "float32",
    "lora.rank": 2,
    "max_steps": 1,
    "accumulation": 1,
    "batch_size": 1,
    "contrastive_layers": 1,
    "data.path": "sample",
    "data.context": "paragraph",
    "data.context_buckets": [512],
    "data.question_buckets": [256],
    "data.validation_examples": 9,
    "evaluation.batch_size": 1,
    "evaluation.max_answer_tokens": 2,
    "evaluation.bootstrap_samples": 20,
    "evaluation.baseline": False,
    "loss_weights.generation": 0,
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["sweep"])


def write(folder, content):
    path = folder / "sweep.json"
    path.write_text(json.dumps(content))
    return path


def test_settings_of_sweep_run_and_command_line_in_this_order(tmp_path):
    content = {
        "set": {"epochs": 2, "target_length": 32, "seed": 1},
        "runs": [
            {
                "name": "a",
                "config": "configs/seed/gist_m64.py",
                "set": {"epochs": 3, "ratios": [2, 4]},
            },
            {
                "name": "b",
                "config": "configs/seed/gist_m64.py",
                "set": {"init_from": "@a", "ratios": [], "seed": 5},
                "seeds": [7, 8],
            },
        ],
    }
    runs = read_sweep(write(tmp_path, content), Path("out"), ["--config.target_length=16"])
    assert [run.name for run in runs] == ["a", "b_s7", "b_s8"]
    configs = [run.config() for run in runs]
    assert [(c.epochs, c.target_length, c.seed) for c in configs] == [
        (3, 16, 1),
        (2, 16, 7),
        (2, 16, 8),
    ]
    assert configs[0].ratios == (2.0, 4.0) and configs[1].init_from == "out/a"
    assert configs[1].ratios == ()
    assert runs[0].command.startswith("python -m gistjax.train --config configs/seed/gist_m64.py ")


def test_a_grid_is_a_run_for_each_combination(tmp_path):
    entries = [
        {
            "name": "pretrain_{architecture}",
            "config": "configs/seed/ablation.py",
            "grid": {"architecture": ["gist", "conv"]},
        },
        {
            "name": "M{target_length}_{architecture}",
            "config": "configs/seed/ablation.py",
            "grid": {"architecture": ["gist", "conv"], "target_length": [32, 64]},
            "set": {"init_from": "@pretrain_{architecture}", "epochs": 2, "target_length": 8},
            "seeds": [1, 2],
        },
    ]
    runs = read_sweep(write(tmp_path, {"runs": entries}), Path("out"), [])
    assert (
        len(runs) == 10 and runs[-1].name == "M64_conv_s2" and runs[-1].after == ("pretrain_conv",)
    )
    config = runs[-1].config()
    assert (config.architecture, config.target_length, config.seed) == ("conv", 64, 2)
    assert config.epochs == 2 and config.init_from == "out/pretrain_conv"


def test_lists_of_numbers_and_of_texts_are_settings(tmp_path):
    settings = {"lora.targets": ["q", "v"], "ratios": [2, 4.0], "data.context_buckets": [512]}
    entry = {"name": "a", "config": "configs/qa.py", "set": settings}
    [run] = read_sweep(write(tmp_path, {"runs": [entry]}), tmp_path, [])
    config = run.config()
    assert config.lora.targets == ("q", "v") and config.ratios == (2.0, 4.0)
    assert config.data.context_buckets == (512,)


def test_config_files_of_0_1_have_their_new_names(tmp_path):
    names = {
        "configs/pooling_m32.py": "configs/seed/ablation.py:pooling,32",
        "configs/base.py": "configs/seed/ablation.py",
        "configs/gist_m64.py": "configs/seed/gist_m64.py",
        "configs/qa_m4.py": "configs/qa_m4.py",
        "configs/qa.py": "configs/qa.py",
    }
    entries = [{"name": f"r{i}", "config": name} for i, name in enumerate(names)]
    path = write(tmp_path, {"runs": entries})
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        assert [run.file for run in read_sweep(path, tmp_path, [])] == list(names.values())


def test_without_a_file_of_0_1_a_sweep_means_the_configs_of_now(tmp_path):
    names = ["configs/gist_m64.py", "configs/seed/gist_m64.py", "configs/qa.py"]
    entries = [{"name": f"r{i}", "config": name} for i, name in enumerate(names)]
    path = write(tmp_path, {"runs": entries})
    assert [run.file for run in read_sweep(path, tmp_path, [])] == names


@pytest.mark.parametrize("name", ["ablation", "gist_m64"])
def test_slots_of_0_2_are_told_where_their_config_is_now(tmp_path, name):
    entry = {
        "name": "{architecture}",
        "config": f"configs/{name}.py",
        "grid": {"architecture": ["pooling", "gist"]},
    }
    path = write(tmp_path, {"runs": [entry]})
    with pytest.raises(ConfigError, match=f"^pooling: .* take configs/seed/{name}.py"):
        check(read_sweep(path, tmp_path / "out", []))


def test_a_setting_of_0_1_is_spelt_as_now(tmp_path):
    entry = {"name": "a", "config": "configs/qa.py", "set": {"slot_start": "head"}}
    [run] = read_sweep(write(tmp_path, {"runs": [entry]}), tmp_path, [])
    assert run.config().slot_start == "architecture"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], r"is not a sweep \(a value is of another kind\)"),
        ({}, r"is not a sweep \(there is no 'runs'\)"),
        ({"runs": [{"config": "configs/seed/gist_m64.py"}]}, r"\(there is no 'name'\): it needs"),
        ({"runs": [{"name": "a"}]}, r"\(there is no 'config'\): it needs"),
        ({"runs": [{"name": "a", "config": "x", "set": 3}]}, "is not a sweep"),
        ({"runs": [{"name": "a", "config": "x"}] * 2}, "two runs of one name: a"),
        (
            {"runs": [{"name": "a", "config": "x", "grid": {"seed": [1, 2]}}]},
            "holds each of its keys",
        ),
        ({"runs": [{"name": "a", "config": "x", "grid": {"seed": 1}}]}, "is not a sweep"),
        (
            {
                "runs": [
                    {"name": "a", "config": "x"},
                    {"name": "b", "config": "x", "set": {"init_from": "@aa"}},
                ]
            },
            "'@aa' is none of the runs before it; did you mean 'a'",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(content, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        read_sweep(write(tmp_path, content), tmp_path, [])


def test_a_mistake_is_found_before_the_first_run(tmp_path):
    runs = [
        {"name": "a", "config": "configs/seed/gist_m64.py", "set": TINY},
        {"name": "b", "config": "configs/seed/gist_m64.py", "set": {**TINY, "slot_startt": "head"}},
    ]
    with pytest.raises(ConfigError, match="slot_start"):
        run_sweep(read_sweep(write(tmp_path, {"runs": runs}), tmp_path / "out", []))
    assert not (tmp_path / "out").exists()


def test_a_run_whose_start_is_neither_chosen_nor_finished_is_refused(tmp_path):
    runs = [
        {"name": "first", "config": "configs/seed/gist_m64.py"},
        {"name": "second", "config": "configs/seed/gist_m64.py", "set": {"init_from": "@first"}},
    ]
    path = write(tmp_path, {"set": TINY, "runs": runs})
    first, second = read_sweep(path, tmp_path / "out", [])
    with pytest.raises(ConfigError, match="second needs first, which is not finished"):
        sweep.check([second])
    assert sweep.check([first, second])
    taught = {"teacher": "@first", "loss_weights.distillation": 1}
    runs[1] = {**runs[1], "set": taught}
    (tmp_path / "taught").mkdir()
    other = write(tmp_path / "taught", {"set": TINY, "runs": runs})
    with pytest.raises(ConfigError, match="second needs first, which is not finished"):
        sweep.check(read_sweep(other, tmp_path / "out", [])[1:])
    elsewhere = read_sweep(path, tmp_path / "out", ["--config.init_from=elsewhere"])
    assert sweep.check(elsewhere[1:])
    first.workdir.mkdir(parents=True)
    (first.workdir / EXPORTED).touch()
    assert sweep.check([second])


def test_the_mean_of_an_earlier_runs_seeds_as_a_start(tmp_path):
    runs = [
        {"name": "first", "config": "configs/seed/gist_m64.py", "seeds": [1, 2]},
        {
            "name": "second",
            "config": "configs/seed/gist_m64.py",
            "set": {"init_from": "@first_mean"},
        },
    ]
    *_, second = read_sweep(write(tmp_path, {"set": TINY, "runs": runs}), tmp_path / "out", [])
    mean = tmp_path / "out/first_mean"
    assert second.config().init_from == str(mean) and second.after == ("first_mean",)
    with pytest.raises(
        ConfigError, match=r"gistjax.average --run \S+/first_s… .*--output \S+/first_mean"
    ):
        sweep.check([second])
    mean.mkdir(parents=True)
    (mean / EXPORTED).touch()
    assert sweep.check([second])
    del runs[0]["seeds"]
    with pytest.raises(ConfigError, match="none of the runs before it"):
        read_sweep(write(tmp_path, {"set": TINY, "runs": runs}), tmp_path / "out", [])


@pytest.mark.slow
def test_stages_run_in_turn_finished_ones_are_skipped_and_a_failed_one_stops_none(tmp_path, caplog):
    runs = [
        {"name": "first", "config": "configs/seed/ablation.py:pooling,64"},
        {
            "name": "broken",
            "config": "configs/seed/ablation.py:pooling,64",
            "set": {"init_from": "nowhere"},
        },
        {
            "name": "second",
            "config": "configs/seed/ablation.py:conv,64",
            "set": {"init_from": "@first"},
        },
    ]
    path = write(tmp_path, {"set": TINY, "runs": runs})
    found = run_sweep(read_sweep(path, tmp_path, []))
    assert found["first"]["steps"] == found["second"]["steps"] == 1
    assert "nowhere" in found["broken"]["error"]
    times = {
        name: (tmp_path / name / "metrics.json").stat().st_mtime_ns for name in ("first", "second")
    }
    with caplog.at_level("INFO"):
        again = run_sweep(read_sweep(path, tmp_path, []))
    assert "2 of 3 runs are finished, and skipped" in caplog.text
    assert again["first"] == found["first"]
    (tmp_path / "second/metrics.json").write_text('{"final_f1": 0.')
    assert "metrics.json is damaged" in run_sweep(read_sweep(path, tmp_path, []))["second"]["error"]
    times.pop("second")
    for name, time in times.items():
        assert (tmp_path / name / "metrics.json").stat().st_mtime_ns == time


def test_a_base_is_loaded_for_each_model_and_no_oftener(tmp_path, monkeypatch):
    loaded, given = [], []
    monkeypatch.setattr(base, "load_pretrained", lambda config: loaded.append(config) or config)
    run = lambda config, workdir, base: given.append(base) or SCORED  # noqa: E731
    monkeypatch.setattr(sweep.train, "run_single_ablation", run)
    runs = [
        {"name": name, "config": "configs/seed/gist_m64.py", "set": {**TINY, **changes}}
        for name, changes in (
            ("a", {}),
            ("b", {"target_length": 32}),
            ("c", {"model.dtype": "bfloat16"}),
            ("d", {"model.dtype": "bfloat16", "data.task": "question"}),
        )
    ]
    run_sweep(read_sweep(write(tmp_path, {"runs": runs}), tmp_path, []))
    assert [config.model.dtype for config in given] == ["float32"] * 2 + ["bfloat16"] * 2
    assert len(loaded) == 3 and given[0] is given[1] and given[3].data.task == "question"


SCORED = {
    "final_f1": 0.5,
    "final_f1_interval": [0.25, 0.75],
    "final_em": 0.125,
    "effective_compression_ratio": 7.25,
}


def test_the_line_of_a_run_has_its_own_numbers():
    assert sweep._line("a", SCORED) == f"{'a':32}  7.25 x  F1 0.500 [0.250, 0.750]  EM 0.125"
    control = {**SCORED, "effective_compression_ratio": None, "shuffled_f1": 0.0625}
    assert sweep._line("a", control).endswith(
        "         F1 0.500 [0.250, 0.750]  EM 0.125  shuffled F1 0.062"
    )
    assert sweep._line("a", {"losses": {"loss": 2.5}, "steps": 3}) == f"{'a':32} 3 steps, loss 2.5"
    assert sweep._line("a", {"error": "?"}) == f"{'a':32} failed"


def test_the_exit_code_tells_of_a_failed_run(tmp_path, monkeypatch, capsys):
    found = {"a": {"error": "broken"}, "b": SCORED}
    monkeypatch.setattr(sweep, "run_sweep", lambda runs: found)
    path = write(tmp_path, {"runs": [{"name": "a", "config": "configs/seed/gist_m64.py"}]})
    args = SimpleNamespace(sweep=path, out=tmp_path, only=[], list=False, dry_run=False)
    with pytest.raises(ConfigError, match="which sweep"):
        sweep.main(CompressionConfig(), SimpleNamespace(**{**vars(args), "sweep": ""}))
    with pytest.raises(SystemExit) as stopped:
        sweep.main(CompressionConfig(), args)
    assert stopped.value.code == 1 and json.loads(capsys.readouterr().out)["a"]["error"] == "broken"


def test_a_directory_with_another_configuration_is_refused_before_the_first_run(tmp_path):
    runs = [{"name": name, "config": "configs/seed/gist_m64.py", "set": TINY} for name in "ab"]
    path = write(tmp_path, {"runs": runs})
    theirs = read_sweep(path, tmp_path, ["--config.seed=1"])[1].config()
    (tmp_path / "b" / "checkpoint").mkdir(parents=True)
    stored = {"config": theirs.to_json(), "base_sha256": "0" * 64}
    (tmp_path / "b" / "config.json").write_text(json.dumps(stored))
    for finished in (False, True):
        if finished:
            (tmp_path / "b" / "metrics.json").write_text('{"losses": {}}')
            (tmp_path / "b" / "checkpoint").rmdir()
        with pytest.raises(CheckpointError, match="seed was 1 and is 42"):
            run_sweep(read_sweep(path, tmp_path, []))
        assert not (tmp_path / "a").exists()


def test_a_missing_file_far_from_all_lists_what_is_there(tmp_path):
    (tmp_path / "s.json").touch()
    with pytest.raises(ConfigError, match=r"no \S+unlike_any.json; there are \S+/s.json"):
        sweep.read_sweep(tmp_path / "unlike_any.json", tmp_path, [])


def test_a_mistyped_file(tmp_path):
    write(tmp_path, {"runs": []})
    with pytest.raises(
        ConfigError, match=r"there is no \S+swep.json; did you mean '\S+/sweep.json'"
    ):
        read_sweep(tmp_path / "swep.json", tmp_path, [])


def test_chosen_runs_and_a_mistyped_one():
    runs = [Run(name, "x", (), Path(name)) for name in ("M32_gist", "M64_gist")]
    assert choose(runs, []) == runs and choose(runs, ["M64_gist"]) == runs[1:]
    assert choose(runs, ["*_gist"]) == runs and choose(runs, ["M6*", "M64_gist"]) == runs[1:]
    with pytest.raises(ConfigError, match="did you mean 'M32_gist'"):
        choose(runs, ["M32_gits"])


TEXT = ["--config.text.path=text"]
SMOLLM2 = KNOWN["smollm2-135m-instruct"].config
SWEEPS = sorted((ROOT / "launch/sweeps").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_are_valid(path):
    for run in read_sweep(path, Path("out"), TEXT):
        config = run.config()
        assert config.model.path == "", "weights are the user's to give"
        start = Path(config.init_from)
        if config.init_from and not run.after and not (start / EXPORTED).is_file():
            # a run of another sweep, by its file's name
            other = read_sweep(path.with_name(f"{start.parent.name}.json"), start.parent, TEXT)
            assert start in {run.workdir for run in other}


def architecture_shapes(config):
    def make():
        return Compressor(SMOLLM2, SMOLLM2, config, jax.random.key(0)).architecture

    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(nnx.eval_shape(make)))
    return {path_name(key): leaf.shape for key, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_what_a_run_of_a_sweep_starts_from_fits(path):
    configs = {run.workdir: run.config() for run in read_sweep(path, Path("out"), TEXT)}
    for config in configs.values():
        earlier = configs.get(Path(config.init_from))
        if earlier is None or config.selects or not config.compresses:
            continue
        if earlier.architecture != config.architecture:
            continue  # starts anew
        kind, old = find_architecture(config.architecture), architecture_shapes(earlier)
        for name, shape in architecture_shapes(config).items():
            resized = kind.resize(name, np.broadcast_to(np.float32(0), old[name]), shape)
            assert resized.shape == shape, (config.architecture, name)


def test_a_run_that_does_not_fit_the_device_is_reported(tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("gistjax.train.run_single_ablation", out_of_memory)
    runs = [{"name": "a", "config": "configs/seed/gist_m64.py"}]
    found = run_sweep(read_sweep(write(tmp_path, {"set": TINY, "runs": runs}), tmp_path, []))
    assert "Out of memory" in found["a"]["error"]


def test_the_sweep_over_tasks_has_one_full_context(tmp_path):
    configs = check(read_sweep(ROOT / "launch/sweeps/tasks.json", tmp_path / "out", []))
    settings = {name: {k: v for k, v, _ in walk(one)} for name, one in configs.items()}
    assert list(filter(lambda name: is_full_context(settings[name]), configs)) == ["full_context"]

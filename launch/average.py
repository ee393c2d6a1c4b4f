"""The mean of finished runs' parameters, as a run of its own (Wortsman et al. 2022, arXiv:2203.05482).

    python -m launch.average --run runs/a_s42 --run runs/a_s43 --run runs/a_s44 --output runs/a_mean [--dtype float16]
    python -m gistjax.evaluate --run runs/a_mean

Of runs that differ in their seed alone and started from the same weights (`init_from`): what started at different ones does
not lie close enough for its mean to work. The output has the first run's configuration, and the runs' names beside it;
answering costs what one run costs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import flags

from gistjax import cli
from gistjax.errors import CheckpointError, ConfigError
from gistjax.files import make_folder
from gistjax.results import provenance, read_config, write_json
from gistjax.trained import EXPORTED, load_config
from gistjax.weights.checked import load_tensors, save_tensors

SAME = ("base_sha256", "prompt_sha256")
"""Of a run's `config.json`, beside the configuration."""


def average(runs: list[Path], output: Path, dtype: str = "float32") -> None:
    """Writes `config.json` and `compressor.safetensors` of the runs' mean.

    Raises:
        ConfigError: if there are fewer than two runs, they differ in more than their seed, or start from nothing.
        CheckpointError: if a run is missing, damaged, or has other parameters or another base, or the output is a run already.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise ConfigError(
            "give two or more different runs, as in --run runs/a_s42 --run runs/a_s43."
        )
    if any((output / name).exists() for name in ("config.json", "checkpoint", EXPORTED)):
        raise CheckpointError(f"{output} is a run already: give another --output.")
    config, about = load_config(runs[0]), read_config(runs[0])
    if not config.init_from:
        raise ConfigError(f"{runs[0]} has no init_from: only runs of one start have a mean.")
    means: dict[str, np.ndarray] = {}
    for run in runs:
        if replace(load_config(run), seed=config.seed) != config:
            raise ConfigError(f"{run} and {runs[0]} differ in more than their seed.")
        theirs, (arrays, _) = read_config(run), load_tensors(run / EXPORTED)
        parts = {name: array.astype(np.float64) / len(runs) for name, array in arrays.items()}
        means = means or {name: np.zeros_like(part) for name, part in parts.items()}
        same_base = all(theirs.get(key) == about.get(key) for key in SAME)
        if not same_base or _shapes(parts) != _shapes(means):
            raise CheckpointError(f"{run} has other parameters or another base than {runs[0]}.")
        means = {name: means[name] + part for name, part in parts.items()}
    make_folder(output)
    write_json(output / "config.json", {**about, "mean_of": [run.name for run in runs]})
    rounded = {name: mean.astype(dtype) for name, mean in means.items()}
    save_tensors(output / EXPORTED, rounded, provenance(config))


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def main(args: flags.FlagValues) -> None:
    """The command."""
    if not args.output:
        raise ConfigError("--output is missing: the directory of the mean.")
    average([Path(run) for run in args.run], Path(args.output), args.dtype)
    cli.print_result({"output": args.output, "runs": args.run})


if __name__ == "__main__":
    flags.DEFINE_multi_string("run", [], "Directory of a finished run; two or more.")
    flags.DEFINE_string("output", "", "Directory to write to.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Of what is written.")
    cli.run_bare(main)

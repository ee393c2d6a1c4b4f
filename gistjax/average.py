"""Average the parameters of finished runs into a run of its own.

    python -m gistjax.average --run runs/a_s42 --run runs/a_s43 --run runs/a_s44
        --output runs/a_mean [--dtype float16|int8] [--start 0.25]
    python -m gistjax.evaluate --run runs/a_mean

The runs must differ in their seed alone and start from the same weights (`init_from`): from
different ones they end too far apart for their mean to work. What the start did not have must begin
alike whatever the seed, as a scorer does, and an adapter does not. The output has the first run's
configuration with the names of all runs, and answers at the cost of one; int8 is of its matrices
(gistjax/compress/exported.py). The method is that of Wortsman et al. 2022, arXiv:2203.05482. With
--start the weights that the runs started from have a share in it: less of what the runs learned,
more of what the start knew (Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from gistjax.compress.exported import ADAPTER, AS_IT_IS, load_exported, packed, save_exported
from gistjax.compress.parameters import ARCHITECTURE, find_exported, taken_over
from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import RunDir, provenance
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import make_folder, write_json
from gistjax.runtime.tensors import hash_tensors
from gistjax.runtime.texts import user_path
from gistjax.settings import PARAMETERS_OF_0_1

log = logging.getLogger(__name__)


def average(
    runs: list[Path], output: Path, dtype: str = "float32", start_share: float = 0.0
) -> None:
    """Write `config.json` and `compressor.safetensors` of the runs' mean.

    Args:
        start_share: of the weights that the runs started from, from 0 to 1.

    Raises:
        ConfigError: if there are fewer than two runs, they differ in more or less than their seed,
            or start from nothing; or if the start is to have a share and has other parameters.
        CheckpointError: if a run is missing, not finished or damaged, has other parameters or
            another base, or is a mean itself; or if there is something in the output folder.
    """
    if len(runs) < 2:
        raise ConfigError("give two or more runs, as in --run runs/a_s42 --run runs/a_s43.")
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output} has files in it: give another --output.")
    directories = [RunDir(run) for run in runs]
    configs = [run.config() for run in directories]
    check_alike(runs, configs)
    abouts = [run.about() for run in directories]
    tensors = [load_exported(run.finished(run.exported))[0] for run in directories]
    for run, about, arrays in zip(runs, abouts, tensors, strict=True):
        if "mean_of" in about or not RunDir(run).is_finished:
            raise CheckpointError(f"{run} is a mean already, or a run that is not finished.")
        if differing := _differing(about, abouts[0]):
            raise CheckpointError(f"{run} has another {' and '.join(differing)} than {runs[0]}.")
        if _shapes(arrays) != _shapes(tensors[0]):
            raise CheckpointError(f"{run} has other parameters than {runs[0]}.")
    check_drawn(runs[0], configs[0], abouts[0], list(tensors[0]))
    kept = "float32" if dtype == "int8" else dtype
    means = {
        name: np.mean([arrays[name] for arrays in tensors], axis=0, dtype=np.float64).astype(kept)
        for name in tensors[0]
    }
    if start_share:
        start = read_start(configs[0], abouts[0], _shapes(means))
        means = {
            name: ((1 - start_share) * mean + start_share * start[name]).astype(kept)
            for name, mean in means.items()
        }
    if dtype == "int8":
        means = packed(means)
    make_folder(output)
    share = {"start_share": start_share} if start_share else {}
    names = [run.name for run in runs]
    write_json(RunDir(output).config_file, {**abouts[0], "mean_of": names, **share})
    save_exported(RunDir(output).exported, means, provenance(configs[0]))


def check_alike(runs: list[Path], configs: list[CompressionConfig]) -> None:
    """Make sure that runs started from the same weights and differ in their seed alone.

    Raises:
        ConfigError: naming what else differs.
    """
    first = configs[0]
    if not first.init_from:
        raise ConfigError(f"{runs[0]} has no init_from: only runs of one start have a mean.")
    for run, config in zip(runs[1:], configs[1:], strict=True):
        ours, theirs = first.to_json(), replace(config, seed=first.seed).to_json()
        if differing := [key for key in ours if ours[key] != theirs[key]]:
            raise ConfigError(f"{run} and {runs[0]} differ in {', '.join(differing)}.")
    if len({config.seed for config in configs}) < len(configs):
        raise ConfigError("two of the runs have the same seed: their mean gains nothing.")


def check_drawn(
    run: Path, config: CompressionConfig, about: dict[str, Any], names: list[str]
) -> None:
    """Make sure that no parameter was drawn by each run's own seed: the start had them all.

    Raises:
        ConfigError: naming those that it did not have.
    """
    try:
        file = find_exported(user_path(config.init_from))
        theirs = hash_tensors(load_exported(file)[0])
    except CheckpointError:
        theirs = ""
    if not theirs or about.get("start_sha256", theirs) != theirs:
        log.warning(
            "warning: the start of %s is no longer at %s: make sure that it had all parameters. "
            "Those that each run drew by its own seed have no mean.",
            run,
            config.init_from,
        )
        return
    had = taken_over(file, config.architecture)
    new = [now for name in names if (now := name.replace(*PARAMETERS_OF_0_1)) not in had]
    if drawn := [name for name in new if _is_drawn(name, config.architecture)]:
        shown = ", ".join(drawn[:3]) + (", …" if len(drawn) > 3 else "")
        raise ConfigError(
            f"{config.init_from}, from which the runs start, has no {shown}: each run drew them by "
            "its own seed, and their mean is of unlike networks. Train one run, and start the "
            "others from it."
        )


def read_start(
    config: CompressionConfig, about: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the weights by name that a run started from.

    Args:
        shapes: of the run's own weights, by name.

    Raises:
        CheckpointError: if they are no longer there.
        ConfigError: if the run has more weights, or of other shapes.
    """
    start = load_exported(find_exported(user_path(config.init_from)))[0]
    if hash_tensors(start) != about.get("start_sha256"):
        raise CheckpointError(
            f"{config.init_from} is not what the runs started from: put that back, or leave "
            "--start out."
        )
    start = {name.replace(*PARAMETERS_OF_0_1): array for name, array in start.items()}
    if unlike := [name for name in shapes if shapes[name] != _shapes(start).get(name)]:
        raise ConfigError(
            f"{config.init_from} has no {unlike[0]} like the runs': leave --start out."
        )
    return start


def _is_drawn(name: str, architecture: str) -> bool:
    """Whether a parameter begins with random numbers that depend on the seed.

    Those of a scorer do not, and the windows of `pooling` begin as means.
    """
    if adapter := ADAPTER.search(name):
        return adapter["factor"] == "a"
    if name.startswith("compressor/connector/"):
        return True
    own = name.startswith(ARCHITECTURE) and architecture != "pooling"
    return own and not AS_IT_IS.search(name)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return what differs by its hash; of start and teacher earlier versions noted none."""
    keys = {name: f"{name}_sha256" for name in ("base", "prompt", "start", "teacher", "profile")}
    noted = one.keys() & other.keys() | {"base_sha256", "prompt_sha256"}
    return [name for name, key in keys.items() if key in noted and one.get(key) != other.get(key)]


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def main(args: flags.FlagValues) -> None:
    """Average the runs that the flags name."""
    if not args.output:
        raise ConfigError("--output is missing: the directory of the mean.")
    average([Path(run) for run in args.run], Path(args.output), args.dtype, args.start)
    cli.print_result({"output": args.output, "runs": args.run})


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", "", "Directory of a finished run; two or more", values, many=True)
    define_path("output", "", "Directory to write to.", values)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "float16", "int8"],
        "Type of the numbers written.",
        flag_values=values,
    )
    about = "Share of the weights that the runs started from, from 0 to 1."
    flags.DEFINE_float("start", 0.0, about, 0, 1, flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

"""Make several runs one after another in one process, which loads the base once.

    python -m gistjax.sweep --sweep launch/sweeps/controls.json --out runs/controls
        [--config.KEY=VALUE …] [--only NAME,…]

A sweep is a JSON file: `{"set": {KEY: VALUE}, "runs": [{"name", "config", "set": {KEY: VALUE},
"seeds": [..]}]}`. Each run is a config (a file, or `FILE:ARGUMENTS`, as `--config` takes it) with
the settings of the sweep, of the run and of the command line, in this order. It goes to `OUT/NAME`;
with seeds, to `OUT/NAME_s1` and so on. As the value of `init_from` or `teacher`, `@NAME` is an
earlier run of the sweep, and `@NAME_mean` the mean of an earlier run's seeds, which `python -m
gistjax.average` makes. Finished runs are skipped and interrupted ones resume. A failed run does not
stop the others, but the exit code is 1.

An entry with `"grid": {KEY: [VALUE, …]}` is one run for each combination of the values; `{KEY}` in
its name and its settings becomes the value: `"name": "M{target_length}_{architecture}"`. In a clone
of the repository, `python -m launch.ray_sweep` makes the same runs side by side.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from gistjax import train
from gistjax.config import ARCHITECTURES, CompressionConfig, SelectConfig
from gistjax.errors import ConfigError, GistjaxError, did_you_mean
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.validation import check_trains, validate

log = logging.getLogger(__name__)

LINKS = ("init_from", "teacher")
"""Settings that can name another run of the sweep."""
SEED, MEAN = re.compile(r"_s\d+$"), "_mean"
"""Endings of the names of a run's seeds, and of their mean."""
OLD_CONFIG = re.compile(r"\b([a-z_]+)_m(32|64|128)\.py$")
"""Names of 0.1's config files for one architecture and size, such as `configs/gist_m32.py`."""
OLD_VALUES = {("slot_start", "head"): "architecture"}
"""Settings of 0.1 as they are spelt now."""
SLOTS_OF_0_2 = re.compile(r"(?:^|configs/)(ablation|gist_m64)\.py\b")
"""Configs that trained slots up to 0.2; these are in `configs/seed` now."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    file: str  # as --config takes it
    overrides: tuple[str, ...]  # --config.KEY=VALUE
    workdir: Path
    after: tuple[str, ...] = ()  # the runs that this one needs

    @property
    def command(self) -> str:
        """Return the command line that does the same."""
        words = ["python", "-m", "gistjax.train", "--config", self.file, *self.overrides]
        return shlex.join([*words, f"--workdir={self.workdir}"])

    def config(self) -> CompressionConfig:
        """Return the resolved configuration.

        Raises:
            ConfigError: if the file or a setting is wrong.
        """
        argv = ["sweep", "--config", self.file, *self.overrides]
        config = cli.parse(argv)
        moved = SLOTS_OF_0_2.search(self.file)
        if moved and config.architecture in ARCHITECTURES and config.select != SelectConfig():
            raise ConfigError(
                f"{self.name}: {self.file} keeps entries, and architecture="
                f"{config.architecture!r} makes slots: take configs/seed/{moved[1]}.py, which is "
                "what this file was before 0.3."
            )
        validate(config)
        check_trains(config)
        return config


def read_sweep(path: Path, out: Path, overrides: list[str]) -> list[Run]:
    """Return the runs of a sweep file.

    Args:
        overrides: `--config.KEY=VALUE` of the command line, for all runs.

    Raises:
        ConfigError: if the file cannot be read, or is not as the module describes.
    """
    runs: list[Run] = []
    try:
        sweep = json.loads(path.read_bytes())
        old = any(_current(entry["config"]) != entry["config"] for entry in sweep["runs"])
        for entry in sweep["runs"]:
            for name, settings in _expand(entry):
                settings = {**(sweep.get("set") or {}), **settings}
                words = (*_words(settings, out), *overrides)
                after = tuple(_earlier(settings, runs))
                runs.append(Run(name, _current(entry["config"], old), words, out / name, after))
    except FileNotFoundError:
        raise ConfigError(_no_sweep(path)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a sweep ({_problem(error)}): it needs "
            '{"runs": [{"name", "config", "set": {…}}]}.'
        ) from error
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{path} has two runs of one name: {', '.join(twice)}. The name of a grid holds each "
            'of its keys, as in "M{target_length}_{architecture}".'
        )
    return runs


def _problem(error: Exception) -> str:
    """Return what is wrong with a sweep file, from what reading it raised."""
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}"
    if isinstance(error, TypeError | AttributeError):
        return "a value is of another kind"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _no_sweep(path: Path) -> str:
    """Return the message on a sweep file that is not there: those that are, beside it or ours."""
    folders = dict.fromkeys([path.parent, Path("launch/sweeps")])
    there = [str(file) for folder in folders for file in sorted(folder.glob("*.json"))]
    near = difflib.get_close_matches(path.name, [Path(name).name for name in there], 1, 0.75)
    if near:
        found = next(name for name in there if Path(name).name == near[0])
        return f"there is no {path}; did you mean {found!r}?"
    listed = f"there are {', '.join(there)}" if there else "a clone has some in launch/sweeps"
    return f"there is no {path}; {listed}."


def _current(name: str, old: bool = False) -> str:
    """Return a config's name; one of 0.1's, whose file is gone, as it is spelt now.

    Args:
        old: the sweep names such files, so it is of 0.1, and means what `gist_m64.py` was then.
    """
    if old:
        name = re.sub(r"\bconfigs/gist_m64\.py$", "configs/seed/gist_m64.py", name)
    if name.endswith("configs/base.py") and not Path(name).exists():
        return name.replace("base.py", "seed/ablation.py")  # every default
    found = OLD_CONFIG.search(name)
    kept = name.endswith("gist_m64.py") or Path(name).exists()
    if found is None or kept or found[1] not in ARCHITECTURES:
        return name
    return f"{name[: found.start()]}seed/ablation.py:{found[1]},{found[2]}"


def _expand(entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and settings of each run of an entry."""
    grid, seeds = entry.get("grid") or {}, entry.get("seeds") or []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        settings = {key: _fill(value, chosen) for key, value in (entry.get("set") or {}).items()}
        settings, name = {**settings, **chosen}, _fill(entry["name"], chosen)
        if not seeds:
            yield name, settings
        for seed in seeds:
            yield f"{name}_s{seed}", {**settings, "seed": seed}


def _fill(text: Any, chosen: Mapping[str, Any]) -> Any:
    """Return the text with each `{KEY}` replaced; other values as they are."""
    if isinstance(text, str):
        for key, value in chosen.items():
            text = text.replace("{" + key + "}", str(value))
    if isinstance(text, list):
        return [_fill(item, chosen) for item in text]
    return text


def _earlier(settings: Mapping[str, Any], runs: list[Run]) -> Iterator[str]:
    """Yield the runs, and the means of runs, that settings name as `@NAME`.

    Raises:
        ConfigError: if no run before this one has such a name.
    """
    names = [run.name for run in runs]
    names += {SEED.sub(MEAN, name) for name in names if SEED.search(name)}
    for key in LINKS:
        value = str(settings.get(key, ""))
        if value.startswith("@"):
            if value[1:] not in names:
                raise ConfigError(
                    f"{key}={value!r} is none of the runs before it{did_you_mean(value[1:], names)}"
                )
            yield value[1:]


def _words(settings: Mapping[str, Any], out: Path) -> Iterator[str]:
    """Yield each setting as `--config.KEY=VALUE`."""
    for key, value in _leaves(settings):
        if key in LINKS and str(value).startswith("@"):
            value = out / value[1:]
        value = OLD_VALUES.get((key, str(value)), value)
        yield f"--config.{key}={tuple(value) if isinstance(value, list) else value}"


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values, those of groups one by one.

    Raises:
        ConfigError: if a value is null.
    """
    for key, value in settings.items():
        if value is None:
            raise ConfigError(f"{prefix}{key} is null: give it a value, or leave the key out.")
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def chosen_runs(args: flags.FlagValues) -> list[Run]:
    """Return the runs that a command line asks for.

    Raises:
        ConfigError: if it names no sweep, or runs or settings that do not exist.
    """
    if not args.sweep:
        raise ConfigError("which sweep? Give --sweep FILE; launch/sweeps has some.")
    return choose(read_sweep(Path(args.sweep), Path(args.out), cli.overrides()), args.only)


def choose(runs: list[Run], only: list[str]) -> list[Run]:
    """Return the runs with these names or patterns, such as `M64_*`; all runs if there are none.

    Raises:
        ConfigError: if no run has a name.
    """
    names = [run.name for run in runs]
    for name in only:
        if not fnmatch.filter(names, name):
            raise ConfigError(f"--only {name!r} is no run of the sweep{did_you_mean(name, names)}")
    wanted = [name for pattern in only for name in fnmatch.filter(names, pattern)]
    return [run for run in runs if not only or run.name in wanted]


def check(runs: list[Run]) -> dict[str, CompressionConfig]:
    """Return the configuration of each run, after finding every mistake before the first run
    starts.

    Raises:
        ConfigError: if a setting is wrong.
        CheckpointError: if a run's directory holds a run of another configuration.
    """
    configs = {run.name: run.config() for run in runs}
    for run in runs:
        directory = RunDir(run.workdir)
        if not directory.is_finished:
            _check_start(run, configs)
            directory.claim(configs[run.name])
    for run in runs:
        directory = RunDir(run.workdir)
        if directory.is_finished:  # it needs no checkpoint
            directory.check_same(configs[run.name])
    return configs


def _check_start(run: Run, configs: Mapping[str, CompressionConfig]) -> None:
    """Refuse a run that starts from one that is neither chosen nor finished."""
    for name in run.after:
        start, config = run.workdir.parent / name, configs[run.name]
        if name in configs or str(start) not in (config.init_from, config.teacher):
            continue
        if not RunDir(start).exported.is_file():
            fix = "add it to --only"
            if name.endswith(MEAN):
                seed = start.parent / name.removesuffix(MEAN)
                seeds = f"--run {seed}_s… --run {seed}_s…"
                fix = f"python -m gistjax.average {seeds} --output {start}"
            raise ConfigError(f"{run.name} needs {name}, which is not finished in {start}: {fix}.")


def run_sweep(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Make the runs that are not finished; return the metrics of each run, or its error."""
    import jax

    from gistjax.experiment.base import load_pretrained

    configs = check(runs)
    if finished := sum(RunDir(run.workdir).is_finished for run in runs):
        log.info("%d of %d runs are finished, and skipped", finished, len(runs))
    found: dict[str, dict[str, Any]] = {}
    pretrained_bases: dict[Any, Any] = {}
    for run in runs:
        config = configs[run.name]
        key = (config.model, config.mesh, config.deterministic, config.data.task_names)
        try:
            if RunDir(run.workdir).is_finished:
                found[run.name] = RunDir(run.workdir).metrics()
                continue
            log.info("\n%s", run.command)
            if key not in pretrained_bases:
                pretrained_bases.clear()  # one base in memory at a time
                pretrained_bases[key] = load_pretrained(config)
            found[run.name] = train.run_single_ablation(config, run.workdir, pretrained_bases[key])
        except (
            GistjaxError,
            jax.errors.JaxRuntimeError,
        ) as error:  # the latter where memory is out
            log.error("%s failed: %s", run.name, error)
            found[run.name] = {"error": str(error)}
        log.info("%s", _line(run.name, found[run.name]))
    return found


def _line(name: str, metrics: Mapping[str, Any]) -> str:
    """Return the line that a person reads of a run."""
    if "error" in metrics:
        return f"{name:32} failed"
    if "losses" in metrics:
        return f"{name:32} {metrics['steps']} steps, loss {metrics['losses'].get('loss')}"
    low, high = metrics["final_f1_interval"]
    ratio = metrics["effective_compression_ratio"]
    f1, em = f"{metrics['final_f1']:.3f} [{low:.3f}, {high:.3f}]", f"{metrics['final_em']:.3f}"
    line = f"{name:32} {f'{ratio:5.2f} x' if ratio else '':7}  F1 {f1}  EM {em}"
    shuffled = metrics.get("shuffled_f1")
    return line if shuffled is None else f"{line}  shuffled F1 {shuffled:.3f}"


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Make the runs, or print their commands or plans."""
    runs = chosen_runs(args)
    if args.list:
        print("\n".join(run.command for run in runs))
        return
    if args.dry_run:
        from gistjax.estimate.plan import plan
        from gistjax.weights.registry import resolve

        cli.print_result(
            {
                name: plan(config, resolve(config.model, offline=True))
                for name, config in check(runs).items()
            }
        )
        return
    found = run_sweep(runs)
    cli.print_result(found, "\n" + "\n".join(itertools.starmap(_line, found.items())))
    if any("error" in metrics for metrics in found.values()):
        sys.exit(1)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("sweep", "", "JSON file of the sweep.", values)
    define_path("out", "runs/sweep", "Folder of the runs' directories.", values)
    flags.DEFINE_list(
        "only",
        [],
        "Names or patterns, such as M64_*, of the runs to make; by default all.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "list", False, "Print the command line of every run, and stop.", flag_values=values
    )
    flags.DEFINE_bool(
        "dry_run", False, "Print what every run will need, and stop.", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())

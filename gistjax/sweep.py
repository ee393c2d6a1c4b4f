"""Several runs after one another in one process, which loads the base once.

    python -m gistjax.sweep --study launch/studies/controls.json --out runs/controls [--config.KEY=VALUE …] [--only NAME,…]

A study is a JSON file: `{"set": {KEY: VALUE}, "runs": [{"name", "config", "set": {KEY: VALUE}, "seeds": [..]}]}`. Each run
is a config file with settings of the study, of the run and of the command line, in this order; it goes to `OUT/NAME`, with
seeds to `OUT/NAME_s1` and so on. `@NAME` as the value of `init_from` or `teacher` is an earlier run of the study, `@NAME_mean` the
mean of an earlier run's seeds, which `python -m gistjax.average` makes. Finished runs are skipped, interrupted ones resume, a failed one
does not stop the others; exit code 1 tells of it.

An entry with `"grid": {KEY: [VALUE, …]}` is a run for each combination of the values; `{KEY}` in its name and its settings is
the value: `"name": "M{target_length}_{architecture}"`. `python -m launch.ray_sweep` makes the same runs side by side.
"""

from __future__ import annotations

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
from gistjax.config import CompressionConfig, did_you_mean
from gistjax.errors import ConfigError, GistjaxError
from gistjax.experiment.run_dir import EXPORTED
from gistjax.runtime import cli
from gistjax.validation import check_trains, validate

log = logging.getLogger(__name__)

LINKS = ("init_from", "teacher")
"""Settings that can name another run of the study."""
SEED, MEAN = re.compile(r"_s\d+$"), "_mean"
"""How the names of a run's seeds end, and that of their mean."""


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    name: str
    file: str  # config file
    overrides: tuple[str, ...]  # --config.KEY=VALUE
    workdir: Path
    after: tuple[str, ...] = ()  # the runs that this one needs

    @property
    def command(self) -> str:
        """The command line that does the same."""
        words = ["python", "-m", "gistjax.train", "--config", self.file, *self.overrides]
        return shlex.join([*words, f"--workdir={self.workdir}"])

    def config(self) -> CompressionConfig:
        """The resolved configuration.

        Raises:
            ConfigError: if the file or a setting is wrong.
        """
        argv = ["study", "--config", self.file, *self.overrides]
        config = cli.parse(argv, values=flags.FlagValues())
        validate(config)
        check_trains(config)
        return config


def read_study(path: Path, out: Path, overrides: list[str]) -> list[Run]:
    """The runs of a study file.

    Args:
        overrides: `--config.KEY=VALUE` of the command line, for all runs.

    Raises:
        ConfigError: if the file cannot be read, or is not as described above.
    """
    runs: list[Run] = []
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        for entry in study["runs"]:
            for name, settings in _expand(entry):
                settings = {**study.get("set", {}), **settings}
                words = (*_words(settings, out), *overrides)
                after = tuple(_earlier(settings, runs))
                runs.append(Run(name, entry["config"], words, out / name, after))
    except FileNotFoundError as error:
        others = [file.name for file in path.parent.glob("*.json")]
        near = did_you_mean(path.name, others) if others else "."
        raise ConfigError(f"there is no {path}{near}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a study ({type(error).__name__}: {error}): it needs "
            '{"runs": [{"name", "config", "set": {…}}]}.'
        ) from error
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{path} has two runs of one name: {', '.join(twice)}. The name of a grid holds each of its keys, as in "
            '"M{target_length}_{architecture}".'
        )
    return runs


def _expand(entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each run of an entry."""
    grid, seeds = entry.get("grid", {}), entry.get("seeds", [])
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        settings = {key: _fill(value, chosen) for key, value in entry.get("set", {}).items()}
        settings, name = {**settings, **chosen}, _fill(entry["name"], chosen)
        if not seeds:
            yield name, settings
        for seed in seeds:
            yield f"{name}_s{seed}", {**settings, "seed": seed}


def _fill(text: Any, chosen: Mapping[str, Any]) -> Any:
    """The text with `{KEY}` replaced; other values as they are."""
    if isinstance(text, str):
        for key, value in chosen.items():
            text = text.replace("{" + key + "}", str(value))
    return text


def _earlier(settings: Mapping[str, Any], runs: list[Run]) -> Iterator[str]:
    """The runs, and the means of runs, that settings name as `@NAME`.

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
    for key, value in settings.items():
        if key in LINKS and str(value).startswith("@"):
            value = out / value[1:]
        if isinstance(value, list):
            value = "(" + "".join(f"{item}," for item in value) + ")"
        yield f"--config.{key}={value}"


def chosen_runs(args: flags.FlagValues) -> list[Run]:
    """The runs that a command line asks for.

    Raises:
        ConfigError: if it names no study, or runs or settings that there are not.
    """
    if not args.study:
        raise ConfigError(
            "which study? Give --study FILE; launch/studies and launch/sweeps have some."
        )
    return choose(read_study(Path(args.study), Path(args.out), cli.overrides()), args.only)


def choose(runs: list[Run], only: list[str]) -> list[Run]:
    """The runs of these names or patterns, such as `M64_*`; of none, all.

    Raises:
        ConfigError: if there is no run of a name.
    """
    names = [run.name for run in runs]
    for name in only:
        if not fnmatch.filter(names, name):
            raise ConfigError(f"--only {name!r} is no run of the study{did_you_mean(name, names)}")
    wanted = [name for pattern in only for name in fnmatch.filter(names, pattern)]
    return [run for run in runs if not only or run.name in wanted]


def check(runs: list[Run]) -> dict[str, CompressionConfig]:
    """The runs' configurations: every mistake before the first run.

    Raises:
        ConfigError: if a setting is wrong.
        CheckpointError: if a run's directory holds a run of another configuration.
    """
    configs = {run.name: run.config() for run in runs}
    traces = ("config.json", "metrics.json", "checkpoint")
    begun = [run for run in runs if any((run.workdir / name).exists() for name in traces)]
    finished = [run for run in begun if (run.workdir / "metrics.json").exists()]
    for run in runs:
        if run not in finished:
            _check_start(run, configs)
    if begun:
        from gistjax.experiment.evaluator import check_same, claim  # which import all that trains
    for run in begun:
        if run in finished:  # it needs no checkpoint
            check_same(run.workdir, configs[run.name])
        else:
            claim(run.workdir, configs[run.name])
    return configs


def _check_start(run: Run, configs: Mapping[str, CompressionConfig]) -> None:
    """Refuses a run that needs one that is neither chosen nor finished."""
    for name in run.after:
        start, config = run.workdir.parent / name, configs[run.name]
        if name in configs or str(start) not in (config.init_from, config.teacher):
            continue
        if not (start / EXPORTED).is_file():
            fix = "add it to --only"
            if name.endswith(MEAN):
                seed = start.parent / name.removesuffix(MEAN)
                fix = f"python -m gistjax.average --run {seed}_s… --run {seed}_s… --output {start}"
            raise ConfigError(f"{run.name} needs {name}, which is not finished in {start}: {fix}.")


def run_study(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Makes the runs that are not finished; returns each run's metrics, or its error."""
    import jax

    from gistjax.experiment.base import load_pretrained
    from gistjax.experiment.evaluator import read_metrics

    configs = check(runs)
    found: dict[str, dict[str, Any]] = {}
    pretrained_bases: dict[Any, Any] = {}
    for run in runs:
        config = configs[run.name]
        key = (config.model, config.mesh, config.deterministic)
        try:
            if (run.workdir / "metrics.json").exists():
                found[run.name] = read_metrics(run.workdir)
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
    if "error" in metrics:
        return f"{name:32} failed"
    if "losses" in metrics:
        return f"{name:32} {metrics['steps']} steps, loss {metrics['losses'].get('loss')}"
    low, high = metrics["final_f1_interval"]
    ratio = metrics["effective_compression_ratio"]
    return (
        f"{name:32} {f'{ratio:5.2f} x' if ratio else '':7}  F1 {metrics['final_f1']:.3f} [{low:.3f}, {high:.3f}]  EM {metrics['final_em']:.3f}"
        + (f"  shuffled F1 {metrics['shuffled_f1']:.3f}" if "shuffled_f1" in metrics else "")
    )


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    runs = chosen_runs(args)
    if args.list:
        print("\n".join(run.command for run in runs))
        return
    if args.dry_run:
        from gistjax.estimate.cost import plan
        from gistjax.weights.registry import resolve

        cli.print_result(
            {
                name: plan(config, resolve(config.model, offline=True))
                for name, config in check(runs).items()
            }
        )
        return
    found = run_study(runs)
    cli.print_result(found, "\n" + "\n".join(itertools.starmap(_line, found.items())))
    if any("error" in metrics for metrics in found.values()):
        sys.exit(1)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("study", "", "The study's JSON file.", flag_values=values)
    flags.DEFINE_string("out", "runs/study", "Folder of the runs' directories.", flag_values=values)
    flags.DEFINE_list(
        "only",
        [],
        "Names of the runs to make, or patterns as M64_*; by default all.",
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

"""Several runs after one another in one process, which loads the base once.

    python -m gistjax.study --study launch/studies/controls.json --out runs/controls [--config.KEY=VALUE …] [--only NAME,…]

A study is a JSON file: `{"set": {KEY: VALUE}, "runs": [{"name", "config", "set": {KEY: VALUE}, "seeds": [..]}]}`. Each run
is a config file with settings of the study, of the run and of the command line, in this order; it goes to `OUT/NAME`, with
seeds to `OUT/NAME_s1` and so on. `@NAME` as the value of `init_from` is another run of the study. Finished runs are
skipped, interrupted ones resume, a failed one does not stop the others.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from gistjax import cli
from gistjax.config import CompressionConfig, validate
from gistjax.errors import ConfigError, GistjaxError

flags.DEFINE_string("study", "", "The study's JSON file.")
flags.DEFINE_string("out", "runs/study", "Folder of the runs' directories.")
flags.DEFINE_list("only", [], "Names of the runs to make; by default all.")
flags.DEFINE_bool("list", False, "Print the command line of every run, and stop.")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    name: str
    file: str  # config file
    overrides: tuple[str, ...]  # --config.KEY=VALUE
    workdir: Path

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
        return config


def read_study(path: Path, out: Path, overrides: list[str]) -> list[Run]:
    """The runs of a study file.

    Args:
        overrides: `--config.KEY=VALUE` of the command line, for all runs.

    Raises:
        ConfigError: if the file cannot be read, or is not as described above.
    """
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        entries = [(entry, seed) for entry in study["runs"] for seed in entry.get("seeds", [None])]
        runs = []
        for entry, seed in entries:
            settings = {**study.get("set", {}), **entry.get("set", {})}
            name = entry["name"]
            if seed is not None:
                settings["seed"], name = seed, f"{name}_s{seed}"
            words = (*_words(settings, out), *overrides)
            runs.append(Run(name, entry["config"], words, out / name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a study ({type(error).__name__}: {error}): it needs "
            '{"runs": [{"name", "config", "set": {…}}]}.'
        ) from error
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} has two runs of one name among {', '.join(sorted(names))}.")
    return runs


def _words(settings: Mapping[str, Any], out: Path) -> Iterator[str]:
    for key, value in settings.items():
        if key == "init_from" and str(value).startswith("@"):
            value = out / value[1:]
        if isinstance(value, list):
            value = f"({','.join(map(str, value))},)"
        yield f"--config.{key}={value}"


def run_study(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Makes the runs that are not finished; returns each run's metrics, or its error."""
    import jax

    from gistjax.assembly import lay_foundation
    from gistjax.train import run_single_ablation

    configs = {run.name: run.config() for run in runs}  # every mistake before the first run
    found: dict[str, dict[str, Any]] = {}
    foundations: dict[Any, Any] = {}
    for run in runs:
        config = configs[run.name]
        finished = run.workdir / "metrics.json"
        if finished.exists():
            found[run.name] = json.loads(finished.read_text(encoding="utf-8"))
            continue
        log.info("\n%s", run.command)
        key = (config.model, config.mesh)
        try:
            if key not in foundations:
                foundations.clear()  # one base in memory at a time
                foundations[key] = lay_foundation(config)
            found[run.name] = run_single_ablation(config, run.workdir, foundations[key])
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
    ratio = metrics["effective_compression_ratio"] or 0.0
    return (
        f"{name:32} {ratio:5.2f} x  F1 {metrics['final_f1']:.3f} [{low:.3f}, {high:.3f}]  EM {metrics['final_em']:.3f}"
        + (f"  shuffled F1 {metrics['shuffled_f1']:.3f}" if "shuffled_f1" in metrics else "")
    )


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The scored runs as a Markdown table, best first; intervals are of 95 %."""
    rows = [
        "| run | ratio (nominal / effective) | questions | F1 | EM | ms an answer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    scored = {name: metrics for name, metrics in found.items() if "final_f1" in metrics}
    for name, m in sorted(scored.items(), key=lambda item: -item[1]["final_f1"]):
        effective = m["effective_compression_ratio"]
        ratio = f"{m['compression_ratio']:g} / {effective:.2f}" if effective else "no context"
        low, high = m["final_f1_interval"]
        milliseconds = 1e3 * sum(m["wall_time_per_sample_s"].values())
        rows.append(
            f"| {name} | {ratio} | {m['n_examples']} | {m['final_f1']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{m['final_em']:.3f} | {milliseconds:.1f} |"
        )
    return "\n".join(rows)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    import sys

    overrides = [word for word in sys.argv[1:] if word.startswith("--config.")]
    runs = read_study(Path(args.study), Path(args.out), overrides)
    unknown = set(args.only) - {run.name for run in runs}
    if unknown:
        names = ", ".join(run.name for run in runs)
        raise ConfigError(f"--only names {', '.join(sorted(unknown))}, but the runs are {names}.")
    runs = [run for run in runs if not args.only or run.name in args.only]
    if args.list:
        print("\n".join(run.command for run in runs))
        return
    found = run_study(runs)
    results = Path(args.out) / "results.md"
    results.write_text(table(found) + "\n", encoding="utf-8")
    log.info("\n%s\n\n%s", table(found), results)
    cli.print_result(found)


if __name__ == "__main__":
    cli.run(main, lambda argv: CompressionConfig())

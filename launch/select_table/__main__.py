"""Measure what a full-context run still answers when parts of its key/value cache are kept.

    python -m launch.select_table --run=RUN --output=FILE.json [--scorers=kvzip,h2o …]
        [--spreads=head,layer,all] [--ratios=2,4,8,16,32] [--contexts=paragraph,filled]
        [--profiles=FOLDER] [--closed_book=RUN] [--seconds=480] [--table=FILE.md]
        [--config.KEY=VALUE …]
    python -m launch.select_table --output=FILE.json --cell=paragraph.kvzip.all@8 --to=FOLDER

Every scorer reads every context once, and its questions are answered at every spread and ratio from
what it keeps. The answers are those of `python -m gistjax.evaluate --config.architecture=select`.
FILE.json gets a row for each cell: scores with intervals by bootstrap over contexts, bytes a
context token, milliseconds to compress. Answers are kept in the folder FILE.answers, a file for
each scorer; the same command goes on where --seconds stopped it (exit code 75).

The spread `profile` reads FOLDER/SCORER.safetensors (`python -m gistjax.profile` writes it; there
is none of `question_aware`). The second form writes a cell's answers as FOLDER/predictions.json,
for `python -m gistjax.compare --of=FOLDER --with=…`.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from absl import flags

from gistjax.config import ASKS, SCORERS, SPREADS, CompressionConfig
from gistjax.errors import ConfigError, did_you_mean
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import check_writable, make_folder, write_atomically, write_json
from launch.select_table.answers import ALL, NOTHING, as_predictions, complete, read
from launch.select_table.measure import Table, check
from launch.select_table.table import page, rows_of

STARTED = time.monotonic()

LISTS = {"scorers": SCORERS, "spreads": SPREADS, "contexts": ("paragraph", "filled")}
"""Flags that take several names, and the names."""
RATIOS = "2,4,8,16,32"


def measure(config: CompressionConfig, args: flags.FlagValues, folder: Path) -> bool:
    """Answer what is not answered yet, until the time is up; return whether all is.

    Raises:
        GistjaxError: for anything that a user can fix.
    """
    names = {name: _names(args, name) for name in LISTS}
    ratios = _ratios(args.ratios)
    profiles = {scorer: _profile(args, names["spreads"], scorer) for scorer in names["scorers"]}
    run = RunDir(args.run)
    check(config, run.config())
    make_folder(folder)
    table = Table(run, config, folder, STARTED + args.seconds)
    splits = [table.questions(contexts) for contexts in names["contexts"]]
    done = []
    for split in splits:
        controls = [ALL] if args.closed_book else [ALL, NOTHING]
        if args.closed_book:
            table.closed_book(split, RunDir(args.closed_book))
        done += [table.control(split, name) for name in controls]
    for scorer in names["scorers"]:
        for split in splits:
            profile = profiles[scorer]
            spreads = [name for name in names["spreads"] if profile or name != "profile"]
            done.append(table.scorer(split, scorer, spreads, ratios, profile))
    return all(done)


def _names(args: flags.FlagValues, flag: str) -> list[str]:
    names = [name.strip() for name in getattr(args, flag).split(",") if name.strip()]
    for name in names:
        if name not in LISTS[flag]:
            raise ConfigError(f"--{flag} cannot be {name!r}{did_you_mean(name, LISTS[flag])}")
    return list(dict.fromkeys(names))


def _ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(ratio) for ratio in text.split(",")})
    except ValueError as error:
        raise ConfigError(f"--ratios={text} must be numbers, as in {RATIOS}.") from error
    if not all(1 <= ratio < math.inf for ratio in ratios):
        raise ConfigError(f"--ratios={text} must be at least 1: tokens an entry.")
    return ratios


def _profile(args: flags.FlagValues, spreads: list[str], scorer: str) -> Path | None:
    if "profile" not in spreads or scorer == ASKS:
        return None
    path = Path(args.profiles) / f"{scorer}.safetensors"
    if not args.profiles or not path.is_file():
        raise ConfigError(
            f"--spreads=profile needs a profile of each scorer, and there is no {path}: give the "
            "folder with --profiles, or leave the spread or the scorer out."
        )
    return path


def export(folder: Path, cell: str, to: Path) -> None:
    """Write a cell's answers as the `predictions.json` of a run.

    Raises:
        ConfigError: if there is no such cell.
    """
    contexts, _, rest = cell.partition(".")
    scorer, _, name = rest.partition(".")
    file = folder / f"{contexts}.{scorer}.json"
    content = read(file) if file.is_file() else None
    known = complete(content) if content else []
    if content is None or (name or scorer) not in known:
        raise ConfigError(
            f"{folder} has no whole cell {cell!r}: it is CONTEXTS.SCORER.SPREAD@RATIO, such as "
            f"paragraph.kvzip.all@8, or CONTEXTS.{ALL}, CONTEXTS.{NOTHING}."
        )
    make_folder(to)
    write_json(to / "predictions.json", as_predictions(content, name or scorer))


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure, tabulate or export, as the flags say."""
    if not args.output:
        raise ConfigError("where is the table? Give its file with --output=FILE.json.")
    output = Path(args.output)
    folder = output.with_suffix(".answers")
    for file in (output, args.table):
        if file:
            check_writable(Path(file))
    if args.cell:
        export(folder, args.cell, Path(args.to or "."))
        return
    finished = measure(config, args, folder) if args.run else True
    rows = rows_of(folder, config.evaluation.bootstrap_samples, config.seed)
    if not rows:
        raise ConfigError(f"{folder} has no answers to tabulate: give the run with --run.")
    write_json(output, {"rows": rows})
    if args.table:
        write_atomically(Path(args.table), page(rows).encode())
    cli.print_result({"cells": len(rows), "finished": finished, "output": str(output)})
    if not finished:
        sys.exit(cli.STOPPED)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", "", "Directory of a finished full-context run.", values)
    define_path("output", "", "JSON file of the table; what is there is not made again.", values)
    define_path("table", "", "Also write the table as Markdown to this file.", values)
    define_path("profiles", "", "Folder of a profile for each scorer.", values)
    define_path(
        "closed_book", "", "Run whose scores are the floor, in place of this one's.", values
    )
    define_path("to", "", "Folder that --cell is written to.", values)
    for name, choices in LISTS.items():
        default = [choice for choice in choices if choice != "profile"]
        about = f"Which {name}, separated by commas."
        flags.DEFINE_string(name, ",".join(default), about, flag_values=values)
    flags.DEFINE_string("ratios", RATIOS, "Context tokens an entry.", flag_values=values)
    flags.DEFINE_string("cell", "", "Write this cell's answers.", flag_values=values)
    about = "Begin nothing more after so many seconds of the program."
    flags.DEFINE_float("seconds", math.inf, about, flag_values=values)


def _defaults(argv: list[str]) -> CompressionConfig:
    run = cli.option(argv, "run", " ").strip()
    return RunDir(run).config() if run else CompressionConfig()


if __name__ == "__main__":
    cli.run(main, define_flags, _defaults)

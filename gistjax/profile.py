"""Find how much each KV head needs to keep, and write it as a profile for select.spread=profile.

    python -m gistjax.profile --run RUN --output FILE [--contexts 512]
        [--config.select.scorer=NAME] [--config.KEY=VALUE …]
    python -m gistjax.evaluate --run RUN --config.architecture=select
        --config.select.spread=profile --config.select.profile=FILE --config.ratio=8

RUN is a run of architecture `select`, or one that reads its context whole (`none`). Contexts of its
training questions, never of its validation, are read and their entries scored. At each of several
ratios the best of all layers and KV heads are kept; the profile is the part of its entries that
each KV head then keeps. (How fast a run is, `python -m gistjax.benchmark` measures.)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags
from flax import nnx

from gistjax.compress.profile import write_profile
from gistjax.config import ASKS, SELECT, CompressionConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Buckets, Dataset, TokenizedExample
from gistjax.errors import ConfigError
from gistjax.estimate.out_of_memory import explained
from gistjax.evaluation.kept_entries import profile_parts
from gistjax.experiment.base import load_trained
from gistjax.experiment.meaning import asked, check_meaning
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import check_writable
from gistjax.runtime.sharding import is_primary, rows_per_step
from gistjax.validation import validate

log = logging.getLogger(__name__)


def profile_run(
    rundir: str | Path, config: CompressionConfig, output: str | Path, contexts: int = 512
) -> dict[str, Any]:
    """Write the profile of a run's base, adapter and scorer, and return what it is of.

    Args:
        config: the run's configuration (`defaults`), with another scorer or other data.
        output: the file to write.
        contexts: how many contexts are read at most, the first of those that training draws; of a
            mixture as many of each task.

    Raises:
        GistjaxError: for anything that a user can fix.
    """
    run, file = RunDir(rundir), Path(output)
    check_writable(file)
    config = asked(config, run.config())
    validate(config)
    _check_has_profile(config)
    check_meaning(config, run.config())
    select = replace(config.select, spread="all", profile="", bytes=0)
    config = config.replace(select=select)
    data = replace(config.data, validation_examples=0)
    each = -(-contexts // len(data.task_names))
    dataset = _of_first_contexts(load_dataset(data, config.seed), 2 * each)
    pretrained, parts = load_trained(run, config)
    rows, _, report = encode_splits(dataset, pretrained.prompt, data, config.seed)
    log.info("%s", report)
    rows = _distinct(rows, each)[:contexts]
    if len(rows) < contexts:
        log.warning("%d contexts asked for, %d there are used", contexts, len(rows))
    with explained(config, "a forward pass"):
        found_LxKxR = profile_parts(
            nnx.merge(*parts),
            rows,
            pretrained.mesh,
            config.evaluation.batch_size * rows_per_step(pretrained.mesh),
            Buckets.of(config.data),
        )
    tokens = sum(row.context_length for row in rows)
    about = {"scorer": select.scorer, "contexts": len(rows), "tokens": tokens}
    if is_primary():
        texts = {key: str(value) for key, value in about.items()}
        write_profile(file, found_LxKxR, {"base_sha256": pretrained.base_sha256, **texts})
    return {"profile": str(file), "base_model": config.model.known_as, **about}


def _check_has_profile(config: CompressionConfig) -> None:
    """Refuse what has no entries to keep, no scores before a question, or no training contexts."""
    if not config.selects:
        raise ConfigError(
            f"architecture={config.architecture!r} keeps no entries: give a --run of architecture "
            "'select' or 'none'."
        )
    if config.select.scorer == ASKS:
        raise ConfigError(
            f"select.scorer={ASKS!r} looks at a question, and a profile is for any: give another."
        )
    if not config.data.train_examples:
        raise ConfigError(
            "a profile is made of training contexts, and the run has none: give "
            "--config.data.train_examples above 0."
        )


def _of_first_contexts(dataset: Dataset, most: int) -> Dataset:
    """Return the training examples on the first contexts; of a mixture on those of each task."""
    if dataset.parts:
        parts = {name: _of_first_contexts(part, most) for name, part in dataset.parts.items()}
        return replace(dataset, parts=parts)
    first = set(list(dict.fromkeys(example.context_id for example in dataset.train))[:most])
    train = [example for example in dataset.train if example.context_id in first]
    return replace(dataset, train=train)


def _distinct(rows: Sequence[TokenizedExample], most: int) -> list[TokenizedExample]:
    """Return the first row of each context, of at most so many contexts a task."""
    found: dict[int, TokenizedExample] = {}
    of_task = Counter[str]()
    for row in rows:
        if row.context_id not in found and of_task[row.task] < most:
            found[row.context_id] = row
            of_task[row.task] += 1
    return list(found.values())


def defaults(run: RunDir) -> CompressionConfig:
    """Return a run's configuration; that of a full context keeps entries of its cache."""
    config = run.config()
    return config.replace(architecture=SELECT) if config.architecture == "none" else config


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Write the profile, and print what it is of."""
    if not args.output:
        raise ConfigError("--output is missing: the file to write.")
    cli.print_result(profile_run(args.run, config, args.output, args.contexts))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", "", "Directory of a finished run.", values)
    define_path("output", "", "File to write.", values)
    flags.DEFINE_integer(
        "contexts", 512, "Contexts to read, at most.", lower_bound=1, flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: defaults(RunDir(cli.option(argv, "run"))))

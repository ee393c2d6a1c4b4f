"""The paragraphs that a run has seen: the hash that it noted tells which data they are in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from gistjax.config import CompressionConfig, DataConfig, file_name
from gistjax.data.dataset import load_dataset
from gistjax.data.example import Articles, Dataset, hash_rows
from gistjax.errors import ConfigError, DataError
from gistjax.experiment.base import find_prompt
from gistjax.experiment.inputs import encode
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.texts import user_path

log = logging.getLogger(__name__)


def check_unseen(run: RunDir, config: CompressionConfig) -> None:
    """Refuse to ask a run about training paragraphs that it, or a stage before it, was trained on.

    Folders may have moved or have another name: the run's rows are made again, first from the
    folder that it was trained on, then from the one to ask about, until their hash is the one in
    `config.json`. If neither has it, a warning says that nothing was compared.

    Args:
        config: asks about what `data.holdout` takes of the training split.

    Raises:
        ConfigError: saying how many of the paragraphs were seen.
        DataError: if the data to ask about cannot be read.
    """
    data = replace(config.data, train_examples=0)
    asked = paragraphs(load_dataset(data, config.seed).validation_articles)
    for stage in stages(run):
        trained = stage.config().replace(model=config.model)
        if not trained.data.train_examples:
            continue  # on text alone, without questions
        found = find_data(stage, trained, config.data)
        if found is None:
            places = dict.fromkeys(data.path or data.name for data in (trained.data, config.data))
            log.warning(
                "warning: the data that %s was trained on were not found at %s, so nothing was "
                "compared: make sure that no paragraph to ask about was among them.",
                stage,
                " or ".join(places),
            )
        elif seen := asked & trained_on(found, trained.data):
            held = f"{trained.data.holdout:g}" if trained.data.holdout else "none"
            raise ConfigError(
                f"--config.data.holdout={config.data.holdout:g}: {len(seen):,} of these "
                f"{len(asked):,} paragraphs are among those that {stage} was trained on (held out "
                f"there: {held}). On what it has seen it is surer than it should be: give others "
                "by --config.data.path, or train with that holdout."
            )


def stages(run: RunDir) -> Iterator[RunDir]:
    """Yield a run and those that it went on from, one after another, as far as they are there."""
    visited = set[str]()
    while run.config_file.is_file() and str(run) not in visited:
        visited.add(str(run))
        yield run
        start = run.config().init_from
        if not start:
            return
        path = user_path(start)
        run = RunDir(path if path.is_dir() else path.parent)


def find_data(run: RunDir, trained: CompressionConfig, elsewhere: DataConfig) -> Dataset | None:
    """Return the data whose rows have the hash that a run noted; None if they are not found.

    Both the place in its configuration and that of `elsewhere` are tried. A run of 0.1 noted no
    hash; for such a run, data of the same name are taken to be its own.
    """
    noted = run.about().get("data_sha256")
    _, prompt = find_prompt(trained)
    own = trained.data
    for path, name in dict.fromkeys(((own.path, own.name), (elsewhere.path, elsewhere.name))):
        data = replace(own, path=path, name=name, validation_examples=0)
        if noted is None and _called(data) != _called(own):
            continue
        try:
            dataset = load_dataset(data, trained.seed)
            questions, texts, *_ = encode(trained.replace(data=data), dataset, prompt)
        except (ConfigError, DataError):  # other data, or none
            continue
        if noted in (None, hash_rows(questions + texts)):
            return dataset
    return None


def trained_on(dataset: Dataset, data: DataConfig) -> set[str]:
    """Return the contexts of the training questions that were drawn.

    Contexts that are filled may hold any paragraph of the split, so they are all returned.
    """
    if data.context != "paragraph":
        return paragraphs(dataset.train_articles)
    return {example.context for example in dataset.train}


def paragraphs(articles: Articles) -> set[str]:
    """Return the contexts of all articles."""
    return {context for contexts in articles.values() for context in contexts}


def _called(data: DataConfig) -> str:
    return file_name(data.path) if data.path else data.name

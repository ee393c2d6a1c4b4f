"""Asks every question of a split at every cell, a batch of contexts at a time."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gistjax.compare import read_predictions
from gistjax.compress.decoding import before_end
from gistjax.config import ASKS, SELECT, CompressionConfig, EncoderConfig, SelectConfig
from gistjax.data.batching import evaluation_batches
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Batch, Buckets, Example, TokenizedExample, hash_rows
from gistjax.data.prompts import decode
from gistjax.data.tasks import written_tokens
from gistjax.errors import ConfigError, DataError
from gistjax.evaluation.metrics import METRICS
from gistjax.experiment.base import PretrainedBase, load_pretrained, load_trained
from gistjax.experiment.evaluator import make_generator
from gistjax.experiment.meaning import asked, check_meaning
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.devices import device_name
from gistjax.runtime.files import sha256_of
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host
from gistjax.validation import validate
from launch.select_table.answers import ALL, NOTHING, Answers, Cell
from launch.select_table.programs import Contexts, Programs

SAVE_EVERY = 60.0
"""Seconds between writes of the answers."""

Asked = tuple[int, int]
"""A context's place in its batch, and a question's among all."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Questions:
    """A split's questions, with contexts of one kind."""

    contexts: str
    rows: list[TokenizedExample]
    examples: Sequence[Example]


class Table:
    """A full-context run, asked with parts of its cache.

    Args:
        config: the run's, with the data to ask about.
        folder: where answers are kept.
        deadline: as of `time.monotonic`; after it nothing more is begun.
    """

    def __init__(self, run: RunDir, config: CompressionConfig, folder: Path, deadline: float):
        self.run, self.config, self.folder, self.deadline = run, config, folder, deadline
        self.pretrained: PretrainedBase = load_pretrained(config)
        self.pretrained.check_run(run)
        _, self.full = load_trained(run, config, self.pretrained)
        self.programs = Programs(self.full, written_tokens(config), self.pretrained.prompt.end_ids)

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline

    def questions(self, contexts: str) -> Questions:
        """Load the validation questions, with paragraphs or filled contexts."""
        data = dataclasses.replace(self.config.data, context=contexts)
        whole = data if data.holdout else dataclasses.replace(data, train_examples=0)
        dataset = load_dataset(whole, self.config.seed)
        _, rows, report = encode_splits(dataset, self.pretrained.prompt, data, self.config.seed)
        log.info("%s", report)
        return Questions(contexts, rows, dataset.validation)

    def answers(
        self, questions: Questions, scorer: str, profile: Path | None = None, run: str = ""
    ) -> Answers:
        """Open the file of a scorer's answers.

        Args:
            run: SHA-256 of what answered; by default the run's weights.
        """
        base = self.pretrained.source.config
        dtype = jnp.dtype(self.config.model.compute_dtype or self.config.model.dtype)
        of = {
            "run": run or sha256_of(self.run.exported),
            "base": self.pretrained.base_sha256,
            "questions": hash_rows(questions.rows),
            "seed": self.config.seed,
            "answer_tokens": written_tokens(self.config),
            "profile": sha256_of(profile) if profile else "",
            "heads": base.n_layers * base.n_kv_heads,
            "entry_bytes": 2 * base.head_dim * dtype.itemsize,
        }
        asked: dict[str, Sequence[Any]] = {
            "ids": [example.id for example in questions.examples],
            "context_ids": [row.context_id for row in questions.rows],
            "tokens": [len(row.context_ids) for row in questions.rows],
        }
        return Answers(self.folder / f"{questions.contexts}.{scorer}.json", of, asked)

    def control(self, questions: Questions, name: str) -> bool:
        """Answer with the whole context or none; return whether that is done."""
        answers = self.answers(questions, name)
        if not answers.missing([name]):
            return True
        if self.is_late:
            return False
        config, model = self.config, self.full
        if name == NOTHING:
            config = config.replace(architecture="closed_book")
            _, model = load_trained(self.run, config, self.pretrained)
        generator = make_generator(config, self.pretrained, model[0])
        found = generator(model[1], model[2], questions.rows, f"{questions.contexts}, {name}")
        heads = answers.content["of"]["heads"]
        for place, (ids, row) in enumerate(zip(found.ids, questions.rows, strict=True)):
            entries = heads * len(row.context_ids) if name == ALL else 0
            answers.put(name, place, self._scored(ids, questions.examples[place], entries))
        answers.spend(device_name(), 0, {})
        answers.write()
        return True

    def closed_book(self, questions: Questions, run: RunDir) -> None:
        """Take the scores of a run without contexts in place of this run's own closed book.

        Raises:
            DataError: if it did not answer these questions.
        """
        file = run.finished(run.predictions_file)
        answers = self.answers(questions, NOTHING, run=sha256_of(file))
        found = read_predictions(run.path)
        for place, example in enumerate(questions.examples):
            if example.id not in found:
                raise DataError(
                    f"{file} has no answer to {example.id}: make both runs with the same "
                    "--config.data and --config.seed."
                )
            answers.put(NOTHING, place, ("", *(found[example.id][key] for key in ("f1", "em")), 0))
        answers.write()

    def scorer(
        self,
        questions: Questions,
        scorer: str,
        spreads: Sequence[str],
        ratios: Sequence[float],
        profile: Path | None,
    ) -> bool:
        """Answer with what a scorer keeps, in every cell; return whether that is done."""
        answers = self.answers(questions, scorer, profile)
        cells = [Cell(spread, ratio) for spread in spreads for ratio in ratios]
        lacking = [cell for cell in cells if answers.missing([cell])]
        # their spreads times their ratios: one shape
        spreads = [spread for spread in spreads if spread in {cell.spread for cell in lacking}]
        ratios = [ratio for ratio in ratios if ratio in {cell.ratio for cell in lacking}]
        places = answers.missing(lacking)
        if not places or self.is_late:
            return not places
        cut = select_config(self.config, self.run.config(), scorer, profile)
        _, model = load_trained(self.run, cut, self.pretrained)
        cells = [Cell(spread, ratio) for spread in spreads for ratio in ratios]
        asks, written = scorer == ASKS, time.monotonic()
        with tqdm(total=len(places), desc=answers.path.stem, unit="question", disable=None) as bar:
            for batch, asked in self._batches(questions.rows, places, asks):
                contexts = self._read(answers, model, batch, asked, dict.fromkeys(spreads, ratios))
                self._ask(answers, questions, cells, contexts, asked)
                bar.update(len(asked))
                if time.monotonic() > written + SAVE_EVERY:
                    answers.write()
                    written = time.monotonic()
                if self.is_late:
                    break
        answers.write()
        return not answers.missing(cells)

    def _read(
        self,
        answers: Answers,
        model: Any,
        batch: Batch,
        asked: Sequence[Asked],
        cells: dict[str, Sequence[float]],
    ) -> Contexts:
        """Read contexts, and note the seconds."""
        before = dict(self.programs.seconds)
        asks = answers.path.stem.endswith(f".{ASKS}")
        contexts = self.programs.read(model, batch, cells, asks)
        now = self.programs.seconds
        spent = {kind: now[kind] - before.get(kind, 0.0) for kind in ("read", *cells)}
        answers.spend(device_name(), len({owner for owner, _ in asked}), spent)
        return contexts

    def _ask(
        self,
        answers: Answers,
        questions: Questions,
        cells: Sequence[Cell],
        contexts: Contexts,
        asked: Sequence[Asked],
    ) -> None:
        """Answer the questions on some contexts in every cell."""
        N, entries_JxE = len(contexts.length_E), to_host(contexts.entries_JxE)
        for start in range(0, len(asked), N):
            some = asked[start : start + N]
            arrays = _question_arrays(questions.rows, some, N, contexts.question_size)
            ids_NxJxA = to_host(self.programs.answer(contexts, *arrays))
            for (owner, place), ids_JxA in zip(some, ids_NxJxA.tolist(), strict=False):
                for cell, ids, kept_E in zip(cells, ids_JxA, entries_JxE, strict=True):
                    values = self._scored(ids, questions.examples[place], int(kept_E[owner]))
                    answers.put(cell, place, values)

    def _scored(self, ids: Sequence[int], example: Example, entries: int) -> tuple[Any, ...]:
        ids = before_end(ids, self.pretrained.prompt.end_ids)
        text = decode(self.pretrained.tokenizer, ids, skip_special_tokens=True).strip()
        return (text, *METRICS[example.metric](text, example.answers), entries)

    def _batches(
        self, rows: Sequence[TokenizedExample], places: Sequence[int], asks: bool
    ) -> Iterator[tuple[Batch, list[Asked]]]:
        """Yield contexts, and the questions on them.

        Each context is there once; once a question where the scorer sees that.
        """
        units: dict[int, list[int]] = {}
        for place in places:
            units.setdefault(place if asks else rows[place].context_id, []).append(place)
        members = list(units.values())
        longest = [rows[max(some, key=lambda i: len(rows[i].question_ids))] for some in members]
        mesh = self.pretrained.mesh
        size = self.config.evaluation.batch_size * rows_per_step(mesh)
        batches = evaluation_batches(longest, size, Buckets.of(self.config.data))
        for indices, host_batch in batches:
            asked = [(e, i) for e, unit in enumerate(indices) for i in members[unit]]
            yield put_batch(host_batch, mesh), asked


def select_config(
    config: CompressionConfig,
    trained: CompressionConfig,
    scorer: str,
    profile: Path | None = None,
) -> CompressionConfig:
    """Return the configuration of a full-context run of whose cache a scorer keeps entries."""
    select = SelectConfig(scorer, "profile", str(profile)) if profile else SelectConfig(scorer)
    cut = config.replace(architecture=SELECT, encoder=EncoderConfig(), select=select)
    return asked(cut, trained)


def check(config: CompressionConfig, trained: CompressionConfig) -> None:
    """Refuse what is no full-context run, before it is loaded.

    Raises:
        ConfigError: naming the key.
    """
    if trained.architecture != "none":
        raise ConfigError(
            f"--run has architecture={trained.architecture!r}: give a run that reads the whole "
            "context, such as one of configs/full_context.py, of whose cache entries are kept."
        )
    for one in (config, select_config(config, trained, "random")):
        validate(one)
        check_meaning(one, trained)


def _question_arrays(
    rows: Sequence[TokenizedExample], asked: Sequence[Asked], N: int, S: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts, tokens and lengths of N questions; rows without one have a token."""
    owner_N, length_N = np.zeros(N, np.int32), np.ones(N, np.int32)
    tokens_NxS = np.zeros((N, S), np.int32)
    for n, (owner, place) in enumerate(asked):
        ids = rows[place].question_ids
        owner_N[n], length_N[n], tokens_NxS[n, : len(ids)] = owner, len(ids), ids
    return owner_N, tokens_NxS, length_N

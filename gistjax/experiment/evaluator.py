"""Evaluation of a model on a split's questions: answers, scores, costs, what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from gistjax.compress.budget import Budget
from gistjax.compress.parameters import abstract_model, parameter_counts, split_model
from gistjax.config import ASKS, CompressionConfig
from gistjax.data.example import Buckets, Example, TokenizedExample
from gistjax.data.prompts import decode
from gistjax.data.tasks import load_task, written_tokens
from gistjax.evaluation.breakdown import answer_place, answer_type, breakdown
from gistjax.evaluation.controls import shuffle_contexts
from gistjax.evaluation.diagnostics import answer_diversity, slot_similarity
from gistjax.evaluation.generate import Answers, Generator
from gistjax.evaluation.kept_entries import kept_map
from gistjax.evaluation.likelihood import gold_log_likelihood, with_golds
from gistjax.evaluation.metrics import Scores, check_metrics, score
from gistjax.evaluation.selective import Judged, answerable_metrics, area_of, selective_metrics
from gistjax.evaluation.slot_attention import slot_attention
from gistjax.evaluation.statistics import (
    clustered_bootstrap,
    clusters_of,
    normalised,
    paired_difference,
)
from gistjax.evaluation.treatment import Treatment
from gistjax.experiment.base import (
    PretrainedBase,
    build_model,
    untuned_closed_book,
    untuned_full_context,
)
from gistjax.experiment.confidence import Confidence
from gistjax.experiment.inputs import select
from gistjax.experiment.run_dir import RunDir, versions
from gistjax.runtime.devices import device_name
from gistjax.runtime.files import write_json
from gistjax.runtime.sharding import is_primary, rows_per_step

SLOT_CONTEXTS = 2
"""Contexts of which the report shows what each slot reads, or of which words entries are kept."""

FULL_CONTEXT, CLOSED_BOOK = "full context", "closed book"
CONTROLS = {FULL_CONTEXT: untuned_full_context, CLOSED_BOOK: untuned_closed_book}
"""The configuration of the base itself, with the whole context and with none."""
NO_ANSWER = "no answer"
"""Type of a question that the text does not answer."""


@dataclass(frozen=True)
class EvalResult:
    """The content of `metrics.json`, `predictions.json` and what the report shows beside them."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]  # one for every question
    slot_attention: list[dict[str, Any]]  # of some contexts; empty without slots
    kept_entries: dict[str, Any] = field(default_factory=dict)  # empty but for `select`

    def write(self, run: RunDir, steps: int, samples: int) -> dict[str, Any]:
        """Write the files, and the first `samples` predictions apart; return the metrics.

        `metrics.json` is written last: a run that has it counts as finished.
        """
        metrics = {**self.metrics, "steps": steps}
        if not is_primary():
            return metrics
        if self.slot_attention:
            write_json(run.slot_attention_file, self.slot_attention, indent=None)
        if self.kept_entries:
            write_json(run.kept_entries_file, self.kept_entries, indent=None)
        write_json(run.predictions_file, self.predictions)
        write_json(run.samples_file, self.predictions[:samples])
        write_json(run.metrics_file, metrics)
        return metrics


def write_unscored(run: RunDir, config: CompressionConfig, steps: int) -> dict[str, Any]:
    """Write and return `metrics.json` of a run without validation questions: its last losses."""
    metrics = {
        "architecture": config.architecture,
        "losses": run.last_losses(),
        "steps": steps,
        **_origin(config),
    }
    if is_primary():
        write_json(run.metrics_file, metrics)
    return metrics


def _origin(config: CompressionConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "base_model": config.model.known_as,
        "device": device_name(),
        "packages": versions(),
    }


def make_generator(
    config: CompressionConfig,
    pretrained: PretrainedBase,
    graphdef: Any,
    treatment: Treatment | None = None,
) -> Generator:
    """Return what answers questions with a model of this structure, after a `Treatment`."""
    return Generator(
        graphdef,
        pretrained.mesh,
        max_tokens=written_tokens(config),
        end_ids=pretrained.prompt.end_ids,
        batch_size=config.evaluation.batch_size * rows_per_step(pretrained.mesh),
        buckets=Buckets.of(config.data),
        asks=config.selects and config.select.scorer == ASKS,
        treatment=treatment,
    )


class Evaluator:
    """Answers the questions of a split and turns the answers into scores.

    Args:
        rows: the questions with their whole contexts.
        examples: the same questions with their gold answers.
        graphdef: the model's structure.
        confidence: makes scores of the answers, and says which of them are withheld.
        treatment: of slots or kept entries.
    """

    def __init__(
        self,
        config: CompressionConfig,
        pretrained: PretrainedBase,
        rows: list[TokenizedExample],
        examples: Sequence[Example],
        graphdef: Any,
        confidence: Confidence | None = None,
        treatment: Treatment | None = None,
    ):
        self._config, self._pretrained, self._graphdef = config, pretrained, graphdef
        self._confidence = confidence or Confidence()
        check_metrics(examples)
        self._rows, self._examples = rows, examples
        self._rows_read = select(config, pretrained, rows)
        self._generator = make_generator(config, pretrained, graphdef, treatment)

    def headline(self, trainable: Any, frozen: Any) -> dict[str, float]:
        """Return F1 and EM alone, for validation during training."""
        scores = self.judge(trainable, frozen, "validating")
        return {"f1": round(scores.f1, 4), "em": round(scores.em, 4)}

    def judge(self, trainable: Any, frozen: Any, title: str) -> Scores:
        """Return the scores of all answers, with their log-probabilities."""
        return self._score(self._generator(trainable, frozen, self._rows_read, title))

    def measure(self, trainable: Any, frozen: Any, of_mixture: bool = False) -> EvalResult:
        """Return scores, their breakdown and controls, ratios, parameters and times.

        Args:
            of_mixture: also score a closed book, and say where between the controls the scores are,
                as is done where entries are kept.
        """
        answers = self._generator(trainable, frozen, self._rows_read, "answering")
        judged = self._judged(answers)
        texts = self._confidence.given(judged)
        scores = self._score(answers, texts)
        predictions = self._predictions(judged, texts, scores)
        contexts = self._contexts(trainable, frozen, scores) if self._config.compresses else {}
        full_context = self._untuned(FULL_CONTEXT) if self._config.evaluation.baseline else None
        is_placed = of_mixture or bool(self._config.selects and full_context)
        metrics = {
            **self._scores(scores, full_context),
            **(self._between(scores, full_context) if is_placed else {}),
            **self._selective(judged, scores),
            **self._likelihoods(trainable, frozen),
            **self._costs(answers, scores.n),
            **contexts,
            "by_type": self._breakdown(scores, [row["type"] for row in predictions]),
            "by_place": self._breakdown(scores, [row["place"] for row in predictions]),
            "answer_diversity": answer_diversity(
                texts, [(*example.answers, "")[0] for example in self._examples]
            ),
            "n_examples": scores.n,
            **_origin(self._config),
        }
        slots = self._slot_attention(trainable, frozen)
        return EvalResult(metrics, predictions, slots, self._kept_entries(trainable, frozen))

    def _kept_entries(self, trainable: Any, frozen: Any) -> dict[str, Any]:
        if not self._config.selects:
            return {}
        contexts, kept = self._generator.kept(trainable, frozen, self._rows_read)
        return kept_map(contexts, kept, self._pretrained.tokenizer, SLOT_CONTEXTS)

    def _slot_attention(self, trainable: Any, frozen: Any) -> list[dict[str, Any]]:
        if not self._config.compresses or self._config.selects:
            return []
        return slot_attention(
            self._graphdef,
            trainable,
            frozen,
            self._rows_read,
            self._pretrained.tokenizer,
            self._pretrained.mesh,
            SLOT_CONTEXTS,
            Buckets.of(self._config.data),
        )

    def _score(self, answers: Answers, texts: Sequence[str] | None = None) -> Scores:
        """Score answers as they were written, or the texts that are given in their place."""
        samples, seed = self._config.evaluation.bootstrap_samples, self._config.seed
        texts = self._texts(answers) if texts is None else texts
        scores = score(texts, self._examples, samples, seed)
        return replace(scores, log_probability_N=answers.log_probabilities)

    def _texts(self, answers: Answers) -> list[str]:
        tokenizer = self._pretrained.tokenizer
        return [decode(tokenizer, ids, skip_special_tokens=True).strip() for ids in answers.ids]

    def _untuned(self, control: str) -> Scores:
        """Score the base itself, with the whole context or none, by the same code."""
        graphdef, trainable, frozen = self._untuned_model(control)
        generator = make_generator(CONTROLS[control](self._config), self._pretrained, graphdef)
        return self._score(generator(trainable, frozen, self._rows, f"untuned {control}"))

    def _untuned_model(self, control: str) -> tuple[Any, Any, Any]:
        return split_model(build_model(CONTROLS[control](self._config), self._pretrained))

    def _between(self, scores: Scores, full_context: Scores | None) -> dict[str, Any]:
        """Return the score of the untuned base without a context, and the normalised score."""
        closed, found = self._untuned(CLOSED_BOOK), None
        if full_context:
            samples, seed = self._config.evaluation.bootstrap_samples, self._config.seed
            f1s = (scores.f1_N, closed.f1_N, full_context.f1_N)
            found = normalised(*f1s, scores.clusters_N, samples, seed)
        return {
            "closed_book_f1": closed.f1,
            "closed_book_f1_interval": list(closed.f1_interval),
            "closed_book_em": closed.em,
            "normalised_f1": found and found.value,
            "normalised_f1_interval": found and list(found.interval),
        }

    def _likelihoods(self, trainable: Any, frozen: Any) -> dict[str, Any]:
        """Return how likely gold answers are to the model and its controls, if the task asks it.

        It is in nats a token; answers too long for the largest bucket do not count.
        """
        if not load_task(self._config.data.task).likelihood:
            return {}
        golds = self._pretrained.prompt.encode_answers(
            [(*example.answers, "")[0] for example in self._examples]
        )
        own = self._graphdef, trainable, frozen
        asked: dict[str, tuple[Any, list[TokenizedExample]]] = {"final": (own, self._rows_read)}
        if self._config.compresses:
            asked["wrong_context"] = own, shuffle_contexts(self._rows_read)
        if self._config.evaluation.baseline:
            asked["full_context"] = self._untuned_model(FULL_CONTEXT), self._rows
        asked["closed_book"] = self._untuned_model(CLOSED_BOOK), self._rows
        longest = max(self._config.data.question_buckets)
        found = {
            name: self._likelihood(model, with_golds(rows, golds, longest))
            for name, (model, rows) in asked.items()
        }
        n = len(with_golds(self._rows, golds, longest))
        return {"gold_log_likelihood": {**found, "n": n}}

    def _likelihood(
        self, model: tuple[Any, Any, Any], rows: list[TokenizedExample]
    ) -> dict[str, Any] | None:
        """Return the mean over rows with its interval; None without rows."""
        if not rows:
            return None
        evaluation, mesh = self._config.evaluation, self._pretrained.mesh
        size = evaluation.batch_size * rows_per_step(mesh)
        found_N = gold_log_likelihood(model, rows, mesh, size, Buckets.of(self._config.data))
        clusters_N = clusters_of([row.context_id for row in rows])
        interval = clustered_bootstrap(
            found_N, clusters_N, evaluation.bootstrap_samples, self._config.seed
        )
        return {"mean": float(found_N.mean()), "interval": list(interval)}

    def _scores(self, scores: Scores, baseline: Scores | None) -> dict[str, Any]:
        return {
            "architecture": self._config.architecture,
            "target_length": self._config.target_length if self._config.compresses else None,
            "final_f1": scores.f1,
            "final_f1_interval": list(scores.f1_interval),
            "final_em": scores.em,
            "final_em_interval": list(scores.em_interval),
            "baseline_f1": baseline and baseline.f1,
            "baseline_f1_interval": baseline and list(baseline.f1_interval),
            "baseline_em": baseline and baseline.em,
            "baseline_accuracy_area": baseline and area_of(baseline),
        }

    def _judged(self, answers: Answers) -> Judged:
        """Return what was written, how sure the model is of it, and whether it is right."""
        sure_N = self._confidence.scores(answers.log_probabilities)
        return Judged.of(self._texts(answers), self._examples, sure_N)

    def _selective(self, judged: Judged, scores: Scores) -> dict[str, Any]:
        """Return how well scores tell right from wrong answers, and what a threshold withholds."""
        samples, seed = self._config.evaluation.bootstrap_samples, self._config.seed
        return {
            **answerable_metrics(scores, judged.answerable_N, samples, seed),
            **selective_metrics(judged, scores.clusters_N, samples, seed),
            **self._confidence.about(judged),
        }

    def _costs(self, answers: Answers, n: int) -> dict[str, Any]:
        counts = parameter_counts(abstract_model(self._config, self._pretrained.source.config))
        tokens, slots = sum(len(row.context_ids) for row in self._rows), int(np.sum(answers.slots))
        return {
            "compression_ratio": Budget.of(self._config).nominal_ratio,
            "effective_compression_ratio": tokens / slots if slots else None,
            "bytes_per_context_token": self._stored_bytes(answers, slots) / max(tokens, 1),
            **answers.refined,
            "compressor_parameters": counts["compressor"],
            "trainable_parameters": counts["trainable"],
            "wall_time_per_sample_s": {
                "compress": answers.compress_s / n,
                "answer": answers.answer_s / n,
            },
        }

    def _stored_bytes(self, answers: Answers, slots: int) -> int:
        """Return the bytes that stand for all contexts; of a whole one those of its cache."""
        if self._config.compresses:
            return answers.stored_bytes
        base, model = self._pretrained.source.config, self._config.model
        size = jnp.dtype(model.compute_dtype or model.dtype).itemsize
        return slots * 2 * base.n_layers * base.n_kv_heads * base.head_dim * size

    def _contexts(self, trainable: Any, frozen: Any, scores: Scores) -> dict[str, Any]:
        """Measure whether slots depend on their context.

        How alike they are, and the score with the slots of another context.
        """
        alike = {}
        if not self._config.selects:
            slots_BxMxD, slots_B = self._generator.slots(trainable, frozen, self._rows_read)
            alike = {"slot_similarity": slot_similarity(slots_BxMxD, slots_B)}
        if not self._config.evaluation.shuffled:
            return alike
        wrong = self._score(
            self._generator(trainable, frozen, shuffle_contexts(self._rows_read), "wrong contexts")
        )
        samples, seed = self._config.evaluation.bootstrap_samples, self._config.seed
        gap = paired_difference(scores.f1_N, wrong.f1_N, scores.clusters_N, samples, seed)
        shuffled = {
            "shuffled_f1": wrong.f1,
            "shuffled_gap": gap.mean,
            "shuffled_gap_interval": list(gap.interval),
        }
        return {**alike, **shuffled}

    def _breakdown(self, scores: Scores, groups: Sequence[Any]) -> dict[str, Any]:
        samples = self._config.evaluation.bootstrap_samples
        return breakdown(scores.f1_N, groups, scores.clusters_N, samples, self._config.seed)

    def _predictions(
        self, judged: Judged, texts: Sequence[str], scores: Scores
    ) -> list[dict[str, Any]]:
        tokenizer = self._pretrained.tokenizer
        contexts = {row.context_id: decode(tokenizer, row.context_ids) for row in self._rows}
        lengths = {row.context_id: len(row.context_ids) for row in self._rows}
        return [
            {
                "id": example.id,
                "context_id": example.context_id,
                "context_tokens": lengths[example.context_id],
                "question": example.question,
                "prediction": text,
                **({"withheld": written} if written != text else {}),
                "score": float(sure),
                "answers": list(example.answers),
                "type": answer_type(example.looked_up) if example.answers else NO_ANSWER,
                "place": answer_place(contexts[example.context_id], example.looked_up),
                "f1": float(f1),
                "em": float(em),
            }
            for example, text, written, sure, f1, em in zip(
                self._examples,
                texts,
                judged.texts,
                judged.score_N,
                scores.f1_N,
                scores.em_N,
                strict=True,
            )
        ]

"""F1, EM and compression ratio of a set of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gistjax.data.squad import Example
from gistjax.evaluation.squad_metrics import exact_match, f1
from gistjax.evaluation.statistics import clustered_bootstrap


@dataclass(frozen=True)
class Scores:
    """Means in 0..1 with 95 % intervals, from a bootstrap clustered by context."""

    f1: float
    f1_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    n: int


def score(
    predictions: Sequence[str], examples: Sequence[Example], samples: int, seed: int
) -> Scores:
    """Official SQuAD v1.1 scores of predictions, in the examples' order."""
    pairs = list(zip(predictions, examples, strict=True))
    f1_N = np.array([f1(text, example.answers) for text, example in pairs])
    em_N = np.array([exact_match(text, example.answers) for text, example in pairs])
    clusters_N = np.array([example.context_id for example in examples])
    return Scores(
        f1=float(f1_N.mean()),
        f1_interval=clustered_bootstrap(f1_N, clusters_N, samples, seed),
        em=float(em_N.mean()),
        em_interval=clustered_bootstrap(em_N, clusters_N, samples, seed),
        n=len(pairs),
    )


def prediction_rows(
    predictions: Sequence[str], examples: Sequence[Example], limit: int
) -> list[dict[str, Any]]:
    """What `sample_predictions.json` holds: question, prediction, golds and F1 of the first rows."""
    return [
        {
            "id": example.id,
            "question": example.question,
            "prediction": text,
            "answers": list(example.answers),
            "f1": round(float(f1(text, example.answers)), 4),
        }
        for text, example in list(zip(predictions, examples, strict=True))[:limit]
    ]

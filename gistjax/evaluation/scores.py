"""F1, EM and compression ratio of a set of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gistjax.data.example import Example
from gistjax.evaluation.squad_metrics import exact_match, f1
from gistjax.evaluation.statistics import clustered_bootstrap


@dataclass(frozen=True)
class Scores:
    """Means in 0..1 with 95 % intervals, from a bootstrap clustered by context."""

    f1: float
    f1_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    f1_N: np.ndarray
    em_N: np.ndarray
    clusters_N: np.ndarray  # the context of each question

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.f1_N)


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
        f1_N=f1_N,
        em_N=em_N,
        clusters_N=clusters_N,
    )

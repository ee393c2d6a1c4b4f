"""Run directories, as `gistjax.train` leaves them."""

import json
from pathlib import Path

import numpy as np

from gistjax.config import CompressionConfig

ARCHITECTURES = ("conv", "gist", "mean_pool", "pooling")
QUESTIONS = [
    ("q1", "When was the bridge built?", ["1904", "in 1904"], "date"),
    ("q2", "Who built <b>it</b> & why?", ["Ada | Sons"], "name"),
    ("q3", "How long is it?", ["310 metres"], "number"),
]


def write_run(
    folder: Path, name: str, config: CompressionConfig, right: int, **metrics: object
) -> Path:
    """A run that answered the first `right` questions."""
    path = folder / name
    path.mkdir(parents=True)
    f1 = right / len(QUESTIONS)
    slots = config.target_length
    found = {
        "architecture": config.architecture,
        "final_f1": f1,
        "final_f1_interval": [f1 - 0.1, f1 + 0.1],
        "final_em": f1 / 2,
        "final_em_interval": [f1 / 2 - 0.05, f1 / 2 + 0.07],
        "baseline_f1": 0.5,
        "baseline_f1_interval": [0.4, 0.6],
        "baseline_em": 0.4,
        "compression_ratio": 512 / slots,
        "effective_compression_ratio": 500 / slots,
        "compressor_parameters": {"mean_pool": 0, "none": 0, "closed_book": 0}.get(
            config.architecture, 10_000
        ),
        "trainable_parameters": 12_345,
        "wall_time_per_sample_s": {"compress": 0.001, "answer": 0.002},
        "by_type": {"date": {"n": 1, "f1": 1.0, "f1_interval": [1.0, 1.0]}},
        "n_examples": len(QUESTIONS),
        "seed": config.seed,
        "base_model": "smollm2-135m-instruct",
        "device": "1 x cpu",
        "packages": {"jax": "0.10.2"},
        "steps": 20,
        **metrics,
    }
    predictions = [
        {
            "id": id,
            "context_id": 1,
            "question": question,
            "answers": answers,
            "type": kind,
            "prediction": answers[0]
            if i < right
            else f"{name}: </script><script>alert(1)</script>",
            "f1": float(i < right),
            "em": float(i < right - 1),
        }
        for i, (id, question, answers, kind) in enumerate(QUESTIONS)
    ]
    rows = [{"step": s, "total_steps": 20, "loss": 3 / s, "step_s": 0.1} for s in range(1, 21)]
    put(path / "config.json", {"config": config.to_json(), "base_sha256": "a" * 64})
    put(path / "metrics.json", found)
    put(path / "predictions.json", predictions)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config.architecture in ARCHITECTURES:
        weights = np.eye(2, 3) + 0.1
        put(
            path / "slot_attention.json",
            [{"context_id": 1, "words": ["The", "old", "<bridge>"], "weights": weights.tolist()}],
        )
    return path


def put(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))

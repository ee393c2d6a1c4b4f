"""Measure how much packed entries hold beside how much is kept, at every spread and ratio.

    python -m launch.packed_size [--scorer=expected_attention]
        --config.data.path=FOLDER [--config.model.name=NAME] [--config.KEY=VALUE …]

The base, untuned, reads the first tokens of the validation paragraphs, one behind another; the
spread `profile` is measured on training paragraphs. Prints a table and, as the last line, JSON. A
cell is bytes held over bytes kept. `rows` is what a row a layer would hold, all as long as the
longest layer's. `window` is the most entries that are read of a KV head, over the mean.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.kept import Entries, packed, size_class
from gistjax.compress.spread import count_at, shares_at, whole_parts
from gistjax.config import (
    SCORERS,
    SPREADS,
    CompressionConfig,
    LoraConfig,
    ModelConfig,
    SelectConfig,
)
from gistjax.data.dataset import load_dataset
from gistjax.experiment.base import build_model, load_pretrained
from gistjax.runtime import cli

TOKENS, RATIOS = (60, 171, 434, 512), (2.0, 8.0, 32.0)
PROFILED = 16
"""Contexts that the profile is measured on."""


class Reader:
    """Scores of contexts, and what is kept of them."""

    def __init__(self, model: CompressedLM, prefix_ids: Sequence[int]):
        assert model.selector is not None
        self.base, self.selector = model.base.config, model.selector
        graphdef, state = nnx.split(model)

        def read(state: Any, ids_1xC: Array, length_1: Array) -> Array:
            model = nnx.merge(graphdef, state)
            context = ids_1xC, length_1
            selector: Any = model.selector
            score_Lx1xKxC: Array = selector.read(
                model.base, model.lora, jnp.asarray(prefix_ids), context
            )[1]
            return score_Lx1xKxC

        self._read, self._state = jax.jit(read), state
        self._profile_LxKxR = jnp.zeros(0)

    def scores(self, ids: np.ndarray) -> tuple[Array, Array]:
        """Return the scores of a context `[L, 1, K, C]`, and its length."""
        row = np.zeros((1, max(TOKENS)), np.int32)
        row[0, : len(ids)] = ids
        length_1 = jnp.asarray([len(ids)])
        return self._read(self._state, row, length_1), length_1

    def measure_profile(self, contexts: Sequence[np.ndarray]) -> None:
        """Measure the profile of some contexts, all of one length."""
        counts = [count_at(*self.scores(ids))[:, :, 0] for ids in contexts]
        parts_RxLxK = np.mean(counts, axis=0) / len(contexts[0])
        self._profile_LxKxR = jnp.moveaxis(jnp.asarray(parts_RxLxK), 0, -1)

    def counts(self, score: Array, length_1: Array, spread: str, ratio: float) -> np.ndarray:
        """Return how many entries each KV head keeps, `[L, K]`."""
        total_1 = self.selector.entries(length_1, ratio)
        if spread == "profile":
            share_Lx1xK = shares_at(self._profile_LxKxR, self.selector.heads * length_1 / total_1)
            parts_Lx1xK = whole_parts(share_Lx1xK, length_1, total_1)
        else:
            parts_Lx1xK = self.selector.choose(score, length_1, total_1, spread).sum(-1)
        return np.asarray(parts_Lx1xK[:, 0], np.int32)

    def cell(self, score: Array, length_1: Array, spread: str, ratio: float) -> dict[str, Any]:
        """Return what is kept and held of a context."""
        count_LxK = self.counts(score, length_1, spread, ratio)
        entries = np.zeros((int(count_LxK.sum()), self.base.head_dim), jnp.bfloat16)
        found = packed(Entries(entries, entries, count_LxK))
        kept = 2 * entries.nbytes
        L, K = count_LxK.shape
        row = size_class(int(count_LxK.sum(1).max())) * (4 * self.base.head_dim + K)
        return {
            "kept_bytes": kept,
            "held": sum(x.nbytes for x in jax.tree.leaves(found)) / kept,
            "rows": L * row / kept,
            "window": found.most / count_LxK.mean(),
        }


def cells(reader: Reader, ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield every cell."""
    for tokens in TOKENS:
        score, length_1 = reader.scores(ids[:tokens])
        for ratio in RATIOS:
            for spread in SPREADS:
                found = reader.cell(score, length_1, spread, ratio)
                yield {"tokens": tokens, "ratio": ratio, "spread": spread, **found}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the cells as a table of Markdown."""
    heads = ["tokens", "ratio", "kept", *(f"{s}: held / rows / window" for s in SPREADS)]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for start in range(0, len(found), len(SPREADS)):
        own = found[start : start + len(SPREADS)]
        kept = f"{own[0]['kept_bytes'] / 1e3:,.0f} kB"
        row = [f"{own[0]['tokens']}", f"{own[0]['ratio']:g}", kept]
        row += [f"{c['held']:.3f} / {c['rows']:.2f} / {c['window']:.1f}" for c in own]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure, and print."""
    pretrained = load_pretrained(config)
    dataset = load_dataset(config.data, config.seed)
    train, validation = (
        pretrained.prompt.encode_context(
            " ".join(dict.fromkeys(example.context for example in split))
        )
        for split in (dataset.train, dataset.validation)
    )
    reader = Reader(build_model(config, pretrained), pretrained.prompt.prefix_ids)
    size = max(TOKENS)
    reader.measure_profile([train[i * size : (i + 1) * size] for i in range(PROFILED)])
    found = list(cells(reader, validation))
    print(table(found), file=sys.stderr)
    cli.print_result({"scorer": args.scorer, "cells": found})


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    about = "What an entry is worth."
    flags.DEFINE_enum("scorer", "expected_attention", SCORERS, about, flag_values=values)


def defaults(scorer: str) -> CompressionConfig:
    """Return a base that nothing is trained on, and few questions of the data."""
    default = CompressionConfig()
    return CompressionConfig(
        architecture="select",
        ratio=8.0,
        lora=LoraConfig(rank=0),
        loss_weights={"teacher_forcing": 1.0},
        model=ModelConfig("smollm2-135m-instruct"),
        select=SelectConfig(scorer, "all"),
        data=dataclasses.replace(default.data, train_examples=1000, validation_examples=100),
    )


if __name__ == "__main__":
    cli.run(
        main, define_flags, lambda argv: defaults(cli.option(argv, "scorer", "expected_attention"))
    )

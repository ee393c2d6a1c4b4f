import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gistjax.config import CompressionConfig, EncoderConfig, ModelConfig
from gistjax.estimate import flops
from gistjax.model.layer import random_initializer
from gistjax.model.llama import Llama
from gistjax.weights.registry import KNOWN
from tests.helpers.tiny import TINY, tiny_batch

BASE = KNOWN["smollm2-135m-instruct"].config


def test_four_flops_a_decoder_parameter_and_position():
    shapes = jax.eval_shape(lambda: jax.tree.leaves(_matrices(BASE)))
    matrices = sum(np.prod(x.shape) for x in shapes)
    decoder, encoder = flops.step_flops(CompressionConfig(), BASE, 512, 128)
    assert decoder == 4 * matrices * 128 and encoder == 0
    trained = CompressionConfig(encoder=EncoderConfig(kind="lora", layers=3))
    _, encoder = flops.step_flops(trained, BASE, 512, 128)
    vocabulary = BASE.vocab_size * BASE.d_model
    assert encoder == pytest.approx(4 * (matrices - vocabulary) / 30 * 3 * 512)


def test_a_frozen_encoder_takes_half_of_a_trained_one(rng):
    """Forward alone: its states have no gradient."""
    trained, frozen, none = (
        CompressionConfig(encoder=EncoderConfig(kind=kind))
        for kind in ("lora", "hidden", "embeddings")
    )
    each = [flops.step_flops(config, BASE, 512, 128)[1] for config in (trained, frozen, none)]
    assert each == [4 * 30 * flops.layer_parameters(BASE) * 512, each[0] / 2, 0]
    batch = jax.tree.map(lambda x: x[None], tiny_batch(rng))
    read = int(batch.context_length_E.sum())
    [encoder] = {flops.step_flops(frozen, TINY, read, n)[1] for n in (1, 9)}
    more = flops.batch_flops(frozen, TINY, batch) - flops.batch_flops(none, TINY, batch)
    assert more == encoder > 0


def _matrices(base):
    """The base's matrices; the tied table counts once, as the output."""
    llama = Llama(base, random_initializer(jax.random.key(0), np.float32))
    layers = llama.layers
    return [x[...] for x in (llama.embedding, layers.qkv, layers.o, layers.gate_up, layers.down)]


@pytest.mark.parametrize(
    ("changes", "memory"),
    [
        ({"architecture": "none"}, lambda n: n),
        ({"architecture": "closed_book"}, lambda n: 0),
        ({"target_length": 8}, lambda n: min(n, 8)),
        ({"target_length": 16, "ratio": 4.0}, lambda n: -(-n // 4)),
    ],
)
def test_only_real_positions_of_a_batch_count(rng, changes, memory):
    batch = jax.tree.map(lambda x: x[None], tiny_batch(rng))
    config = CompressionConfig(**changes)
    positions = sum(memory(int(n)) for n in batch.context_length_E.flat)
    positions += int(batch.question_length_B.sum() + batch.answer_length_B.sum())
    assert flops.batch_flops(config, TINY, batch) == flops.step_flops(config, TINY, 0, positions)[0]
    padded = np.pad(batch.tokens_BxS, ((0, 0), (0, 0), (0, 9)))
    wider = dataclasses.replace(batch, tokens_BxS=padded)
    assert flops.batch_flops(config, TINY, wider) == flops.batch_flops(config, TINY, batch)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.1),
        ("cpu", None),
    ],
)
def test_the_least_time_is_by_the_peak_of_all_devices(monkeypatch, rng, kind, peak):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    config, batch = CompressionConfig(), tiny_batch(rng)
    seconds = flops.least_seconds(config, TINY)
    if peak is None:
        assert seconds is None
    else:
        expected = flops.batch_flops(config, TINY, batch) / (4e12 * peak)
        assert seconds(batch) == pytest.approx(expected)
    assert flops.least_seconds(config.replace(model=ModelConfig(dtype="float32")), TINY) is None

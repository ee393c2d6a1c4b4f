"""Scores against kvpress itself (https://github.com/NVIDIA/kvpress), where it is installed.

It takes a transformers that is older than ours, so it has an environment of its own.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from tests.helpers.families import V, torch_model
from tests.helpers.torch_scores import scores as reference

kvpress = pytest.importorskip("kvpress")
pytestmark = pytest.mark.slow

PREFIX, LENGTH, QUESTION, REPEAT = [5, 9, 2], 80, 9, [7, 8]
PRESSES = {
    "expected_attention": kvpress.ExpectedAttentionPress,
    "h2o": kvpress.ObservedAttentionPress,
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio, window_size=LENGTH // 16),
    "question_aware": lambda ratio: kvpress.SnapKVPress(ratio, window_size=QUESTION),
    "keydiff": kvpress.KeyDiffPress,
    "knorm": kvpress.KnormPress,
}


def test_what_presses_give_is_what_the_reference_gives():
    model = torch_model("llama", attn_implementation="eager")
    rng = np.random.default_rng(0)
    context, question = rng.integers(2, V, LENGTH).tolist(), rng.integers(2, V, QUESTION).tolist()
    for name, make in PRESSES.items():
        ids = [*PREFIX, *context, *(question if name == "question_aware" else ())]
        theirs = scores_of(make(0.5), model, ids)[:, :, len(PREFIX) : len(PREFIX) + LENGTH]
        check(name, reference(name, model, PREFIX, context, question), theirs)
    theirs = repeated(model, context)[:, :, len(PREFIX) :]
    check("kvzip", reference("kvzip", model, PREFIX, context, [*REPEAT, *context]), theirs)


@pytest.mark.parametrize("ratio", [0.5, 0.875])
def test_streaming_keeps_the_same(ratio):
    model, ids = torch_model("llama", attn_implementation="eager"), [*PREFIX, *range(2, 60)]
    theirs = scores_of(kvpress.StreamingLLMPress(ratio), model, ids) > 0
    ours = reference("streaming", model, [], ids)
    n = theirs[0, 0].sum()
    np.testing.assert_array_equal(ours >= np.sort(ours, axis=-1)[..., -n, None], theirs)


def check(name, ours, theirs):
    """Equal where it is not kept first anyway; then what is kept first is the same."""
    ordinary = ours < 1e6
    if not ordinary.all():
        assert theirs[~ordinary].min() > theirs[ordinary].max(), name
    scale = np.abs(ours[ordinary]).max()
    np.testing.assert_allclose(
        ours[ordinary], theirs[ordinary], atol=1e-4 * scale, rtol=0, err_msg=name
    )


def scores_of(press, model, ids):
    """What a press gives each entry, `[L, K, T]`; nothing is dropped."""
    found = []

    def compress(module, hidden_states, keys, values, attentions, kwargs):
        score = press.score(module, hidden_states, keys, values, attentions, kwargs)
        found.append(score[0].numpy())
        return keys, values

    press.compress = compress
    with torch.no_grad(), press(model):
        model(torch.tensor(ids)[None], past_key_values=DynamicCache(), output_attentions=True)
    return np.stack(found)


def repeated(model, context):
    """KVzip's, with all of the prefix for sinks: then its probabilities are the model's."""
    press = kvpress.KVzipPress(0.5, n_sink=len(PREFIX))
    press.prefix_length, press._suffix_ids = len(PREFIX), torch.tensor([REPEAT[1:]])
    press._context_ids, press._cache = torch.tensor([[*PREFIX, *context]]), DynamicCache()
    press.compress_post = lambda model: None
    prompt = SimpleNamespace(encode=lambda *args, **kwargs: torch.tensor([REPEAT[:1]]))
    with torch.no_grad():
        model(press._context_ids, past_key_values=press._cache)
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb
        press._perform_kvzip_compression(model, prompt)
    return press.score_val[:, 0].numpy()

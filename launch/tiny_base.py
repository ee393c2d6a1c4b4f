"""Train `tiny-facts`, the base of the quickstart, and write it as a Hugging Face folder.

    python launch/tiny_base.py --folder gistjax/weights/tiny_facts

A Llama of 0.4 million parameters and its own tokenizer learn to answer from a paragraph that they
see whole. A document is a prompt and a paragraph with all its questions and answers, one after
another. There are 8,000, drawn apart from those of `--config.data.path=facts`; the model knows
nothing else. It takes minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gistjax.data import facts
from gistjax.data.prompts import Prompt, make_prompt
from gistjax.model.layer import random_initializer
from gistjax.model.llama import Llama
from gistjax.weights.registry import KNOWN
from launch.synthetic_weights import hugging_face_config

CONFIG = KNOWN["tiny-facts"].config
SPECIAL = ("<|end|>", "<|user|>", "<|answer|>")
TEMPLATE = (  # no system turn: one task needs no instruction
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|answer|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
PARAGRAPHS = 8_000
OTHERS_WEIGHT = 0.1  # of tokens that are no answer in the loss


class Documents(NamedTuple):
    """Right-padded ids with their lengths, and True for each token of an answer."""

    ids_NxT: np.ndarray
    length_N: np.ndarray
    answer_NxT: np.ndarray


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which nearly every word of the facts is one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    values = [value for kind in facts.KINDS for value in kind.values]
    asked = [f"Context:\nQuestion: {kind.question}" for kind in facts.KINDS]
    contexts = [row["context"] for row in facts.rows("train")]
    backend.train_from_iterator([*contexts, *values * 50, *asked * 50], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def documents(prompt: Prompt, n: int) -> Documents:
    """Return n paragraphs, each with all its questions and answers in random order."""
    rng = np.random.default_rng(0)
    texts = [facts.paragraph(rng) for _ in range(n)]
    contexts = prompt.encode_texts([context for context, _ in texts])
    encode_question = functools.cache(prompt.encode_question)  # few are distinct
    encode_answer = functools.cache(prompt.encode_answer)
    ids, answered = [], []
    for context, (_, questions) in zip(contexts, texts, strict=True):
        parts = [(prompt.prefix_ids, False), (context.ids, False)]
        for index in rng.permutation(len(questions)):
            question, answer = questions[index]
            parts += [(encode_question(question), False), (encode_answer(answer), True)]
        ids.append(np.concatenate([part for part, _ in parts]))
        answered.append(np.concatenate([np.full(len(part), flag) for part, flag in parts]))
    lengths = np.array([len(document) for document in ids])
    ids_NxT = np.zeros((n, lengths.max()), np.int32)
    answer_NxT = np.zeros(ids_NxT.shape, bool)
    for row, (document, flags) in enumerate(zip(ids, answered, strict=True)):
        ids_NxT[row, : len(document)], answer_NxT[row, : len(document)] = document, flags
    return Documents(ids_NxT, lengths, answer_NxT)


def loss_fn(
    weights: Any, graphdef: Any, ids_BxT: Any, length_B: Any, answer_BxT: Any
) -> tuple[Any, Any]:
    """Return the weighted mean negative log-likelihood of the next token, and that of answers."""
    llama, T = nnx.merge(graphdef, weights), ids_BxT.shape[1] - 1
    h_BxTxD, _ = llama(llama.embed(ids_BxT[:, :-1]), jnp.arange(T)[None])
    logits_BxTxV = h_BxTxD @ llama.embedding[...].T  # `llama.logits` takes the table for frozen
    nll_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, ids_BxT[:, 1:])
    real_BxT, answers_BxT = jnp.arange(1, T + 1) < length_B[:, None], answer_BxT[:, 1:]
    weight_BxT = jnp.where(answers_BxT, 1.0, OTHERS_WEIGHT) * real_BxT
    return jnp.sum(nll_BxT * weight_BxT) / jnp.sum(weight_BxT), jnp.sum(
        nll_BxT * answers_BxT
    ) / jnp.sum(answers_BxT)


def make_optimizer() -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024) for the matrices and Adam for the rest.

    The matrices learned to look up in fewer steps with Muon than with Adam.
    """

    def axes(weights: Any) -> Any:
        return jax.tree.map(
            lambda w: MuonDimensionNumbers(1, tuple(range(2, w.ndim))) if w.ndim > 2 else None,
            weights,
        )

    update = muon(8e-3, adam_learning_rate=3e-3, adam_b2=0.98, muon_weight_dimension_numbers=axes)
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def train(prompt: Prompt, steps: int, batch_tokens: int) -> Llama:
    """Train on next-token prediction; the last quarter of the steps slows down to a stop."""
    graphdef, weights = nnx.split(Llama(CONFIG, random_initializer(jax.random.key(0), jnp.float32)))
    weights = jax.tree.map(lambda w: 5 * w if w.ndim > 2 else w, weights)  # the width is small
    optimizer = make_optimizer()
    opt_state = optimizer.init(weights)

    @jax.jit
    def step(weights: Any, opt_state: Any, rate: Any, *batch: Any) -> Any:
        (_, answer_loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            weights, graphdef, *batch
        )
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return optax.apply_updates(weights, updates), opt_state, answer_loss

    data, rng, begun = documents(prompt, PARAGRAPHS), np.random.default_rng(1), time.monotonic()
    size = batch_tokens // data.ids_NxT.shape[1]
    for number in range(1, steps + 1):
        rate = min(number / 50, 1.0, 4 * (1 - number / steps))
        rows = rng.choice(PARAGRAPHS, size, replace=False)
        weights, opt_state, loss = step(weights, opt_state, rate, *(x[rows] for x in data))
        if number % 50 == 0:
            seconds = time.monotonic() - begun
            print(f"step {number}: loss on answers {loss:.4f}, {seconds:.0f} s", flush=True)
    return nnx.merge(graphdef, weights)


def write(llama: Llama, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """`config.json`, `model.safetensors` in bf16 and the tokenizer."""
    c, layers = llama.config, llama.layers
    G = c.n_heads // c.n_kv_heads
    qkv, gate_up = np.asarray(layers.qkv[...]), np.asarray(layers.gate_up[...])
    parts = {
        "self_attn.q_proj": qkv[..., :G, :],
        "self_attn.k_proj": qkv[..., G, :],
        "self_attn.v_proj": qkv[..., G + 1, :],
        "self_attn.o_proj": layers.o[...],
        "mlp.gate_proj": gate_up[:, :, 0],
        "mlp.up_proj": gate_up[:, :, 1],
        "mlp.down_proj": layers.down[...],
    }
    tensors = {
        "model.embed_tokens.weight": llama.embedding[...],
        "model.norm.weight": llama.final_norm[...],
    }
    for i in range(c.n_layers):
        name = f"model.layers.{i}."
        for part, stack in parts.items():
            width = c.n_heads * c.head_dim if part.endswith("o_proj") else stack.shape[1]
            tensors[f"{name}{part}.weight"] = np.asarray(stack)[i].reshape(width, -1).T
        tensors[f"{name}input_layernorm.weight"] = layers.attention_norm[...][i]
        tensors[f"{name}post_attention_layernorm.weight"] = layers.ffn_norm[...][i]
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        k: np.ascontiguousarray(np.asarray(v).astype(ml_dtypes.bfloat16))
        for k, v in tensors.items()
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        **hugging_face_config(c),
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_tokens", type=int, default=3072)
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    prompt = make_prompt(tokenizer)
    write(train(prompt, args.steps, args.batch_tokens), tokenizer, args.folder)


if __name__ == "__main__":
    main()

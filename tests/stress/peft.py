"""A run's decoder adapter in PEFT's format, read by PEFT in PyTorch: the same logits, the same
greedy answers.

ours    base + adapter ─ JAX ─▶ logits, tokens        run ─ gistjax.export --to peft ─▶ folder
theirs  base ─ transformers ─ PeftModel(folder) ─ PyTorch ─▶ logits, tokens
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from peft import PeftModel
from transformers import LlamaConfig as TorchConfig
from transformers import LlamaForCausalLM

from gistjax import export
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.decoding import greedy
from gistjax.compress.parameters import export_trainable, import_trainable, split_model
from gistjax.config import CompressionConfig, DataConfig, LoraConfig, ModelConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.prompts import make_prompt
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.model.llama import Llama
from gistjax.runtime import cli
from gistjax.runtime.sharding import one_device
from gistjax.weights.registry import base_hash, load_base, resolve
from gistjax.weights.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
"""Largest difference of logits, in fp32, as a share of the largest logit."""
NEW = 8
ROWS = 10
"""Prompts that are answered together."""


def write_run(folder: Path, config: CompressionConfig, base: Llama, seed: int) -> Path:
    """A run directory whose decoder adapter is drawn, no factor of it zero."""
    _, trainable, _ = split_model(CompressedLM(base, config, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    trainable = jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.normal(size=leaf.shape) / leaf.shape[1] ** 0.5 / 4, leaf.dtype
        ),
        trainable,
    )
    folder.mkdir()
    export_trainable(trainable, folder / "compressor.safetensors", {})
    about = {"config": config.to_json(), "base_sha256": base_hash(base)}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def export_adapter(run: Path, output: Path) -> Path:
    """As the command does it."""
    output.mkdir()
    export.EXPORTS["peft"](export.Request(run, RunDir(run).config(), output, [], []))
    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    return output


def compare(
    run: Path, base: Llama, torch_base: Any, prompts: Sequence[Sequence[int]], folder: Path
) -> dict[str, Any]:
    """How far the logits are apart, and how many answers are equal."""
    config = RunDir(run).config()
    torch_base.generation_config.eos_token_id = None  # neither side stops early
    adapted = PeftModel.from_pretrained(torch_base, export_adapter(run, folder)).eval()
    graphdef, fresh, frozen = split_model(CompressedLM(base, config, jax.random.key(0)))
    trainable = import_trainable(run / "compressor.safetensors", fresh)
    # Prompts are read as they are, whatever the run compresses.
    plain = config.replace(architecture="closed_book", slot_form="soft_tokens")
    ours = CompressedLM(base, plain, jax.random.key(0))
    ours.lora = nnx.merge(graphdef, trainable, frozen).lora
    apart, equal = 0.0, 0
    for start in range(0, len(prompts), ROWS):
        group = prompts[start : start + ROWS]
        logits, answers = _ours(ours, group)
        for ids, logits_SxV, answer in zip(group, logits, answers, strict=True):
            tokens = torch.tensor([list(ids)])
            with torch.no_grad():
                expected = adapted(tokens).logits[0].numpy()
                written = adapted.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=NEW,
                    do_sample=False,
                    pad_token_id=0,
                )[0, len(ids) :].tolist()
            difference = np.abs(logits_SxV[: len(ids)] - expected).max() / np.abs(expected).max()
            apart, equal = max(apart, float(difference)), equal + (answer == written)
    adapted.unload()
    return {"prompts": len(prompts), "equal_answers": equal, "largest_difference": round(apart, 8)}


def _ours(
    model: CompressedLM, prompts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, list[list[int]]]:
    """Logits `[B, S, V]` and answers; shorter prompts are padded."""
    tokens_BxS = np.zeros((len(prompts), -(-max(map(len, prompts)) // 32) * 32), np.int32)
    for row, ids in zip(tokens_BxS, prompts, strict=True):
        row[: len(ids)] = ids
    length_B = jnp.array([len(ids) for ids in prompts])
    B, S = tokens_BxS.shape

    @nnx.jit
    def run(model: CompressedLM) -> tuple[jax.Array, jax.Array]:
        no_prompt, no_context = jnp.zeros(0, jnp.int32), jnp.zeros((B, 1), jnp.int32)
        memory = model.in_sequence(no_prompt, no_context, jnp.ones(B, jnp.int32))
        wanted_BxS = jnp.broadcast_to(jnp.arange(S), (B, S))
        h_BxSxD, _ = model.prefill_with(memory, jnp.array(tokens_BxS), length_B, 0, wanted_BxS)
        answers = greedy(model, memory, jnp.array(tokens_BxS), length_B, NEW, -1).ids_BxA
        return model.base.logits(h_BxSxD), answers

    logits, answers = run(model)
    return np.asarray(logits), np.asarray(answers).tolist()


def tiny(folder: Path) -> dict[str, Any]:
    """A random tiny Llama and 12 random prompts."""
    torch.manual_seed(0)
    settings = TorchConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    theirs = LlamaForCausalLM(settings).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn_like(weight) / weight.shape[1] ** 0.5)
    theirs.save_pretrained(folder / "base")
    model = ModelConfig(name="local", path=str(folder / "base"), dtype="float32", scan_layers=True)
    config = CompressionConfig(
        architecture="none",
        model=model,
        lora=LoraConfig(rank=4, alpha=8.0, targets=("q", "v", "o", "gate", "down")),
    )
    base = load_base(resolve(model), model, one_device())
    run = write_run(folder / "run", config, base, 1)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 97, rng.integers(3, 30)).tolist() for _ in range(12)]
    return compare(run, base, theirs, prompts, folder / "peft")


def smollm2(folder: Path, number: int) -> dict[str, dict[str, Any]]:
    """The real SmolLM2-135M-Instruct with an adapter of the shape that configs/full_context.py
    trains, drawn, and with the trained one of the run that comes with the repository; prompts are
    questions on paragraphs.
    """
    from transformers import AutoModelForCausalLM

    model = ModelConfig(name="smollm2-135m-instruct", dtype="float32")
    source = resolve(model)
    assert source.path is not None
    theirs = AutoModelForCausalLM.from_pretrained(
        source.path.parent, gguf_file=source.path.name, dtype="float32"
    ).eval()
    base = load_base(source, model, one_device())
    prompts = question_prompts(number)
    drawn = cli.read_config_file(ROOT / "configs" / "full_context.py").replace(model=model)
    runs = {
        "drawn": write_run(folder / "run", drawn, base, 1),
        "trained": SHIPPED,
    }
    return {name: compare(run, base, theirs, prompts, folder / name) for name, run in runs.items()}


def question_prompts(number: int) -> list[list[int]]:
    """Questions of the package on the beginnings of their paragraphs, as the model is asked."""
    prompt = make_prompt(load_tokenizer(resolve(ModelConfig(name="smollm2-135m-instruct"))))
    squad = load_dataset(DataConfig(path="sample", train_examples=-1), 0)
    rows = [prompt.encode(example) for example in squad.train[:number]]
    return [[*prompt.prefix_ids, *row.context_ids[:64], *row.question_ids] for row in rows]

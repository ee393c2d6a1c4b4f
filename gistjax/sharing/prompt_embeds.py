"""Slots as prompt embeddings, for engines that take embeddings in place of tokens, such as vLLM.

vLLM's completions API reads `prompt_embeds`, a tensor `[positions, D]` of a whole prompt with its
template, and numbers the positions one by one
(https://docs.vllm.ai/en/stable/features/prompt_embeds/). It wants the tensor as PyTorch saves one,
in base64:

    buffer = io.BytesIO()
    tensors = load_file("prompt_embeds.safetensors")  # of safetensors.torch
    torch.save(tensors["question_0"], buffer)
    prompt_embeds = base64.b64encode(buffer.getvalue()).decode()

The decoder's LoRA has to be served beside it (`--to peft`): the base alone cannot read slots.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from gistjax.config import CompressionConfig
from gistjax.errors import ExportError
from gistjax.inference.document import Document
from gistjax.inference.text import check_text
from gistjax.runtime.files import make_folder, write_atomically

FILE = "prompt_embeds.safetensors"


def check_exportable(config: CompressionConfig) -> None:
    """Refuse a compressor whose slots are no embeddings at consecutive positions.

    Raises:
        ExportError: for keys and values, and for slots spread over the context's positions.
    """
    if config.selects:
        raise ExportError(
            "an engine reads embeddings, but this run keeps entries of the key/value cache, others "
            "for each KV head: train a compressor with slots, as --config.architecture=pooling "
            "--config.slot_form=soft_tokens --config.slot_positions=packed is."
        )
    if config.slot_form == "key_values":
        cause = "this compressor's slots are keys and values of every layer"
    elif config.slot_positions != "packed":
        cause = f"this compressor's slots have {config.slot_positions} positions"
    else:
        return
    raise ExportError(
        f"an engine reads embeddings at consecutive positions, but {cause}: train one with "
        "--config.slot_form=soft_tokens --config.slot_positions=packed."
    )


def prompt_embeds(document: Document, question: str) -> np.ndarray:
    """Return `[T, D]` in the base's dtype: embeddings of prefix, slots and question.

    Raises:
        DataError: if the question is empty or no text.
        ExportError: if the slots are no embeddings at consecutive positions.
    """
    pretrained = document.engine.pretrained
    check_exportable(document.engine.config)
    check_text(question, "question")
    slots_SxD = np.asarray(document.context.x_BxXxD)[0, : document.slots]
    before, after = (
        np.asarray(pretrained.base.embed(jnp.asarray(ids, jnp.int32)))
        for ids in (pretrained.prompt.prefix_ids, pretrained.prompt.encode_question(question))
    )
    return np.concatenate([before, slots_SxD.astype(before.dtype), after])


def export_prompt_embeds(document: Document, questions: list[str], folder: Path) -> list[str]:
    """Write `prompt_embeds.safetensors`: `question_0`, …, their texts in its metadata.

    Returns:
        The file's name, in a list.

    Raises:
        DataError: if a question is empty or no text.
        StorageError: if the file cannot be written.
    """
    names = {f"question_{i}": question for i, question in enumerate(questions)}
    tensors = {name: prompt_embeds(document, question) for name, question in names.items()}
    make_folder(folder)
    write_atomically(folder / FILE, save(tensors, metadata={"format": "pt", **names}))
    return [FILE]

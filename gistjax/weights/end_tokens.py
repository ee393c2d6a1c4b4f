"""Tokens that end an answer, besides the one that ends a turn in the chat template.

A model may name several: Llama 3's `generation_config.json` has three. A GGUF file names them in
its metadata, and Llama 3's that it does not name are known by their spelling.
"""

from __future__ import annotations

from typing import Any

from gistjax.errors import WeightsError
from gistjax.runtime.files import read_json
from gistjax.weights.gguf_file import GgufReader, open_gguf
from gistjax.weights.registry import Source

GGUF_KEYS = (
    *(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")),
    "tokenizer.ggml.eos_token_ids",
)
LLAMA_3 = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def find_end_ids(source: Source) -> tuple[int, ...]:
    """Return the ids that a base's files name as ends; none for random weights.

    Raises:
        WeightsError: if they are no tokens of it.
    """
    if source.path is None or source.kind == "random":
        return ()
    if source.kind == "gguf":
        return _of_gguf(open_gguf(source.path))
    for name in ("generation_config.json", "config.json"):
        file = source.path / name
        if file.is_file():
            content = read_json(file, WeightsError, "fetch it again", lambda found: True)
            named = content.get("eos_token_id") if isinstance(content, dict) else None
            if named is not None:
                return _checked(named, source.config.vocab_size, f"{file}: eos_token_id")
    return ()


def _of_gguf(file: GgufReader) -> tuple[int, ...]:
    tokens: list[str] = file.metadata.get("tokenizer.ggml.tokens", [])
    ids: list[int] = []
    for key in GGUF_KEYS:
        if key in file.metadata:
            ids += _checked(file.metadata[key], len(tokens), f"{file.path}: {key}")
    ids += [tokens.index(token) for token in LLAMA_3 if token in tokens]
    return tuple(dict.fromkeys(ids))


def _checked(named: Any, vocab_size: int, where: str) -> tuple[int, ...]:
    ids = named if isinstance(named, list) else [named]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise WeightsError(f"{where} is {named!r}, which is no token of {vocab_size}.")
    return tuple(dict.fromkeys(ids))

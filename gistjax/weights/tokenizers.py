"""Tokenizers of base models: from a Hugging Face folder, from a GGUF file, or one token a byte."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from gistjax.errors import WeightsError
from gistjax.weights.gguf_file import GgufReader, open_gguf
from gistjax.weights.registry import Source, in_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _smollm() -> list[Any]:
    """Digits apart, then GPT-2's pattern."""
    return [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]


def _llama_3() -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(LLAMA_3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _qwen_2() -> list[Any]:
    """Llama 3's, but each digit stands alone."""
    pattern = LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


PRE_TOKENIZERS: dict[str, Callable[[], list[Any]]] = {
    "smollm": _smollm,
    "llama-bpe": _llama_3,
    "smaug-bpe": _llama_3,
    "qwen2": _qwen_2,
}
"""By their names in GGUF files. `smaug-bpe` is Llama 3's without a begin token, as of SmolLM3."""

CONTROL, USER_DEFINED = 3, 4
"""GGUF's types of tokens that are never split. Only the first are special: no text has them."""

BYTE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """Return the base's tokenizer; say so if it has no chat template.

    Random weights get their model's own if a package has it, else one token a byte.

    Raises:
        WeightsError: if the files hold none.
    """
    if source.kind == "random":
        return _tokenizer_for_random(source)
    assert source.path is not None
    if source.kind == "gguf":
        tokenizer = gguf_tokenizer(open_gguf(source.path))
    else:
        tokenizer = _folder_tokenizer(source.path)
    if not tokenizer.chat_template:
        log.warning("warning: %s has no chat template: prompts are plain text", source.path.name)
    return tokenizer


def _folder_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    with _quiet_transformers():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    # transformers' class of a model may make its own pre-tokenizer in place of the file's: as
    # GPT2Tokenizer, SmolLM2's digits would no longer stand apart
    as_written = (folder / "tokenizer.json").is_file()
    kind: Any = PreTrainedTokenizerFast if as_written else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged tokenizer
        raise WeightsError(
            f"{folder} holds no tokenizer that can be read ({type(error).__name__}): "
            "it needs tokenizer.json beside the weights."
        ) from error
    return tokenizer  # type: ignore[no-any-return]


def _tokenizer_for_random(source: Source) -> PreTrainedTokenizerFast:
    package = in_package(source.name)
    if package is not None:
        return gguf_tokenizer(open_gguf(package))
    if source.name != "tiny-random":
        log.info("random %s: its tokenizer is not here, so each byte is a token", source.name)
    return byte_tokenizer()


def gguf_tokenizer(file: GgufReader) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE in a GGUF file, with its special tokens and chat template.

    Raises:
        WeightsError: for another kind of tokenizer, or a damaged one.
    """
    kind, pre = file.entry("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        known = " or ".join(map(repr, PRE_TOKENIZERS))
        raise WeightsError(
            f"{file.path} holds a tokenizer of kind {kind!r}/{pre!r}; gistjax reads 'gpt2' ones "
            f"with {known}. Use the model's Hugging Face folder instead."
        )
    try:
        return _byte_level_tokenizer(file, pre)
    except WeightsError:
        raise
    except Exception as error:  # tokenizers raises the plain Exception
        raise WeightsError(
            f"{file.path} holds a damaged tokenizer ({error}): fetch it again."
        ) from error


def _byte_level_tokenizer(file: GgufReader, pre: str) -> PreTrainedTokenizerFast:
    tokens: list[str] = file.entry("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.entry("tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise WeightsError(f"{file.path} has two tokens of one name: fetch it again.")
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=PRE_TOKENIZERS[pre] is _llama_3))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre]())
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, file.entry("tokenizer.ggml.token_type"), strict=True):
        if kind in (CONTROL, USER_DEFINED):
            add = backend.add_special_tokens if kind == CONTROL else backend.add_tokens
            add([AddedToken(token, special=kind == CONTROL, normalized=False)])
    bos = _added_token(file, "bos", pre == "llama-bpe")
    eos = _added_token(file, "eos", False)
    backend.post_processor = processors.TemplateProcessing(
        single=[part for part in (bos, "$A", eos) if part],
        special_tokens=[(token, vocab[token]) for token in (bos, eos) if token],
    )
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise WeightsError(f"{file.path} has a chat template that is no text.")
    return _fast(
        backend,
        template,
        bos_token=_special_token(file, "bos"),
        eos_token=_special_token(file, "eos"),
        unk_token=_special_token(file, "unknown"),
        pad_token=_special_token(file, "padding") or _special_token(file, "eos"),
        clean_up_tokenization_spaces=False,
    )


def _special_token(file: GgufReader, name: str) -> str | None:
    tokens: list[str] = file.entry("tokenizer.ggml.tokens")
    index = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise WeightsError(f"{file.path} names {index!r} as {name} of {len(tokens)} tokens.")
    return tokens[index]


def _added_token(file: GgufReader, name: str, default: bool) -> str | None:
    """Return the token that stands at an end of each text; None if there is none.

    Args:
        default: whether there is one where the file does not say; llama.cpp decides so too.
    """
    is_added, token = file.metadata.get(f"tokenizer.ggml.add_{name}_token"), None
    if default if is_added is None else is_added:
        token = _special_token(file, name)
    if is_added and token is None:
        raise WeightsError(f"{file.path} has add_{name}_token and no {name}_token_id.")
    return token


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a token for each byte, three special ones, and a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return _fast(backend, BYTE_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _fast(backend: Tokenizer, template: str | None, **settings: Any) -> PreTrainedTokenizerFast:
    with _quiet_transformers():
        from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, **settings
    )
    tokenizer.chat_template = template
    return tokenizer


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the advice to install PyTorch, which is not used; transformers gives it on import."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

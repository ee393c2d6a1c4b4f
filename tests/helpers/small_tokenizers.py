"""Small tokenizers of every kind that a Llama may come with, trained on a few sentences."""

import json
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The mill was built in 1783 by Anneke Dursel. Who built the mill? Anneke Dursel built it.",
    "Answer the question with a short phrase copied from the context.",
    "Context:\nThe  river ran high.\n\nQuestion: Who saw the river? [INST] [/INST] <<SYS>>",
    "'Tis a Text, of 2 lines and MORE; <b>why</b> & where is It?",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' "
    "+ message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"llama 2": LLAMA_2, "chatml": CHATML, "none": None}


def _sentencepiece(pre_tokenizer: Any, normalizer: Any, model: str = "BPE") -> Tokenizer:
    """Return what sentencepiece trains: pieces with ▁, bytes for what it does not know."""
    lines = [part for text in SENTENCES for part in text.split("\n")]
    if model == "BPE":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL + BYTES, show_progress=False
        )
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(lines * 3, trainer)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.decoder = decoders.Metaspace()
    return backend


def _byte_level(prefix: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.decoder = decoders.ByteLevel()
    return backend


def _words() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    split, spaces = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, spaces])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return backend


def _merging_across() -> Tokenizer:
    """Return a BPE whose merges go over spaces and line breaks."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = _prepend()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=SPECIAL + BYTES,
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return backend


def _prepend() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _metaspace(scheme: str, split: bool = False) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


ALWAYS = _metaspace("always")
KINDS = {
    "prepend": lambda: _sentencepiece(None, _prepend()),
    "metaspace always": lambda: _sentencepiece(ALWAYS, None),
    "metaspace always, split": lambda: _sentencepiece(_metaspace("always", True), None),
    "metaspace first": lambda: _sentencepiece(_metaspace("first"), None),
    "metaspace never": lambda: _sentencepiece(_metaspace("never"), None),
    "unigram": lambda: _sentencepiece(_metaspace("always", True), None, "Unigram"),
    "byte level": lambda: _byte_level(False),
    "byte level with a space": lambda: _byte_level(True),
    "words": _words,
    "merges over spaces": _merging_across,
    "stripping": lambda: _sentencepiece(None, normalizers.Strip()),
    "space before each digit": lambda: _sentencepiece(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\d"), "isolated"), _metaspace("always")]
        ),
        None,
    ),
}


@cache
def _built(kind: str) -> str:
    backend = json.loads(KINDS[kind]().to_str())
    return json.dumps({**backend, "added_tokens": []})  # bytes are in the vocabulary alone


def small_tokenizer(
    kind: str, template: str | None = CHATML, begins: bool = True, ends: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer.

    Args:
        begins: it puts the begin token before a text by itself.
        ends: it puts the end token behind a text by itself.
    """
    backend = Tokenizer.from_str(_built(kind))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    single = "<s> " * begins + "$A" + " </s>" * ends
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} $B",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer

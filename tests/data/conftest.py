"""A small byte-level BPE tokenizer with a chat template; the question sets."""

import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gistjax.config import DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.example import Dataset
from gistjax.data.prompts import Prompt, make_prompt

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tokenizer(texts: list[str], chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 600 tokens trained on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def sample() -> Dataset:
    return load_dataset(
        DataConfig(path="sample", train_examples=-1, validation_examples=-1), seed=0
    )


@pytest.fixture(scope="session")
def tokenizer(sample: Dataset) -> PreTrainedTokenizerFast:
    return make_tokenizer([example.context for example in sample.train])


@pytest.fixture(scope="session")
def prompt(tokenizer: PreTrainedTokenizerFast) -> Prompt:
    return make_prompt(tokenizer)


@pytest.fixture(scope="session")
def squad_folder() -> Path:
    """The real question set, which is not part of the repository."""
    folder = Path(os.environ.get("GISTJAX_SQUAD", "data/squad"))
    if not (folder / "train.json").is_file():
        pytest.skip(f"no SQuAD files in {folder}; set GISTJAX_SQUAD")
    return folder

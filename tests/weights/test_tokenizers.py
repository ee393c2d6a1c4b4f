"""Tokenizers and end tokens from files, as they are written there."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import pre_tokenizers

from gistjax.data.prompts import make_prompt
from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig
from gistjax.weights.end_tokens import find_end_ids
from gistjax.weights.registry import Source
from gistjax.weights.tokenizers import byte_tokenizer, gguf_tokenizer, load_tokenizer

TOKENS = ["<|end|>", "<|begin|>", "<|eom|>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
SIZES = LlamaConfig(len(TOKENS), 64, 128, 2, 4, 2, 16)


class Gguf(SimpleNamespace):
    """The metadata of a GGUF file."""

    path = "m.gguf"

    def entry(self, key):
        return self.metadata[key]


def gguf(pre="smollm", tokens=TOKENS, types=(3, 3, 3, 4), **more):
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": [],
        "token_type": [*types, *[1] * (len(tokens) - len(types))],
        "bos_token_id": 1,
        "eos_token_id": 0,
        **more,
    }
    return Gguf(metadata={f"tokenizer.ggml.{key}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("about", "begins"),
    [
        ({"add_bos_token": True}, True),
        ({"add_bos_token": True, "add_eos_token": True}, True),
        ({"add_bos_token": False, "pre": "llama-bpe"}, False),
        ({"pre": "llama-bpe"}, True),
        ({}, False),
    ],
)
def test_a_gguf_file_says_whether_a_plain_prompt_has_a_begin_token(about, begins):
    tokenizer = gguf_tokenizer(gguf(**about))
    assert (tokenizer("a").input_ids[0] == 1) == begins
    assert (tokenizer("a").input_ids[-1] == 0) == about.get("add_eos_token", False)
    prompt = make_prompt(tokenizer)
    assert list(prompt.prefix_ids).count(1) == begins
    assert (prompt.prefix_ids[0] == 1) == begins
    assert 0 not in (*prompt.prefix_ids, *prompt.encode_question("Who?"))


def test_words_that_a_gguf_file_adds_are_found_in_a_users_text_and_special_ones_are_not():
    prompt = make_prompt(gguf_tokenizer(gguf()))
    ids = prompt.encode_context("a<pad>b<|eom|>").tolist()
    assert 3 in ids and 2 not in ids


def folder(path, **files):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.save_pretrained(path)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return Source("folder", "m", SIZES, path)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "TokenizersBackend"])
def test_a_folders_tokenizer_is_the_one_that_is_written_whatever_its_class(tmp_path, kind):
    source = folder(tmp_path, config={"model_type": "llama"})
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    changed = {**about, "tokenizer_class": kind, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
    found = load_tokenizer(source).backend_tokenizer
    assert [text for text, _ in found.pre_tokenizer.pre_tokenize_str("a  12 ½")] == [
        "a", "ĠĠ", "1", "2", "Ġ", "Â½",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [0, 2]}}, (0, 2)),
        ({"generation_config": {"eos_token_id": 2}, "config": {"eos_token_id": 0}}, (2,)),
        ({"generation_config": {}, "config": {"eos_token_id": [1, 1, 0]}}, (1, 0)),
        ({"generation_config": {"eos_token_id": None}}, ()),
        ({}, ()),
    ],
)
def test_a_folder_names_its_end_tokens(tmp_path, files, expected):
    assert find_end_ids(folder(tmp_path, **files)) == expected


@pytest.mark.parametrize("named", [-1, len(TOKENS), "</s>", [0, None], True, {"a": 1}, 1.0])
def test_an_end_that_is_no_token_is_refused(tmp_path, named):
    with pytest.raises(WeightsError, match="eos_token_id is .*, which is no token"):
        find_end_ids(folder(tmp_path, generation_config={"eos_token_id": named}))


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, (0,)),
        ({"eot_token_id": 3, "eom_token_id": 2}, (0, 3, 2)),
        ({"eos_token_ids": [0, 2]}, (0, 2)),
        (
            {"tokens": ["<|eot_id|>", *TOKENS[1:3], "<|end_of_text|>", "<|eom_id|>", *TOKENS[5:]]},
            (0, 3, 4),
        ),
    ],
)
def test_a_gguf_file_names_its_end_tokens_or_has_those_of_llama_3(monkeypatch, about, expected):
    monkeypatch.setattr("gistjax.weights.end_tokens.open_gguf", lambda path: gguf(**about))
    assert find_end_ids(Source("gguf", "m", SIZES, "m.gguf")) == expected


def test_random_weights_name_none():
    assert find_end_ids(Source("random", "m", SIZES)) == ()

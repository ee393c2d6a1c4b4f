"""The tokenizer of a GGUF file."""

import pytest

from gistjax.config import ModelConfig
from gistjax.data.prompts import make_prompt
from gistjax.errors import WeightsError
from gistjax.weights.gguf_file import GgufReader
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import gguf_tokenizer, load_tokenizer
from tests.helpers.gguf_files import write


def test_tokenizer(tmp_path):
    write(tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))
    assert tokenizer("abc").input_ids == [4, 3]
    assert tokenizer("12").input_ids == [6, 7], "digits stand apart although a merge exists"
    assert tokenizer("a<|end|>").input_ids == [1, 0]
    assert tokenizer.eos_token_id == 0


@pytest.mark.parametrize(
    ("pre", "extra", "ids"),
    [
        ("smollm", {}, [4]),
        ("llama-bpe", {}, [0, 4]),
        ("smaug-bpe", {}, [4]),
        ("smollm", {"tokenizer.ggml.add_bos_token": True}, [0, 4]),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, [4]),
        ("smollm", {"tokenizer.ggml.add_eos_token": True}, [4, 0]),
    ],
)
def test_a_text_begins_and_ends_with_the_tokens_that_the_file_asks_for(pre, extra, ids, tmp_path):
    write(
        tmp_path / "m.gguf",
        vocabulary={"pre": pre},
        extra={"tokenizer.ggml.bos_token_id": 0, **extra},
    )
    tokenizer = gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))
    assert tokenizer("ab").input_ids == ids
    assert tokenizer("ab", add_special_tokens=False).input_ids == [4]


def test_a_base_model_without_a_template_has_its_begin_token_in_the_prompt(tmp_path, caplog):
    extra = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    write(tmp_path / "m.gguf", extra=extra)
    source = resolve(ModelConfig(path=str(tmp_path / "m.gguf")))
    prompt = make_prompt(load_tokenizer(source))
    assert prompt.prefix_ids[0] == 0 and 0 not in prompt.prefix_ids[1:]
    assert "m.gguf has no chat template: prompts are plain text" in caplog.text


def test_llama_3_takes_a_word_of_the_vocabulary_before_any_merge(tmp_path):
    """`ignore_merges`: "abc" is a token to which no merges lead."""
    for pre, ids in (("llama-bpe", [9]), ("smaug-bpe", [9]), ("smollm", [4, 3])):
        extra = {"tokenizer.ggml.add_bos_token": False}
        vocabulary = {"pre": pre, "tokens": ["abc"]}
        write(tmp_path / "m.gguf", vocabulary=vocabulary, extra=extra)
        tokenizer = gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))
        assert tokenizer("abc").input_ids == ids


def test_a_token_that_a_user_defined_is_kept_and_found_in_texts(tmp_path):
    """And is no special token, which answers are stripped of."""
    write(tmp_path / "m.gguf", vocabulary={"tokens": ["<think>"], "kind": 4})
    tokenizer = gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))
    assert tokenizer("a<think>b", split_special_tokens=True).input_ids == [1, 9, 2]
    assert tokenizer.decode([1, 9, 0], skip_special_tokens=True) == "a<think>"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("tokenizer.ggml.bos_token_id", 9, "names 9 as bos of 9 tokens"),
        ("tokenizer.ggml.padding_token_id", "0", "names '0' as padding"),
        ("tokenizer.ggml.add_bos_token", True, "has add_bos_token and no bos_token_id"),
        ("tokenizer.chat_template", [1, 2], "a chat template that is no text"),
    ],
)
def test_tokens_and_templates_that_cannot_be_are_refused(key, value, says, tmp_path):
    write(tmp_path / "m.gguf", extra={key: value})
    with pytest.raises(WeightsError, match=says):
        gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))


def test_a_token_twice_is_refused(tmp_path):
    write(tmp_path / "m.gguf", vocabulary={"tokens": ["ab"]})
    with pytest.raises(WeightsError, match="two tokens of one name"):
        gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))


def test_qwens_pieces_are_those_of_transformers(tmp_path):
    """Each digit alone, letters joined to a mark before them, and composed characters."""
    from transformers import Qwen2Tokenizer

    write(tmp_path / "m.gguf", vocabulary={"pre": "qwen2"})
    ours = gguf_tokenizer(GgufReader(tmp_path / "m.gguf")).backend_tokenizer
    theirs = Qwen2Tokenizer().backend_tokenizer
    for text in ("In 1987, don't (a) b\n\n  c", "Cafe\u0301 12ab  \u00df", "x\r\n\ty 3.14 "):
        plain = ours.normalizer.normalize_str(text)
        assert plain == theirs.normalizer.normalize_str(text)
        pieces = [t.pre_tokenizer.pre_tokenize_str(plain) for t in (ours, theirs)]
        assert pieces[0] == pieces[1]

"""Tokenizers built from files against the ones that published them."""

from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from gistjax.data.prompts import INSTRUCTION, make_prompt
from gistjax.weights.gguf_file import GgufReader
from gistjax.weights.tokenizers import LLAMA_3_PATTERN, gguf_tokenizer

TEXTS = [
    "Hello, world!", "  two  spaces\n\nand\tlines\r\n", "1234567 3.14 2026-07-04", "don't WE'LL I'm",
    "naïve café — 東京 🙂 Здравствуй", "def f(x):\n    return x**2  # ok", "", " ", "\u00a0odd\u200bspaces",
    "<|im_start|>user\nhi<|im_end|>", "ABCdef123GHI", "x" * 50,
]  # fmt: skip


@pytest.mark.slow
def test_smollm2_ids_equal_those_of_transformers(smollm2_path, their_tokenizer):
    ours, theirs = gguf_tokenizer(GgufReader(smollm2_path)), their_tokenizer
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text, add_special_tokens=False).input_ids, text
        ids = ours(text).input_ids
        assert ours.decode(ids) == text
    dialog = [{"role": "user", "content": "What is a gist?"}]
    rendered = [t.apply_chat_template(dialog, tokenize=False, add_generation_prompt=True)
                for t in (ours, theirs)]  # fmt: skip
    assert rendered[0] == rendered[1]
    assert (ours.eos_token, ours.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.slow
def test_smollm2_digits_stand_apart_before_spaces_are_joined(smollm2_path, their_tokenizer):
    """As in its tokenizer.json and in llama.cpp.

    transformers leaves that step out where it reads a GGUF file, and for a folder whose
    tokenizer_class is GPT2Tokenizer.
    """
    texts = ["in  1783", "the \u2153 of", "a \u00bd b", "on 7 \u2013 8", "x   5", "\u0663 \u2167"]
    ours = gguf_tokenizer(GgufReader(smollm2_path)).backend_tokenizer
    theirs = their_tokenizer.backend_tokenizer
    as_read = theirs.pre_tokenizer
    assert ours.encode(texts[0]).ids != theirs.encode(texts[0]).ids
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), as_read]
    )
    assert [ours.encode(text).ids for text in texts] == [theirs.encode(text).ids for text in texts]
    theirs.pre_tokenizer = as_read


def test_smollm2_prompt(smollm2_path):
    prompt = make_prompt(gguf_tokenizer(GgufReader(smollm2_path)))
    assert prompt.end_id == 2
    assert prompt.sha256 == "0d48d82ca344c8d9f6f1a67136a47231508422d42f2956c3eeffba17fecdbc3f", (
        "the shipped compressor's prompt"
    )
    assert prompt.tokenizer.decode(list(prompt.prefix_ids)).endswith("Context:\n")
    question = prompt.tokenizer.decode(prompt.encode_question("Who?").tolist())
    assert question == "\n\nQuestion: Who?<|im_end|>\n<|im_start|>assistant\n"


LLAMA_31_TEMPLATE = """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}\
{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}\
{%- else %}{%- set system_message = "" %}{%- endif %}\
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\
{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}\
{{- system_message }}{{- "<|eot_id|>" }}\
{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\
{%- endfor %}{%- if add_generation_prompt %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
"""The published template of Llama-3.1-8B-Instruct, without its parts for tools."""


@pytest.fixture(scope="module")
def meta_tokenizer():
    llama_models = pytest.importorskip(
        "llama_models", reason="pip install --no-deps llama-models carries the Llama 3.1 tokenizer"
    )
    return Path(llama_models.__path__[0]) / "llama3" / "tokenizer.model"


@pytest.fixture(scope="module")
def llama_31(meta_tokenizer):
    """The real vocabulary through transformers' converter, as in the model's Hugging Face folder."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
             "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
             "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]  # fmt: skip
    names += [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]
    backend = TikTokenConverter(
        str(meta_tokenizer), pattern=LLAMA_3_PATTERN, extra_special_tokens=names
    ).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = LLAMA_31_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def tiktoken_31(meta_tokenizer):
    """Meta's own ranks and pattern, by tiktoken."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(meta_tokenizer))
    return tiktoken.Encoding(
        "llama3", pat_str=LLAMA_3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


@pytest.mark.slow
def test_llama_31_ids_equal_tiktokens(llama_31, tiktoken_31):
    for text in TEXTS:
        if "<|" not in text:
            ids = llama_31(text, add_special_tokens=False).input_ids
            assert ids == tiktoken_31.encode(text), text


@pytest.mark.slow
def test_llama_31_prompt(llama_31, tiktoken_31):
    """Prefix, question and end as Meta's chat format writes them, special ids included."""
    begin, start_header, end_header, end_turn = 128000, 128006, 128007, 128009
    encode = tiktoken_31.encode
    prompt = make_prompt(llama_31)
    assert prompt.end_id == end_turn
    system = (
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "Answer the question with a short phrase copied from the context."
    )
    assert list(prompt.prefix_ids) == [
        begin, start_header, *encode("system"), end_header, *encode("\n\n" + system), end_turn,
        start_header, *encode("user"), end_header, *encode("\n\nContext:\n"),
    ]  # fmt: skip
    assert prompt.encode_question("Who was it?").tolist() == [
        *encode("\n\nQuestion:"), *encode(" Who was it?"), end_turn,
        start_header, *encode("assistant"), end_header, *encode("\n\n"),
    ]  # fmt: skip
    assert prompt.encode_answer("Saint Bernadette").tolist() == [
        *encode("Saint Bernadette"), end_turn,
    ]  # fmt: skip


@pytest.mark.slow
def test_llama_31_pieces_are_the_whole_prompt(llama_31):
    prompt = make_prompt(llama_31)
    context, question = "The mill was built in 1783.", "Who built the mill?"
    turns = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Context:\n{context}\n\nQuestion: {question}"},
    ]
    whole = llama_31.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    ids = [*prompt.prefix_ids, *prompt.encode_context(context), *prompt.encode_question(question)]
    assert ids != llama_31(whole, add_special_tokens=False).input_ids, "of .\\n\\n it makes one"
    context = context.removesuffix(".")
    whole = whole.replace("1783.", "1783")
    ids = [*prompt.prefix_ids, *prompt.encode_context(context), *prompt.encode_question(question)]
    assert ids == llama_31(whole, add_special_tokens=False).input_ids

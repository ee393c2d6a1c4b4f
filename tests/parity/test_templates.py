"""Prompts by published chat templates and vocabularies, against transformers' rendering of them.

Templates and vocabularies come with packages that are not imported:
`pip install --no-deps trl==1.16.0 axolotl==0.19.0 dashscope==2.0.2 llama-models`, and
mistral-common in an environment of its own, since transformers would read Mistral's folders by it.
"""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges, import_protobuf

from gistjax.data.prompts import INSTRUCTION, make_prompt
from gistjax.weights.tokenizers import LLAMA_3_PATTERN

pytestmark = pytest.mark.slow

TRL, AXOLOTL = "trl/chat_templates", "axolotl/utils/chat_templates/templates"
SYSTEM, IN_USER = "system", "user"
CASES = [
    ("qwen", f"{TRL}/qwen2_5", SYSTEM),
    ("qwen", f"{TRL}/qwen3", SYSTEM),
    ("qwen", f"{TRL}/qwen3_instruct_2507", SYSTEM),
    ("qwen", f"{TRL}/qwen3_5_think", SYSTEM),
    ("llama", f"{TRL}/llama3", SYSTEM),
    ("llama", f"{TRL}/llama3_1", SYSTEM),
    ("llama", f"{TRL}/llama3_2", SYSTEM),
    ("mistral", f"{AXOLOTL}/mistral_v1", IN_USER),
    ("mistral", f"{AXOLOTL}/mistral_v2v3", IN_USER),
    ("qwen", f"{AXOLOTL}/mistral_v3_tekken", IN_USER),
    ("qwen", f"{AXOLOTL}/mistral_v7_tekken", SYSTEM),
    ("qwen", f"{TRL}/gemma", IN_USER),
    ("qwen", f"{TRL}/gemma3", SYSTEM),
]
"""Vocabulary, template, and where the instruction goes."""

CONTEXT, QUESTION, ANSWER = "The cat sat down.\n\nOn  the (old) mat", "Where did it sit?", "the mat"


@pytest.mark.parametrize(("vocabulary", "template", "place"), CASES)
def test_a_prompt_is_what_transformers_makes_of_a_published_template(
    vocabulary, template, place, tokenizers
):
    tokenizer = tokenizers(vocabulary)
    tokenizer.chat_template = packaged(f"{template}.jinja").read_text()
    prompt = make_prompt(tokenizer)
    asked = [*prompt.prefix_ids, *prompt.encode_context(CONTEXT), *prompt.encode_question(QUESTION)]
    user = f"Context:\n{CONTEXT}\n\nQuestion: {QUESTION}"
    turns = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": user}]
    if place == IN_USER:
        turns = [{"role": "user", "content": f"{INSTRUCTION}\n\n{user}"}]
    options = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    theirs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=False, **options
    )
    assert [int(i) for i in asked] == list(theirs)
    answered = [*asked, *prompt.encode_answer(ANSWER)]
    turns.append({"role": "assistant", "content": ANSWER})
    theirs = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
    assert [int(i) for i in answered] == list(theirs)[: len(answered)]


def packaged(path: str) -> Path:
    """A file of an installed package, which is not imported."""
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / rest


@pytest.fixture(scope="module")
def tokenizers():
    made = {}

    def make(name):
        if name not in made:
            made[name] = MAKERS[name]()
        return made[name]

    return make


def qwen():
    """Qwen's vocabulary, which has been the same since the first; each digit alone."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pattern = LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
    path = packaged("dashscope/resources/qwen.tiktoken")
    tokenizer = tiktoken(path, pattern, names, eos_token="<|im_end|>", bos_token="<|endoftext|>")
    marks = ("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "</s>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return tokenizer


def llama():
    """The vocabulary of Llama 3.1."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
             "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]  # fmt: skip
    path = packaged("llama_models/llama3/tokenizer.model")
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return tiktoken(path, LLAMA_3_PATTERN, names, **special)


def tiktoken(path, pattern, names, **special):
    backend = TikTokenConverter(str(path), pattern=pattern, extra_special_tokens=names).converted()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def mistral():
    """The vocabulary of Mistral v0.3, with the normalizer of its tokenizer.json."""
    pytest.importorskip("google.protobuf")
    proto = import_protobuf().ModelProto()
    path = packaged("mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")
    proto.ParseFromString(path.read_bytes())
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    backend = Tokenizer(
        models.BPE(vocab, generate_merges(vocab, scores), unk_token="<unk>", byte_fallback=True,
                   fuse_unk=True)
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    control = [piece.piece for piece in proto.pieces if piece.type in (3, 4)]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


MAKERS = {"qwen": qwen, "llama": llama, "mistral": mistral}

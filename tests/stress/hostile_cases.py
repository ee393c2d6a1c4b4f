"""What is done to good files to make them hostile: the cases, and bytes changed at random."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tests.stress.hostile_files import D, Do, V, tensors

SECRET = "correct horse battery staple"
WEIGHTS = "model.safetensors"
HUGE = 2**60
DEEP = "[" * 200_000 + "]" * 200_000
BOMB = gzip.compress(b" " * 2**28)
"""256 MB in 260 kB."""
LINES = gzip.compress(b"\n" * 2**26)
"""Lines that, held in a list, would take 512 MB; more of them only take longer to read."""


class Shell:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


PICKLE = pickle.dumps(Shell())


@dataclass(frozen=True)
class Case:
    """A kind of files, and what is done to good ones."""

    name: str
    kind: str
    break_it: Do
    may_load: bool = False  # it does no harm, so that it may be read


def put(name: str, content: bytes | str) -> Do:
    """A file with this content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit_json(name: str, **changes: Any) -> Do:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


def edit_header(
    name: str, change: Callable[[dict[str, Any]], object], size: int | None = None
) -> Do:
    """Changes the JSON header of a safetensors file, or the size that it claims to have."""

    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        claimed = len(new) if size is None else size
        (folder / name).write_bytes(struct.pack("<Q", claimed) + new + content[8 + length :])

    return edit


def first(header: dict[str, Any], **changes: Any) -> None:
    """Changes the entry of the first tensor."""
    name = next(name for name in header if name != "__metadata__")
    header[name].update(changes)


def index(file: str) -> Do:
    """An index of shards that leads to a file, which is there and whole."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).unlink()  # which would be read, and the index not
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        save_file(tensors(), outside / "model.safetensors")
        target = file.replace("OUTSIDE", str(outside))
        weight_map = dict.fromkeys(tensors(), target)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def bad_index(content: str) -> Do:
    """An index of this content, and no other weights."""

    def write(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return write


def link_to_secret(name: str) -> Do:
    """The file is a link to one outside."""

    def link(folder: Path) -> None:
        secret = folder.parent / "secret"
        secret.write_text(SECRET)
        (folder / name).unlink()
        (folder / name).symlink_to(secret)

    return link


def gguf_numbers(*words: tuple[str, int]) -> Do:
    """A GGUF file that is but a header of such numbers."""
    return put("model.gguf", b"GGUF" + b"".join(struct.pack(f"<{form}", n) for form, n in words))


def code_in_folder(folder: Path) -> None:
    """A tokenizer that asks for its own code to be run."""
    marker = "import pathlib; pathlib.Path('pwned').touch()\n"
    (folder / "tokenization_own.py").write_text(f"{marker}class Own: pass\n")
    (folder / "modeling_own.py").write_text(marker)
    own = {"AutoTokenizer": ["tokenization_own.Own", None], "AutoConfig": "modeling_own.Own"}
    edit_json("tokenizer_config.json", auto_map=own, tokenizer_class="Own")(folder)
    edit_json("config.json", auto_map=own, model_type="own")(folder)


def chat_template(text: str) -> Do:
    return put("chat_template.jinja", text)


def zip_bomb(folder: Path) -> None:
    """A zip archive where safetensors should be."""
    with zipfile.ZipFile(folder / "model.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", PICKLE + b"\0" * 2**24)


def checkpoint_files(change: Callable[[Path], object]) -> Do:
    """Changes every file of a checkpoint."""

    def edit(folder: Path) -> None:
        for path in sorted((folder / "checkpoint").rglob("*")):
            if path.is_file():
                change(path)

    return edit


def checkpoint_elsewhere(folder: Path) -> None:
    """The step is a link to a folder outside that holds no checkpoint."""
    outside = folder.parent / "elsewhere"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text(SECRET)
    shutil.rmtree(folder / "checkpoint" / "3")
    (folder / "checkpoint" / "3").symlink_to(outside)


def weights_cases() -> list[Case]:
    """Safetensors, their index and their config.json."""
    return [
        Case("pickle", "weights", put(WEIGHTS, PICKLE)),
        Case("zip with a pickle", "weights", zip_bomb),
        Case("header of 2^60 bytes", "weights", edit_header(WEIGHTS, lambda h: None, HUGE)),
        Case("header of 2^64 - 1 bytes", "weights", edit_header(WEIGHTS, lambda h: None, 2**64 - 1)),
        Case("header of 0 bytes", "weights", edit_header(WEIGHTS, lambda h: None, 0)),
        Case("deep header", "weights", put(WEIGHTS, struct.pack("<Q", len(DEEP)) + DEEP.encode())),
        Case("offsets beyond the end", "weights", edit_header(WEIGHTS, lambda h: first(h, data_offsets=[0, HUGE]))),
        Case("offsets that go back", "weights", edit_header(WEIGHTS, lambda h: first(h, data_offsets=[64, 0]))),
        Case("negative offsets", "weights", edit_header(WEIGHTS, lambda h: first(h, data_offsets=[-64, 0]))),
        Case("huge shape", "weights", edit_header(WEIGHTS, lambda h: first(h, shape=[2**40, 2**40]))),
        Case("shape of another size", "weights", edit_header(WEIGHTS, lambda h: first(h, shape=[V * D]))),
        Case("unknown dtype", "weights", edit_header(WEIGHTS, lambda h: first(h, dtype="OBJECT"))),
        Case("link to a secret", "weights", link_to_secret(WEIGHTS)),
        Case("config a link to a secret", "weights", link_to_secret("config.json")),
        Case("index upwards", "weights", index("../outside/model.safetensors")),
        Case("index to an absolute path", "weights", index("OUTSIDE/model.safetensors")),
        Case("index to a folder", "weights", index("..")),
        Case("index to a number", "weights", bad_index('{"weight_map": {"a": 3}}')),
        Case("index to null", "weights", index("model\0.safetensors")),
        Case("deep index", "weights", bad_index(DEEP)),
        Case("deep config", "weights", put("config.json", DEEP)),
        Case("2^40 layers", "weights", edit_json("config.json", num_hidden_layers=2**40)),
        Case("100,000 layers", "weights", edit_json("config.json", num_hidden_layers=100_000)),
        Case("2^50 tokens", "weights", edit_json("config.json", vocab_size=2**50)),
        Case("-1 wide", "weights", edit_json("config.json", hidden_size=-1)),
        Case("0 heads", "weights", edit_json("config.json", num_attention_heads=0)),
        Case("-2 key heads", "weights", edit_json("config.json", num_key_value_heads=-2)),
        Case("heads a list", "weights", edit_json("config.json", num_key_value_heads=[2])),
        Case("RoPE a list", "weights", edit_json("config.json", rope_scaling=[1])),
        Case("RoPE without numbers", "weights", edit_json("config.json", rope_scaling={"rope_type": "llama3"})),
        Case("RoPE of text", "weights", edit_json("config.json", rope_theta="x")),
        Case("positions of text", "weights", edit_json("config.json", max_position_embeddings="x")),
    ]  # fmt: skip


def gguf_cases() -> list[Case]:
    """GGUF."""
    return [
        Case("2^60 entries", "gguf", gguf_numbers(("I", 3), ("Q", 1), ("Q", HUGE))),
        Case("2^60 tensors", "gguf", gguf_numbers(("I", 3), ("Q", HUGE), ("Q", 0))),
        Case("key of 2^60 bytes", "gguf", gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", HUGE))),
        Case(
            "array of 2^60 items", "gguf",
            gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("b", 97), ("I", 9), ("I", 4), ("Q", HUGE)),
        ),
        Case(
            "arrays in arrays", "gguf",
            gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("b", 97), *[("I", 9), ("I", 9), ("Q", 1)] * 5_000),
        ),
        Case("pickle", "gguf", put("model.gguf", PICKLE)),
        Case("other version", "gguf", gguf_numbers(("I", 99), ("Q", 0), ("Q", 0))),
        Case("link to a secret", "gguf", link_to_secret("model.gguf")),
    ]  # fmt: skip


def tokenizer_cases() -> list[Case]:
    """A tokenizer's files and its chat template."""
    return [
        Case("its own code", "tokenizer", code_in_folder),
        Case("pickle", "tokenizer", put("tokenizer.json", PICKLE)),
        Case("deep", "tokenizer", put("tokenizer.json", DEEP)),
        Case("link to a secret", "tokenizer", link_to_secret("tokenizer.json")),
        Case("deep settings", "tokenizer", put("tokenizer_config.json", DEEP)),
        Case("template out of its box", "tokenizer", chat_template(
            "{{ ''.__class__.__mro__[1].__subclasses__() }}")),
        Case("template that imports", "tokenizer", chat_template(
            "{{ cycler.__init__.__globals__.os.system('touch pwned') }}")),
        Case("template that reads files", "tokenizer", chat_template("{% include '/etc/passwd' %}")),
        Case("template of a huge range", "tokenizer", chat_template(
            "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}")),
        Case("template that is none", "tokenizer", chat_template("{% for %}")),
    ]  # fmt: skip


def trained_cases() -> list[Case]:
    """What training writes."""
    return [
        Case("pickle", "compressor", put("compressor.safetensors", PICKLE)),
        Case("header of 2^60 bytes", "compressor", edit_header("compressor.safetensors", lambda h: None, HUGE)),
        Case("offsets beyond the end", "compressor", edit_header(
            "compressor.safetensors", lambda h: first(h, data_offsets=[0, HUGE]))),
        Case("deep metadata", "compressor", edit_header(
            "compressor.safetensors", lambda h: h["__metadata__"].update(config=DEEP)), may_load=True),
        Case("link to a secret", "compressor", link_to_secret("compressor.safetensors")),
        Case("pickles", "checkpoint", checkpoint_files(lambda path: path.write_bytes(PICKLE))),
        Case("deep", "checkpoint", checkpoint_files(lambda path: path.write_text(DEEP))),
        Case("gzip bombs", "checkpoint", checkpoint_files(lambda path: path.write_bytes(BOMB))),
        Case("a link elsewhere", "checkpoint", checkpoint_elsewhere),
    ]  # fmt: skip


def data_cases() -> list[Case]:
    """Questions and text."""
    return [
        Case("pickle", "questions", put("train.json", PICKLE)),
        Case("deep", "questions", put("train.json", DEEP)),
        Case("gzip bomb", "questions", put("train.json", BOMB)),
        Case("number of a million digits", "questions", put("train.json", "9" * 10**6)),
        Case("link to a secret", "questions", link_to_secret("train.json")),
        Case("bomb of spaces", "text", put("a.jsonl.gz", BOMB)),
        Case("bomb of lines", "text", put("a.jsonl.gz", LINES)),
        Case("gzip cut short", "text", put("a.jsonl.gz", BOMB[:1000])),
        Case("pickle", "text", put("a.jsonl.gz", PICKLE)),
        Case("link to a secret", "text", link_to_secret("a.jsonl.gz")),
    ]  # fmt: skip


def run_cases() -> list[Case]:
    """What a run leaves for others to read."""
    return [
        Case(case, "run", break_it)
        for name in ("config.json", "predictions.json", "sweep.json")
        for case, break_it in (
            (f"deep {name}", put(name, DEEP)),
            (f"{name} a pickle", put(name, PICKLE)),
            (f"{name} a link to a secret", link_to_secret(name)),
        )
    ]


def all_cases() -> list[Case]:
    """Every case."""
    return [
        *weights_cases(),
        *gguf_cases(),
        *tokenizer_cases(),
        *trained_cases(),
        *data_cases(),
        *run_cases(),
    ]


def fuzzed(rng: random.Random, folder: Path, kind: str) -> None:
    """Changes bytes of a good file, mostly in its header."""
    path = folder / {"weights": "model.safetensors", "gguf": "model.gguf"}[kind]
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little") if kind == "weights" else 1_800
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(header, len(data)) if rng.random() < 0.9 else len(data))
        way = rng.randrange(5)
        if way == 0:
            data[place] = rng.randrange(256)
        elif way == 1:
            data[place : place + 8] = struct.pack("<Q", rng.choice((0, 2**31, 2**62, 2**64 - 1)))
        elif way == 2:
            del data[place : place + rng.randint(1, 64)]
        elif way == 3:
            data[place:place] = data[place : place + rng.randint(1, 64)]
        else:
            del data[place + rng.randrange(len(data)) :]
        if len(data) < 16:
            break
    path.write_bytes(data)


def fuzz_cases(seed: int, number: int) -> Iterator[Case]:
    """So many fuzzed files, half of each kind."""
    for i in range(number):
        kind = ("weights", "gguf")[i % 2]
        rng = random.Random(seed + i)
        yield Case(
            f"fuzzed {seed + i}", kind, lambda f, rng=rng, kind=kind: fuzzed(rng, f, kind), True
        )

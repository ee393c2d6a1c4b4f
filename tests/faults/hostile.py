"""Hostile files: whatever is in them, no code of theirs runs, nothing outside their folder is touched, memory stays bounded,
and the error is one of ours.

    python -m tests.faults.hostile FOLDER FUZZED SEED

makes all cases and so many fuzzed files in one process, under an audit hook (PEP 578) and a limit of address space, and
prints a JSON object. A process of its own, because an audit hook cannot be taken away.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gistjax.compare import read_predictions
from gistjax.config import DataConfig, ModelConfig
from gistjax.data.prompts import make_prompt
from gistjax.data.report import DataReport
from gistjax.data.squad import load_squad
from gistjax.data.text import load_articles
from gistjax.errors import GistjaxError
from gistjax.sharding import one_device
from gistjax.study import read_study
from gistjax.trained import load_config
from gistjax.training.checkpoint import Checkpointer, export_trainable, import_trainable, start_from
from gistjax.weights.registry import byte_tokenizer, load_base, load_tokenizer, resolve

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 2**28
"""A file of at most a few MB may make the process grow by so much."""
ADDRESS_SPACE = 2**34
"""Beyond what the process has when the trials begin: an allocation of more than that fails."""
SECRET = "correct horse battery staple"

D, L, V = 32, 2, 12
SIZES = {
    "self_attn.q_proj": (D, D), "self_attn.k_proj": (D // 2, D), "self_attn.v_proj": (D // 2, D),
    "self_attn.o_proj": (D, D), "mlp.gate_proj": (D, D), "mlp.up_proj": (D, D), "mlp.down_proj": (D, D),
    "input_layernorm": (D,), "post_attention_layernorm": (D,),
}  # fmt: skip
PIECES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
HF = {
    "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": D, "num_hidden_layers": L,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 99,
}  # fmt: skip
TRAINABLE = {"lora": {"a": jnp.ones((4, 4)), "b": jnp.ones(4)}}
DEEP = "[" * 200_000 + "]" * 200_000
BOMB = gzip.compress(b" " * 2**28)
"""256 MB in 260 kB."""


class Shell:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


PICKLE = pickle.dumps(Shell())


# The files as they should be, and how each kind is read


def tensors() -> dict[str, np.ndarray]:
    """A tiny Llama under Hugging Face names."""
    shapes = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    for layer in range(L):
        shapes |= {f"model.layers.{layer}.{piece}.weight": shape for piece, shape in SIZES.items()}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def make_weights(folder: Path) -> None:
    save_file(tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF))


def read_weights(folder: Path) -> object:
    model = ModelConfig(name="tiny", path=str(folder), dtype="float32", scan_layers=True)
    return load_base(resolve(model), model, one_device())


def make_gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for key, value in {
        "block_count": L, "context_length": 99, "embedding_length": D, "feed_forward_length": D,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "c", "ab", "Ġ", "1", "2", "12", "d", "e", "f"])
    writer.add_token_types([3, *[1] * (V - 1)])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, array in tensors().items():
        name = name.removesuffix(".weight")
        if name in top:
            writer.add_tensor(f"{top[name]}.weight", array)
        else:
            _, _, layer, piece = name.split(".", 3)
            writer.add_tensor(f"blk.{layer}.{PIECES[piece]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(folder: Path) -> object:
    model = ModelConfig(name="tiny", path=str(folder / "model.gguf"), dtype="float32")
    source = resolve(model)
    load_tokenizer(source)
    return load_base(source, model, one_device())


def make_tokenizer(folder: Path) -> None:
    make_weights(folder)
    byte_tokenizer().save_pretrained(folder)


def read_tokenizer(folder: Path) -> object:
    return make_prompt(load_tokenizer(resolve(ModelConfig(name="tiny", path=str(folder)))))


def make_compressor(folder: Path) -> None:
    export_trainable(
        TRAINABLE, folder / "compressor.safetensors", {"config": '{"architecture": "gist"}'}
    )


def read_compressor(folder: Path) -> object:
    start_from(folder, TRAINABLE, "gist")
    return import_trainable(folder / "compressor.safetensors", TRAINABLE)


def make_checkpoint(folder: Path) -> None:
    with Checkpointer(folder / "checkpoint") as checkpointer:
        checkpointer.save(3, TRAINABLE)  # type: ignore[arg-type]


def read_checkpoint(folder: Path) -> object:
    with Checkpointer(folder / "checkpoint") as checkpointer:
        if checkpointer.latest_step is None:
            raise GistjaxError(f"no step in {folder}")
        return checkpointer.restore(TRAINABLE)  # type: ignore[arg-type]


def make_questions(folder: Path) -> None:
    question = {"id": "a", "question": "Who?", "answers": [{"text": "cat"}]}
    content = {"data": [{"title": "T", "paragraphs": [{"context": "The cat.", "qas": [question]}]}]}
    for split in ("train", "validation"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def read_questions(folder: Path) -> object:
    return load_squad(DataConfig(path=str(folder)), 0)


def make_text(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"paragraphs": ["one"]}\n'))


def read_text(folder: Path) -> object:
    return list(load_articles(str(folder), DataReport(), 0.5))


def make_run(folder: Path) -> None:
    (folder / "config.json").write_text('{"config": {"seed": 1}}')
    (folder / "predictions.json").write_text('[{"id": "a", "context_id": 0, "f1": 1, "em": 1}]')
    (folder / "study.json").write_text('{"runs": [{"name": "a", "config": "x.py"}]}')


def read_run(folder: Path) -> object:
    return (
        load_config(folder),
        read_predictions(folder),
        read_study(folder / "study.json", folder, []),
    )


Do = Callable[[Path], object]
KINDS: dict[str, tuple[Do, Do]] = {
    "weights": (make_weights, read_weights), "gguf": (make_gguf, read_gguf),
    "tokenizer": (make_tokenizer, read_tokenizer), "compressor": (make_compressor, read_compressor),
    "checkpoint": (make_checkpoint, read_checkpoint), "questions": (make_questions, read_questions),
    "text": (make_text, read_text), "run": (make_run, read_run),
}  # fmt: skip


# What is done to them


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
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        save_file(tensors(), outside / "model.safetensors")
        target = file.replace("OUTSIDE", str(outside))
        weight_map = dict.fromkeys(tensors(), target)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

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


def all_cases() -> list[Case]:
    """Every case."""
    weights, run = "model.safetensors", ("config.json", "predictions.json", "study.json")
    huge = 2**60
    cases = [
        Case("pickle", "weights", put(weights, PICKLE)),
        Case("zip with a pickle", "weights", zip_bomb),
        Case("header of 2^60 bytes", "weights", edit_header(weights, lambda h: None, huge)),
        Case("header of 2^64 - 1 bytes", "weights", edit_header(weights, lambda h: None, 2**64 - 1)),
        Case("header of 0 bytes", "weights", edit_header(weights, lambda h: None, 0)),
        Case("deep header", "weights", put(weights, struct.pack("<Q", len(DEEP)) + DEEP.encode())),
        Case("offsets beyond the end", "weights", edit_header(weights, lambda h: first(h, data_offsets=[0, huge]))),
        Case("offsets that go back", "weights", edit_header(weights, lambda h: first(h, data_offsets=[64, 0]))),
        Case("negative offsets", "weights", edit_header(weights, lambda h: first(h, data_offsets=[-64, 0]))),
        Case("huge shape", "weights", edit_header(weights, lambda h: first(h, shape=[2**40, 2**40]))),
        Case("shape of another size", "weights", edit_header(weights, lambda h: first(h, shape=[V * D]))),
        Case("unknown dtype", "weights", edit_header(weights, lambda h: first(h, dtype="OBJECT"))),
        Case("link to a secret", "weights", link_to_secret(weights)),
        Case("config a link to a secret", "weights", link_to_secret("config.json")),
        Case("index upwards", "weights", index("../outside/model.safetensors")),
        Case("index to an absolute path", "weights", index("OUTSIDE/model.safetensors")),
        Case("index to a folder", "weights", index("..")),
        Case("index to a number", "weights", put("model.safetensors.index.json", '{"weight_map": {"a": 3}}')),
        Case("index to null", "weights", index("model\0.safetensors")),
        Case("deep index", "weights", put("model.safetensors.index.json", DEEP)),
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
        Case("2^60 entries", "gguf", gguf_numbers(("I", 3), ("Q", 1), ("Q", huge))),
        Case("2^60 tensors", "gguf", gguf_numbers(("I", 3), ("Q", huge), ("Q", 0))),
        Case("key of 2^60 bytes", "gguf", gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", huge))),
        Case(
            "array of 2^60 items", "gguf",
            gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("b", 97), ("I", 9), ("I", 4), ("Q", huge)),
        ),
        Case(
            "arrays in arrays", "gguf",
            gguf_numbers(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("b", 97), *[("I", 9), ("I", 9), ("Q", 1)] * 5_000),
        ),
        Case("pickle", "gguf", put("model.gguf", PICKLE)),
        Case("other version", "gguf", gguf_numbers(("I", 99), ("Q", 0), ("Q", 0))),
        Case("link to a secret", "gguf", link_to_secret("model.gguf")),
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
        Case("pickle", "compressor", put("compressor.safetensors", PICKLE)),
        Case("header of 2^60 bytes", "compressor", edit_header("compressor.safetensors", lambda h: None, huge)),
        Case("offsets beyond the end", "compressor", edit_header(
            "compressor.safetensors", lambda h: first(h, data_offsets=[0, huge]))),
        Case("deep metadata", "compressor", edit_header(
            "compressor.safetensors", lambda h: h["__metadata__"].update(config=DEEP)), may_load=True),
        Case("link to a secret", "compressor", link_to_secret("compressor.safetensors")),
        Case("pickles", "checkpoint", checkpoint_files(lambda path: path.write_bytes(PICKLE))),
        Case("deep", "checkpoint", checkpoint_files(lambda path: path.write_text(DEEP))),
        Case("gzip bombs", "checkpoint", checkpoint_files(lambda path: path.write_bytes(BOMB))),
        Case("a link elsewhere", "checkpoint", checkpoint_elsewhere),
        Case("pickle", "questions", put("train.json", PICKLE)),
        Case("deep", "questions", put("train.json", DEEP)),
        Case("gzip bomb", "questions", put("train.json", BOMB)),
        Case("number of a million digits", "questions", put("train.json", "9" * 10**6)),
        Case("link to a secret", "questions", link_to_secret("train.json")),
        Case("bomb of spaces", "text", put("a.jsonl.gz", BOMB)),
        Case("bomb of lines", "text", put("a.jsonl.gz", gzip.compress(b"\n" * 2**28))),
        Case("gzip cut short", "text", put("a.jsonl.gz", BOMB[:1000])),
        Case("pickle", "text", put("a.jsonl.gz", PICKLE)),
        Case("link to a secret", "text", link_to_secret("a.jsonl.gz")),
    ]  # fmt: skip
    for name in run:
        cases += [
            Case(f"deep {name}", "run", put(name, DEEP)),
            Case(f"{name} a pickle", "run", put(name, PICKLE)),
            Case(f"{name} a link to a secret", "run", link_to_secret(name)),
        ]
    return cases


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


# What is watched

EXECUTION = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.Popen",
    "pickle.find_class", "socket.connect", "socket.getaddrinfo", "ctypes.dlopen", 
)  # fmt: skip
TOUCHING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")  # fmt: skip
INTERPRETER = tuple(
    {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, str(ROOT), *sys.path) if p}
)


class Watch:
    """An audit hook that, while a folder is set, notes what should not happen."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []
        self._busy = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or self._busy:
            return
        self._busy = True  # what is done here raises events too
        try:
            if self._forbidden(event, arguments):
                self.seen.append(f"{event}{str(arguments)[:200]}")
        finally:
            self._busy = False

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in EXECUTION:
            return True
        if event == "exec":
            return not self._ours(arguments[0].co_filename)
        if event == "open":
            path, mode = arguments[0], str(arguments[1])
            writes = any(letter in mode for letter in "wax+") or bool(
                arguments[2] & 3 if arguments[1] is None else 0
            )
            return (
                not isinstance(path, int)
                and not self._inside(path)
                and (writes or not self._ours(path))
            )
        return event in TOUCHING and not self._inside(arguments[0])

    def _inside(self, path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith((self.folder, "/dev/null"))

    def _ours(self, path: Any) -> bool:
        """Code and files of the interpreter and its packages; Jinja compiles templates for its sandbox as <template>."""
        name = os.fsdecode(path)
        return name.startswith(
            ("<frozen", "<template>", "<unknown>", "<string>", "/proc/", "/sys/")
        ) or os.path.realpath(name).startswith(INTERPRETER)


def check_watch(watch: Watch, folder: Path) -> None:
    """Makes sure that the hook sees what it is there for."""
    os.chdir(folder)
    watch.folder = str(folder / "files")
    pickle.loads(PICKLE)
    (folder / "outside").write_text("x")
    exec(compile("1", "model.py", "exec"))
    watch.folder = ""
    seen = " ".join(watch.seen)
    for event in ("pickle.find_class", "os.system", "open", "exec"):
        assert event in seen, f"the audit hook does not see {event}"
    assert (folder / "pwned").exists()


def trial(case: Case, folder: Path, watch: Watch) -> tuple[str, str]:
    """What came of a case, and what is wrong with that, or nothing."""
    make, read = KINDS[case.kind]
    make(folder)
    case.break_it(folder)
    os.chdir(folder)
    reset_peak()
    before = memory("VmRSS")
    watch.seen.clear()
    watch.folder = str(folder)
    name = f"{case.kind}: {case.name}"
    try:
        read(folder)
        came, wrong = "read", "" if case.may_load else f"{name}: is read as if it were good"
    except GistjaxError as error:
        came, wrong = "refused", ""
        if SECRET in str(error) or len(str(error)) > 2_000 or str(folder) not in str(error):
            wrong = f"{name}: {str(error)[:600]}"
    except BaseException as error:
        came, wrong = "failed", f"{name}: {type(error).__name__}: {str(error)[:300]}"
    watch.folder = ""
    grown = memory("VmHWM") - before
    if watch.seen:
        wrong += f" {name}: {watch.seen[:3]}"
    if grown > MEMORY_BYTES:
        wrong += f" {name}: takes {grown >> 20} MiB"
    if any(folder.rglob("pwned")):
        wrong += f" {name}: has run code"
    return came, wrong


def memory(field: str) -> int:
    """Bytes, of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Starts VmHWM anew, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def fuzz_cases(seed: int, number: int) -> Iterator[Case]:
    """So many fuzzed files, half of each kind."""
    for i in range(number):
        kind = ("weights", "gguf")[i % 2]
        rng = random.Random(seed + i)
        yield Case(
            f"fuzzed {seed + i}", kind, lambda f, rng=rng, kind=kind: fuzzed(rng, f, kind), True
        )


def main() -> None:
    """The command."""
    folder, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    watch = Watch()
    for kind, (make, read) in KINDS.items():  # all modules imported, and good files are read
        below = folder / kind
        below.mkdir()
        make(below)
        read(below)
    check_watch(watch, folder)
    limit = memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    failed, came = [], {"read": 0, "refused": 0, "failed": 0}
    cases = [*all_cases(), *fuzz_cases(seed, number)]
    for case in cases:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            below = Path(name) / "files"
            below.mkdir()
            result, wrong = trial(case, below, watch)
            came[result] += 1
            failed += [wrong] if wrong else []
            os.chdir(folder)
    found = {
        "cases": len(all_cases()),
        "fuzzed": number,
        "came": came,
        "failures": len(failed),
        "failed": failed,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

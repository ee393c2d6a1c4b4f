"""Write a finished run in a form that others take.

    python -m gistjax.export --run RUN --to safetensors|peft --output DIR [--push ORG/MODEL]
    python -m gistjax.export --run RUN --to safetensors --bits 8 --output DIR
    python -m gistjax.export --run RUN --to prompt_embeds --output DIR --context FILE "question" …
    python -m gistjax.export --run RUN --to transformers --output DIR --context FILE

    safetensors     compressor.safetensors, config.json, its calibration if there is one, and a
                    model card (README.md), which `gistjax.load` takes; with --bits 8 its matrices
                    in int8 (gistjax/compress/exported.py)
    peft            the decoder's adapter for PyTorch (gistjax/sharing/peft.py)
    prompt_embeds   a text's slots between template and question, as embeddings for vLLM
                    (gistjax/sharing/prompt_embeds.py)
    transformers    what is kept of a text, the decoder's adapter, and a module that reads both in
                    PyTorch (gistjax/sharing/transformers_reader.py)

--push uploads the files that were written to the hub, to a private repository if there is none yet;
with --dry_run it only tells what would be uploaded. No form includes the base: the model card says
which weights the run was trained on, and --to peft warns if they were not those of the hub.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from gistjax.compress import EXPORTED
from gistjax.compress.exported import is_packed, load_stored, packed, save_exported
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment.confidence import copy_calibration
from gistjax.experiment.meaning import changed_in_use, check_meaning, is_cut
from gistjax.experiment.run_dir import (
    CALIBRATION,
    FORMAT,
    RunDir,
    provenance,
    without_folders,
)
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import make_folder, write_atomically, write_json

if TYPE_CHECKING:
    from gistjax.inference.document import Document

log = logging.getLogger(__name__)

CARD = "README.md"
DOCUMENT, READER = "document.safetensors", "transformers_reader.py"


@dataclass(frozen=True)
class Request:
    """A run, and what is wanted of it."""

    run: Path
    config: CompressionConfig
    output: Path
    contexts: list[str]  # of --context
    questions: list[str]
    push: str = ""
    bits: int = 0  # of the weights that are written; 0: as they are


def export_safetensors(request: Request) -> list[str]:
    """Write the compressor, its configuration and a model card; return their names."""
    from gistjax.sharing.model_card import model_card

    run, output = request.run, request.output
    directory = RunDir(run)
    stored, metadata = load_stored(directory.finished(directory.exported))  # whole, or an error
    rounds = bool(request.bits) and not is_packed(stored)
    if request.bits and not rounds:
        log.warning("warning: %s is in int8 already: --bits=%d changes nothing.", run, request.bits)
    arrays = packed(stored) if rounds else stored
    scores = directory.metrics() if directory.is_finished else {}
    about, size = directory.about(), weights_of(arrays, rounds)
    card = model_card(request.config, about, scores, size, directory.predictions())
    in_place = run.resolve() == output.resolve()
    if in_place and request.bits:
        raise ConfigError("--bits takes another --output than the run, which keeps its weights.")
    if in_place and request.push:
        raise ConfigError(
            "--push takes another --output than the run: the files there may name local folders."
        )
    check_output(output, in_place)
    make_folder(output)
    if not in_place:
        config = without_folders(request.config).to_json()
        write_json(output / "config.json", {**about, "format": FORMAT, "config": config})
        write_compressor(arrays, metadata, directory, RunDir(output), rounds)
    write_atomically(output / CARD, card.encode())
    own = [CALIBRATION] if (output / CALIBRATION).is_file() else []
    return [EXPORTED, "config.json", CARD, *own]


def weights_of(arrays: Mapping[str, np.ndarray], rounded: bool) -> str:
    """Return a sentence on the bytes of a compressor's parameters."""
    size = f"Its weights take {sum(array.nbytes for array in arrays.values()):,} bytes"
    if not is_packed(arrays):
        return f"{size}."
    own = "; the scores were measured before they were rounded" if rounded else ""
    return f"{size}, large matrices in int8{own}."


def write_compressor(
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    run: RunDir,
    target: RunDir,
    rounds: bool,
) -> None:
    """Write a run's compressor with its calibration: a copy, or one that names no local folder.

    Args:
        arrays: what the file is to hold.
        metadata: that of the run's file.
        rounds: the arrays are not those of the run, whose calibration they then do not have.
    """
    config = CompressionConfig.from_dict(json.loads(metadata.get("config", "{}")))
    if config == without_folders(config) and not rounds:
        write_atomically(target.exported, run.exported.read_bytes())
    else:
        why = "whose weights are rounded" if rounds else "which names no folder"
        log.warning("warning: documents of the run are not opened by this copy, %s", why)
        own = provenance(config) if "config" in metadata else {}
        save_exported(target.exported, arrays, {**metadata, **own})
    if not rounds:
        copy_calibration(run, target)
        return
    if run.calibration_file.is_file():
        log.warning("warning: its calibration is of other weights and stays: calibrate the copy")
    target.calibration_file.unlink(missing_ok=True)


def check_output(folder: Path, in_place: bool) -> None:
    """Refuse to replace what this command did not write: files without its card, or a training.

    Args:
        in_place: the folder is the run's own, and gets its card alone.

    Raises:
        ConfigError: naming the file or folder.
    """
    from gistjax.sharing.model_card import MARK

    card = folder / CARD
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    theirs = [] if ours else [CARD]
    if not in_place:
        written = (EXPORTED, CALIBRATION, "config.json")
        theirs += ["checkpoint"] if ours else ["checkpoint", *written]
    for name in theirs:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} is not of this command: move it, or give another --output."
            )


def export_embeds(request: Request) -> list[str]:
    """Write a text's slots, once for each question; return the file's name."""
    if not request.contexts or not request.questions:
        raise ConfigError("--to prompt_embeds needs --context FILE and at least one question.")
    from gistjax.sharing.prompt_embeds import check_exportable, export_prompt_embeds

    check_exportable(request.config)
    return export_prompt_embeds(compressed(request), request.questions, request.output)


def compressed(request: Request) -> Document:
    """Return the text of --context, compressed."""
    from gistjax.inference import engine, text

    given = text.read_context(request.contexts)
    document = engine.load(request.run, request.config).compress(given)
    if longer := text.longer_than_trained(document):
        log.warning("warning: %s", longer)
    return document


def export_transformers(request: Request) -> list[str]:
    """Write what is kept of a text, the decoder's adapter and their reader; return their names."""
    if not request.contexts:
        raise ConfigError("--to transformers needs --context FILE.")
    document = compressed(request)
    names = export_peft(request) if request.config.lora.rank else []
    make_folder(request.output)
    document.to_transformers(request.output / DOCUMENT)
    reader = Path(__file__).parent / "sharing" / READER
    write_atomically(request.output / READER, reader.read_bytes())
    return [*names, DOCUMENT, READER]


def export_peft(request: Request) -> list[str]:
    """Write the decoder's adapter; return the names of its files."""
    from gistjax.sharing import peft
    from gistjax.sharing.base_model import base_model

    run = RunDir(request.run)
    run.finished(run.exported)
    base = base_model(request.config, run.about())
    if base.caveat:
        log.warning("warning: %s.", base.caveat)
    return peft.export_peft(request.run, request.config, request.output, base.repo or base.name)


EXPORTS: dict[str, Callable[[Request], list[str]]] = {
    "safetensors": export_safetensors,
    "peft": export_peft,
    "prompt_embeds": export_embeds,
    "transformers": export_transformers,
}


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """Write the files, push them if asked, and print what was written."""
    check_arguments(args, words)
    trained = RunDir(args.run).config()
    if is_cut(config, trained):
        raise ConfigError(
            "a cut of a full context is not exported, the run is written as it was trained: leave "
            "--config.architecture out, and give the copy --config.architecture=select where it "
            "is asked or evaluated."
        )
    check_meaning(config, trained)
    if changed := changed_in_use(config, trained):
        raise ConfigError(
            f"a run is written as it was trained: leave --config.{changed[0]} out, and set it "
            "where the copy is asked or evaluated."
        )
    bits = int(args.bits or 0)
    request = Request(
        Path(args.run), config, Path(args.output), args.context, words, args.push, bits
    )
    names = EXPORTS[args.to](request)
    result = {"output": args.output, "files": sorted(names)}
    if args.push:
        from gistjax.sharing.hub import push

        result |= push(request.output, names, args.push, args.dry_run)
    cli.print_result(result)


def check_arguments(args: flags.FlagValues, words: list[str]) -> None:
    """Refuse flags and words that do not go together.

    Raises:
        ConfigError: naming them.
    """
    if not args.output:
        raise ConfigError("--output is missing: the folder to write to.")
    if words and args.to != "prompt_embeds":
        raise ConfigError(
            f"unexpected argument {words[0]!r}: questions are for --to prompt_embeds."
        )
    if args.dry_run and not args.push:
        raise ConfigError("--dry_run is of --push: it tells what would be uploaded.")
    if args.bits and args.to != "safetensors":
        raise ConfigError(f"--bits is of --to safetensors: {args.to} has a dtype of its own.")


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    for name, about in (
        ("run", "Directory of a finished run."),
        ("output", "Folder to write to; made if it is not there."),
    ):
        define_path(name, "", about, values)
    about = "Upload what was written to this hub repository, organisation/model."
    flags.DEFINE_string("push", "", about, values)
    about = "--to prompt_embeds and transformers: the text, a file; - is standard input"
    define_path("context", "", about, values, many=True)
    flags.DEFINE_enum("to", "safetensors", list(EXPORTS), "The form.", flag_values=values)
    about = "--to safetensors: bits of the weights in large matrices; by default those of the run."
    flags.DEFINE_enum("bits", None, ["8"], about, flag_values=values)
    about = "With --push: tell what would be uploaded, and stop."
    flags.DEFINE_bool("dry_run", False, about, values)


if __name__ == "__main__":
    cli.run_with_words(main, define_flags, lambda argv: RunDir(cli.option(argv, "run")).config())

"""A finished run in the form that others take it in.

    python -m gistjax.export --run RUN --to safetensors|peft --output DIR [--push organisation/name] [--dry_run]
    python -m gistjax.export --run RUN --to prompt_embeds --output DIR --context FILE "question" "question" …

    safetensors     compressor.safetensors, config.json and a model card (README.md): what `gistjax.load` takes
    peft            the decoder's adapter for PyTorch (gistjax/sharing/peft.py)
    prompt_embeds   a text's slots between template and question, as embeddings for vLLM (gistjax/sharing/prompt_embeds.py)

--push uploads the files that were written to the hub, to a private repository if there is none yet; with --dry_run it only
tells what would be uploaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import EXPORTED, load_config, read_text
from gistjax.runtime import cli
from gistjax.runtime.files import make_folder, write_atomically
from gistjax.sharing.model_card import MARK

log = logging.getLogger(__name__)

Export = Callable[[Path, CompressionConfig, Path, flags.FlagValues, list[str]], list[str]]
"""From run, its configuration, folder, flags and arguments to the names of the files that were written."""

CARD = "README.md"


def export_safetensors(
    run: Path, config: CompressionConfig, output: Path, args: flags.FlagValues, words: list[str]
) -> list[str]:
    """The compressor, its configuration and a model card."""
    from gistjax.experiment.evaluator import read_config, read_metrics
    from gistjax.runtime.tensors import load_tensors
    from gistjax.sharing.model_card import model_card

    if not (run / EXPORTED).is_file():
        raise CheckpointError(f"{run} has no {EXPORTED}: is the run finished?")
    load_tensors(run / EXPORTED)  # whole, or an error
    scores = read_metrics(run) if (run / "metrics.json").is_file() else {}
    card = model_card(config, read_config(run), scores)
    in_place = run.resolve() == output.resolve()
    check_output(output, in_place)
    make_folder(output)
    if not in_place:
        for name in (EXPORTED, "config.json"):
            write_atomically(output / name, (run / name).read_bytes())
    write_atomically(output / CARD, card.encode())
    return [EXPORTED, "config.json", CARD]


def check_output(folder: Path, in_place: bool) -> None:
    """Refuses to write over what an earlier call of this command did not write: files without a card of ours, or a training.

    Args:
        in_place: the folder is the run's own, and gets its card alone.

    Raises:
        ConfigError: naming what stands there.
    """
    card = folder / CARD
    ours = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    theirs = [] if ours else [CARD]
    if not in_place:
        theirs += ["checkpoint"] if ours else ["checkpoint", EXPORTED, "config.json"]
    for name in theirs:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} is not of this command: move it, or give another --output."
            )


def export_embeds(
    run: Path, config: CompressionConfig, output: Path, args: flags.FlagValues, words: list[str]
) -> list[str]:
    """A text's slots, once for each question."""
    if not args.context or not words:
        raise ConfigError("--to prompt_embeds needs --context FILE and at least one question.")
    text = read_text(args.context)
    from gistjax.inference.engine import load
    from gistjax.sharing.prompt_embeds import check_exportable, export_prompt_embeds

    check_exportable(config)
    return export_prompt_embeds(load(run, config).compress(text), words, output)


def export_peft(
    run: Path, config: CompressionConfig, output: Path, args: flags.FlagValues, words: list[str]
) -> list[str]:
    """The decoder's adapter."""
    from gistjax.sharing import peft as peft_export

    return peft_export.export_peft(run, config, output)


EXPORTS: dict[str, Export] = {
    "safetensors": export_safetensors, "peft": export_peft, "prompt_embeds": export_embeds,
}  # fmt: skip


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """The command."""
    if not args.output:
        raise ConfigError("--output is missing: the folder to write to.")
    if words and args.to != "prompt_embeds":
        raise ConfigError(
            f"unexpected argument {words[0]!r}: questions are for --to prompt_embeds."
        )
    if args.dry_run and not args.push:
        raise ConfigError("--dry_run is of --push: it tells what would be uploaded.")
    output = Path(args.output)
    names = EXPORTS[args.to](Path(args.run), config, output, args, words)
    result = {"output": str(output), "files": sorted(names)}
    if args.push:
        from gistjax.sharing.hub import push

        result |= push(output, names, args.push, args.dry_run)
    cli.print_result(result)


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    for name, about in (
        ("run", "Directory of a finished run."),
        ("output", "Folder to write to; made if it is not there."),
        ("context", "--to prompt_embeds: the text, a file; - is standard input."),
        ("push", "Upload what was written to this hub repository, organisation/name."),
    ):
        flags.DEFINE_string(name, "", about, values)
    flags.DEFINE_enum("to", "safetensors", list(EXPORTS), "The form.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "With --push: tell what would be uploaded, and stop.", values
    )


if __name__ == "__main__":
    cli.run_with_words(main, define_flags, lambda argv: load_config(Path(cli.option(argv, "run"))))

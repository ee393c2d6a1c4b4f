"""Questions about a text, answered from its slots: it is compressed once.

    python -m gistjax.ask --context FILE "question" "question" … [--ratio 8] [--full] [--run DIR] [--config.KEY=VALUE …]

FILE is a text; `-` reads standard input. Without a question, questions are read line by line: from the keyboard, or from
what is piped in. --save keeps the slots, and --memory asks about slots that were kept, without the text.

The compressor that comes with the repository takes texts of up to 512 tokens at 2 to 16 tokens a slot, and was trained
on paragraphs and questions that a few words of them answer. It always answers, also where the text does not say.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import SHIPPED, load_config, read_text
from gistjax.runtime import cli
from gistjax.runtime.files import check_writable, is_file

if TYPE_CHECKING:
    from gistjax.inference.engine import Document

log = logging.getLogger(__name__)


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """The command."""
    if args.context and args.memory:
        raise ConfigError("--context and --memory: give one of them, the text or the slots of one.")
    if not args.context and not args.memory:
        file = next((word for word in words if is_file(word)), "FILE")
        raise ConfigError(
            f"which text? Give --context {file} (or -), or --memory FILE that --save wrote."
        )
    if args.memory and args.ratio is not None:
        raise ConfigError("--ratio is of compressing: the slots in --memory have theirs.")
    if args.memory and args.full:
        raise ConfigError("--full reads the text itself: give --context instead of --memory.")
    if args.context == "-" and not words:
        raise ConfigError("standard input is the text, so give the questions as arguments.")
    if args.save:
        check_save(Path(args.save), args.context)
    text = read_text(args.context) if args.context else None
    log.info("loading %s and its compressor …", config.model.name)
    from gistjax.inference.engine import load

    reader = load(args.run, config)
    memory = reader.open(args.memory) if text is None else reader.compress(text, args.ratio)
    full = reader.full_context().compress(text) if args.full and text else None
    if not args.json:
        print(about(memory))
    if memory.pieces > 1:
        log.warning(
            "warning: compressed in %d pieces, since the compressor was trained on at most %d tokens: "
            "answers get worse with each.", memory.pieces, reader.trained_tokens,
        )  # fmt: skip
    if args.save:
        memory.save(args.save)
    asked = [ask(memory, full, question, not args.json) for question in words or questions()]
    if args.json:
        cli.print_result(summary(memory, full, asked))


def check_save(file: Path, context: str) -> None:
    """Refuses a --save that could not be written, or would take the text's place.

    Raises:
        ConfigError: if it is the text.
        StorageError: as `check_writable` says.
    """
    check_writable(file)
    if is_file(file) and is_file(context) and file.samefile(context):
        raise ConfigError(f"--save={file} is the text itself: give another file.")


def questions() -> Iterator[str]:
    """Lines of standard input; from a keyboard until an empty one."""
    if not sys.stdin.isatty():
        yield from (line for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  arrow keys and history

    try:
        while line := input("? ").strip():
            yield line
    except EOFError:
        print()


def about(memory: Document) -> str:
    """What was compressed, into how much."""
    spent = f", compressed in {1e3 * memory.seconds:.0f} ms" if memory.seconds else ""
    return f"{memory.tokens} tokens in {memory.slots} slots{spent}"


def ask(memory: Document, full: Document | None, question: str, show: bool) -> dict[str, Any]:
    """Asks, and prints what a person wants to see."""
    answer = memory.ask(question)
    found = {"question": question.strip(), "slots": dataclasses.asdict(answer)}
    shown = [("", answer, "slots")]
    if full:
        uncompressed = full.ask(question)
        found["full_context"] = dataclasses.asdict(uncompressed)
        shown = [("from slots:   ", answer, "slots"), ("full context: ", uncompressed, "tokens")]
    if show:
        print(cli.coloured(question.strip(), "bold"))
        for title, one, unit in shown:
            cost = f"{one.positions} {unit}, {1e3 * one.seconds:.0f} ms"
            print(f"  {title}{one.text or '(no answer)':40}  {cost}", flush=True)
    return found


def summary(memory: Document, full: Document | None, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of --json. Seconds are without compilation."""
    from gistjax.experiment import evaluator as results

    read = {"tokens": memory.tokens, "slots": memory.slots, "compress_s": memory.seconds}
    if full:
        read["full_context_read_s"] = full.seconds
    return {**read, "answers": asked, "device": results.device_name()}


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    for name, default, about in (
        ("context", "", "The text to ask about, a file; - is standard input."),
        ("run", str(SHIPPED), "Directory of the run whose compressor to use."),
        ("save", "", "Keep the slots in this file (safetensors)."),
        ("memory", "", "Ask about slots that --save kept, instead of a text."),
    ):
        flags.DEFINE_string(name, default, about, values)
    flags.DEFINE_float(
        "ratio",
        None,
        "Tokens a slot; by default what the compressor is set to.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "full", False, "Also answer from the whole text, by the untuned base.", values
    )
    flags.DEFINE_bool("json", False, "Print one JSON object instead.", values)


if __name__ == "__main__":
    cli.run_with_words(
        main, define_flags, lambda argv: load_config(Path(cli.option(argv, "run", str(SHIPPED))))
    )

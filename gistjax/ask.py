"""Ask questions about a text, which is compressed once.

    python -m gistjax.ask --context FILE "question" "question" … [--ratio 8] [--full] [--run DIR]
    python -m gistjax.ask --context sample "Who built the mill?"    # the package's own text

FILE is a text; `-` reads standard input. Several texts, each with a --context of its own, are asked
as one. Without a question, questions are read line by line, from the keyboard or from what is piped
in. --save keeps the compressed text in a file, and --document asks about such a file. Any key of
the run's configuration is overridden by --config.KEY=VALUE.

The compressor that comes with gistjax keeps entries of the key/value cache, at 1 to 32 tokens an
entry. It was trained on texts of up to 2,048 tokens (about 1,500 words); longer ones are kept in
pieces, with a warning. Its questions were of the kind that a few words of a paragraph answer. It
always answers, also where the text does not say. --threshold withholds answers whose chance of
being right is less; that takes a calibration (`gistjax.calibrate`), which this compressor does not
have. Times leave out compiling, but a program's first run is slower than later ones.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import check_writable, is_file
from gistjax.runtime.quantize import BITS
from gistjax.runtime.texts import as_typed, read_lines
from gistjax.validation import check_refines, note_budget

if TYPE_CHECKING:
    from gistjax.inference.document import Answer, Document

log = logging.getLogger(__name__)

UNTUNED = (
    "full context: answered by the untuned base, which reads the whole text; a base that is tuned "
    "for it answers better"
)
WHOLE = "full context: the same compressor, which keeps every entry"


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """Answer every question, and print answers or one JSON object."""
    check_flags(args, words)
    check_bits(config, args)
    check_ratio(config, args.ratio)
    check_refine(config, args)
    check_threshold(args.run, config, args.threshold)
    trained = "compressor" if config.compresses else "adapter, which compresses nothing"
    from gistjax.inference.engine import load  # slow: flags are checked first
    from gistjax.inference.text import longer_than_trained, read_context

    if args.context and args.ratio is None:
        note_budget(config)
    text = read_context(args.context) if args.context else None
    log.info("loading %s and its %s …", config.model.known_as, trained)
    engine = load(args.run, config)
    document = (
        engine.open(args.document)
        if text is None
        else engine.compress(text, args.ratio, args.refine)
    )
    full = engine.full_context().compress(text) if args.full and text else None
    if longer := longer_than_trained(document):
        log.warning("warning: %s", longer)
    if not args.json:
        print(about(document))
    bits = int(args.bits) if args.bits else None
    saved = save(document, Path(args.save), bits) if args.save else {}
    if full and not args.json:
        whole = WHOLE + " of each piece" * (full.pieces > 1)
        print(whole if config.selects else UNTUNED)
    exchanges = []
    for question in words or questions():
        exchanges.append(Exchange.of(question.strip(), document, full, args.threshold))
        if not args.json:
            print(exchanges[-1], flush=True)
    if args.json:
        parts = {"saved_parts": document.describe(bits)} if saved else {}
        cli.print_result(summary(document, full, exchanges) | saved | parts)


def check_flags(args: flags.FlagValues, words: list[str]) -> None:
    """Refuse flags that contradict each other, and a --save that cannot be written.

    Raises:
        ConfigError: naming what to change.
        StorageError: as `check_writable` says.
    """
    file = next((word for word in words if is_file(word)), "")
    if not all(word.strip() for word in words):
        raise ConfigError("a question is empty: give one that asks something, or none to be asked.")
    if args.context and args.document:
        raise ConfigError("--context and --document: give one of them, a text or a saved one.")
    if not args.context and not args.document:
        raise ConfigError(
            f"which text? Give --context {file or 'FILE'} (or -), or --document FILE that --save "
            "wrote."
        )
    if file:
        raise ConfigError(
            f"{file} is a file, not a question: give each text its own flag, as in --context "
            f"{args.context[0] if args.context else 'FILE'} --context {file}."
        )
    if args.document and args.ratio is not None:
        raise ConfigError("--ratio is for compressing: what is in --document has its own.")
    if args.document and args.full:
        raise ConfigError("--full reads the text itself: give --context instead of --document.")
    if args.document and not is_file(args.document):
        raise ConfigError(f"--document={args.document} is no file: give one that --save wrote.")
    if "-" in args.context and not words:
        raise ConfigError("standard input is the text, so give the questions as arguments.")
    if args.save:
        check_save(Path(args.save), args.context)


def check_bits(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Refuse --bits where nothing compressed is saved.

    Raises:
        ConfigError: saying what to change.
    """
    if args.bits and not args.save:
        raise ConfigError("--bits is of --save FILE: give both.")
    if args.bits and not config.compresses:
        raise ConfigError("--bits is of slots or kept entries: leave it out here.")


def check_refine(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Refuse --refine of what is compressed already, or keeps no entries.

    Raises:
        ConfigError: saying what to change.
    """
    if args.refine is None:
        return
    check_refines(config, args.refine)
    if args.document:
        raise ConfigError("--refine is for compressing: what is in --document stays as it is.")


def check_ratio(config: CompressionConfig, ratio: float | None) -> None:
    """Refuse a --ratio that the compressor was not trained with.

    Raises:
        ConfigError: saying which it was trained with.
    """
    from gistjax.compress.budget import Budget

    if ratio is not None and (problem := Budget.of(config).ratio_problem(ratio)):
        raise ConfigError(problem)


def check_threshold(run: str, config: CompressionConfig, threshold: float | None) -> None:
    """Refuse a --threshold that is no chance, or that the run has no calibration for.

    Raises:
        ConfigError: saying which.
        CheckpointError: if the calibration cannot be read.
    """
    if threshold is not None:
        from gistjax.experiment.confidence import Confidence, read_calibration

        Confidence(read_calibration(RunDir(run), config), threshold)


def check_save(file: Path, contexts: list[str]) -> None:
    """Refuse a --save that cannot be written, or would replace what is no saved document.

    Raises:
        ConfigError: if it is a text, or another file than a saved document.
        StorageError: as `check_writable` says.
    """
    check_writable(file)
    if not is_file(file):
        return
    if any(is_file(context) and file.samefile(context) for context in contexts):
        raise ConfigError(f"--save={file} is the text itself: give another file.")
    from gistjax.inference.document_file import is_document

    if not is_document(file):
        raise ConfigError(f"--save={file} is there and no saved document: give another file.")


def save(document: Document, file: Path, bits: int | None) -> dict[str, Any]:
    """Keep a document in a file, and say so; a saved document in its place is replaced."""
    replaced = ", in place of the one that was there" if is_file(file) else ""
    size = document.save(file, bits)
    log.info("kept in %s, %s%s", file, megabytes(size), replaced)
    return {"saved": str(file), "saved_bytes": size}


def questions() -> Iterator[str]:
    """Yield the lines of standard input; from a keyboard until an empty one."""
    if not sys.stdin.isatty():
        with read_lines(sys.stdin) as lines:
            yield from (line for line in lines if line.strip())
        return
    import readline  # noqa: F401  arrow keys and history

    print("One question a line; an empty line or CTRL-D ends.")
    try:
        while line := input("? ").strip():
            yield as_typed(line)
    except EOFError:
        print()


def about(document: Document) -> str:
    """Return what was compressed, into how much; of a control, what it reads instead."""
    config = document.engine.config
    if config.architecture == "closed_book":
        return "this run (closed_book) reads no text: it answers from the question alone"
    if not config.compresses:
        read = f"{document.slots} of {document.tokens} tokens are read"
        return f"this run ({config.architecture}) compresses nothing: {read} as they are"
    spent = f", compressed in {1e3 * document.seconds:.0f} ms" if document.seconds else ""
    spent += f", refined in {document.refined} steps" if document.refined else ""
    what = "entries a KV head" if config.selects else "slots"
    slots = f"{document.tokens} tokens in {document.slots} {what}"
    return f"{slots} ({megabytes(document.nbytes)}){spent}"


def megabytes(size: int) -> str:
    """Return a size in bytes for people: 0.4 MB, 12 kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


@dataclass(frozen=True)
class Exchange:
    """A question and its answers."""

    question: str
    slots: Answer
    full_context: Answer | None
    read: str = "slots"  # what the first answer is from: slots, entries, or a control's tokens

    @classmethod
    def of(
        cls, question: str, document: Document, full: Document | None, threshold: float | None
    ) -> Exchange:
        """Ask a question of the slots and, if it is there, of the full context.

        Args:
            threshold: of the first answer alone: the full context's is never withheld.
        """
        answer = document.ask(question, threshold)
        compared = full.ask(question) if full else None
        config = document.engine.config
        read = "entries" if config.selects else "slots" if config.compresses else "tokens"
        return cls(question, answer, compared, read)

    def __str__(self) -> str:
        lines = [cli.coloured(self.question, "bold")]
        own = "this run:" if self.read == "tokens" else f"from {self.read}:"
        titles = (f"{own:14}", "full context: ") if self.full_context else ("", "")
        for title, answer, unit in zip(
            titles, (self.slots, self.full_context), (self.read, "tokens"), strict=True
        ):
            if answer:
                cost = f"{answer.positions} {unit}, {1e3 * answer.seconds:.0f} ms"
                each = f"{1e3 * answer.seconds_per_token:.0f} ms a token"
                lines.append(f"  {title}{said(answer):40}  {cost}, {each}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return what --json prints of it; without a full context that key is left out."""
        found = dataclasses.asdict(self)
        keys = ("question", "slots", *(("full_context",) if self.full_context else ()))
        return {key: found[key] for key in keys}


def said(answer: Answer) -> str:
    """Return an answer for people, with its chance of being right where that is known."""
    text = answer.text or "(no answer)"
    return f"{text} ({answer.score:.0%})" if answer.calibrated else text


def summary(document: Document, full: Document | None, exchanges: list[Exchange]) -> dict[str, Any]:
    """Return the JSON object of --json. Seconds are without compilation."""
    from gistjax.runtime.devices import device_name

    read = {
        "tokens": document.tokens,
        "slots": document.slots,
        "bytes": document.nbytes,
        "resident_bytes": document.resident_bytes,
        "compress_s": document.seconds,
    }
    if document.refined:
        read["refined_steps"] = document.refined
    if full:
        read["full_context_read_s"] = full.seconds
    answers = [exchange.to_json() for exchange in exchanges]
    return {**read, "answers": answers, "device": device_name()}


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    about = "The text to ask about, a file; - is standard input, sample the package's own text"
    define_path("context", "", about, values, many=True)
    for name, default, about in (
        ("run", str(SHIPPED), "Directory of the run whose compressor to use."),
        ("save", "", "Keep the compressed text in this file (safetensors)."),
        ("document", "", "Ask about a compressed text that --save kept, instead of a text."),
    ):
        define_path(name, default, about, values)
    about = "Tokens a slot or an entry; by default what the compressor is set to."
    flags.DEFINE_float("ratio", None, about, flag_values=values)
    about = "Steps that refine the entries which are kept of this text; by default none."
    flags.DEFINE_integer("refine", None, about, flag_values=values)
    about = "With --save: bits of each number of slots or entries; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)
    about = "Withhold answers whose chance of being right is less, from 0 to 1."
    flags.DEFINE_float("threshold", None, about, flag_values=values)
    about = "Also answer from the whole text: all entries kept, or (slots) the untuned base."
    flags.DEFINE_bool("full", False, about, values)
    flags.DEFINE_bool("json", False, "Print one JSON object instead.", values)


if __name__ == "__main__":
    cli.run_with_words(
        main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config()
    )

"""Keep many documents compressed in a folder, and ask them.

    python -m gistjax.store add STORE FILE … [--ratio 8] [--bits 4]    # files and folders of files
    python -m gistjax.store ask STORE "question" … [--pieces 2] [--within NAME] [--reread 0.5]
    python -m gistjax.store list STORE
    python -m gistjax.store show STORE NAME …      # the texts, as pieces
    python -m gistjax.store remove STORE NAME …
    python -m gistjax.store check STORE            # damaged files, and what was left half done

A document is named by its file's path as it is given. Added again it costs nothing; of a changed
one only what changed is compressed. A file that cannot be read is told, and the others go on (exit
code 1). What was interrupted goes on with the same command. A store belongs to the compressor that
made it (--run), and is as private as the texts: it has them, too.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.documents.reading import read_document
from gistjax.errors import ConfigError, DataError, GistjaxError, did_you_mean
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.store_index import PIECES, StoreIndex
from gistjax.inference.store_place import check_place, is_store
from gistjax.inference.words import place_in
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.quantize import BITS
from gistjax.runtime.texts import user_path

if TYPE_CHECKING:
    from gistjax.inference.adding import Added
    from gistjax.inference.store import Store, Told

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Questions that are answered together: each answer is printed as soon as these are."""

ACTIONS = {
    "add": "FILE …",
    "ask": '"question" …',
    "list": "",
    "show": "NAME …",
    "remove": "NAME …",
    "check": "",
}
"""What is done with a store, and the words that it needs."""


def main(config: CompressionConfig, args: flags.FlagValues, words: list[str]) -> None:
    """Do one thing with a store; exit with 1 if a document could not be read, or is damaged."""
    action, path, rest = split_words(words)
    check_flags(args, action)
    if action in ("add", "ask", "check"):
        if action == "add" and not is_store(path):
            check_place(path)
        elif action == "ask" and args.within:
            StoreIndex(path).check_held([args.within])
        elif action != "add":
            StoreIndex(path)  # that there is one is known before the model is loaded
        store = load_store(config, args, path)
        {"add": add, "ask": ask, "check": check}[action](store, args, rest)
    else:
        index = StoreIndex(path)
        {"list": list_documents, "show": show, "remove": remove}[action](index, args, rest)


def split_words(words: list[str]) -> tuple[str, Path, list[str]]:
    """Return the action, the store's folder, and the words after it.

    Raises:
        ConfigError: saying what is missing or too much.
    """
    action = words[0] if words else ""
    if action not in ACTIONS:
        what = f"{action!r} is nothing that is done" if action else "what to do"
        raise ConfigError(f"{what} with a store{_hint(action)}")
    needed = ACTIONS[action]
    usage = f"gistjax store {action} STORE {needed}".strip()
    if len(words) < 2 or not words[1].strip():
        raise ConfigError(f"which store? Give its folder: {usage}.")
    rest = words[2:]
    empty = [number for number, word in enumerate(rest, 1) if not word.strip()]
    if 0 < len(empty) < len(rest):
        raise ConfigError(f"word {empty[0]} after the store is empty: {usage}.")
    if bool(needed) != bool(rest) or empty:
        raise ConfigError(f"{'too much' if not needed else 'something is missing'}: {usage}.")
    return action, user_path(words[1]), rest


def _hint(action: str) -> str:
    return did_you_mean(action, ACTIONS) if action else f": give one of {', '.join(ACTIONS)}."


def check_flags(args: flags.FlagValues, action: str) -> None:
    """Refuse flags that another action has.

    Raises:
        ConfigError: naming the flag and its action.
    """
    given = {"add": ("ratio", "bits"), "ask": ("pieces", "within", "threshold", "reread")}
    for owner, names in given.items():
        for name in names:
            if owner != action and args[name].present:
                raise ConfigError(f"--{name} is of `gistjax store {owner}`: leave it out here.")


def load_store(config: CompressionConfig, args: flags.FlagValues, path: Path) -> Store:
    """Return the store with its compressor."""
    from gistjax.inference.engine import load  # slow: flags are checked first
    from gistjax.inference.store import Store

    log.info("loading %s and its compressor …", config.model.known_as)
    return Store(path, load(args.run, config), args.ratio, int(args.bits) if args.bits else None)


def add(store: Store, args: flags.FlagValues, names: list[str]) -> None:
    """Add files, pieces of several at once, with the time that is left."""
    files, start = list(files_of(names, store.index.path)), time.monotonic()
    seen: Counter[str] = Counter()

    def refuse(error: DataError) -> None:
        seen["failed"] += 1
        log.error("%s", error)

    def texts() -> Iterator[tuple[str, str]]:
        for file in files:
            try:
                yield str(file), read_document(file).text
            except DataError as error:
                refuse(error)

    def tell(added: Added) -> None:
        if added.problem:
            return refuse(added.problem)
        seen["done"] += 1
        number, spent = seen.total(), time.monotonic() - start
        left = spent / number * (len(files) - number) / 60
        about = "unchanged" if added.unchanged else f"{added.compressed} of {added.pieces} pieces"
        log.info("%d/%d %s: %s, %.1f min left", number, len(files), added.name, about, left)

    compressed = sum(added.compressed for added in store.add_many(texts(), tell))
    found = {"files": len(files), "failed": seen["failed"], "compressed_pieces": compressed}
    documents = {"documents": len(store.documents()), "seconds": time.monotonic() - start}
    cli.print_result(found | documents)
    if seen["failed"]:
        sys.exit(1)


def files_of(names: list[str], store: Path) -> Iterator[Path]:
    """Yield files, and of folders all files in them whose names begin with no dot, by name.

    Those of the store itself are left out.
    """
    for name in names:
        path = user_path(name)
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.rglob("*") if not file.is_dir())
        shown = (f for f in inside if not any(p.startswith(".") for p in f.relative_to(path).parts))
        yield from (f for f in shown if not f.resolve().is_relative_to(store.resolve()))


def ask(store: Store, args: flags.FlagValues, questions: list[str]) -> None:
    """Answer questions, and name the piece that each answer is from."""
    found: list[dict[str, Any]] = []
    failed = 0
    for first in range(0, len(questions), AT_ONCE):
        batch = questions[first : first + AT_ONCE]
        within, reread = args.within or None, args.reread
        answers = store.ask_many(batch, args.pieces, args.threshold, within, reread=reread)
        for question, told in zip(batch, answers, strict=True):
            if isinstance(told, GistjaxError):
                failed += 1
                log.error("%s", told)
                found.append({"question": question, "error": str(told)})
                continue
            found.append({"question": question, **told.to_json()})
            if not args.json:
                print(said(question, told), flush=True)
    if args.json:
        cli.print_result({"answers": found})
    if failed:
        sys.exit(1)


def said(question: str, told: Told) -> str:
    """Return an answer and the text that it is from, for people."""
    source, answer = told.pieces[0], told.answer
    chance = f" ({answer.score:.0%})" if answer.calibrated else ""
    text, at = " ".join(source.text.split()), place_in(source.text, answer.text)
    begin = max(at - 80, 0)
    around = f"{'…' * (begin > 0)}{text[begin : begin + 200]}…"
    where = f"{source.document}, piece {source.place + 1}"
    where += ", read again" if told.reread else ""
    where += "" if at >= 0 or not answer.text else " (the answer is in none of the pieces)"
    lines = [cli.coloured(question, "bold"), f"  {answer.text or '(no answer)'}{chance}"]
    return "\n".join([*lines, f"  {where}: {around}"])


def list_documents(index: StoreIndex, args: flags.FlagValues, _: list[str]) -> None:
    """Print the documents, and what the store was made with."""
    documents = index.documents()
    if args.json:
        rows = [dataclasses.asdict(held) for held in documents]
        cli.print_result({"made_with": index.about, "documents": rows})
        return
    for held in documents:
        print(f"{held.name}  {held.tokens} tokens, {held.pieces} pieces")
    about = index.about
    bits = f", {about['bits']} bits" if "bits" in about else ""
    made = f"{about['base']}, compressor {about['compressor'][:12]}…, ratio {about['ratio']}{bits}"
    print(f"{len(documents)} documents; {made}")


def show(index: StoreIndex, args: flags.FlagValues, names: list[str]) -> None:
    """Print the text of documents, piece by piece."""
    index.check_held(names)
    pieces = [piece for name in names for piece in index.pieces(name)]
    if args.json:
        cli.print_result({"pieces": [dataclasses.asdict(piece) for piece in pieces]})
        return
    for piece in pieces:
        where = f"{piece.document}, piece {piece.place + 1}: {piece.tokens} tokens"
        print(f"{cli.coloured(where, 'bold')}\n{piece.text}\n")


def remove(index: StoreIndex, args: flags.FlagValues, names: list[str]) -> None:
    """Remove documents."""
    index.remove(names)
    cli.print_result({"removed": names, "documents": len(index.documents())})


def check(store: Store, args: flags.FlagValues, _: list[str]) -> None:
    """Read everything that the store has, and print what is wrong."""
    problems = store.check()
    if not args.json:
        for problem in problems:
            log.error("%s", problem)
    cli.print_result({"documents": len(store.documents()), "problems": problems})
    if problems:
        sys.exit(1)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    about = "Directory of the run whose compressor to use."
    define_path("run", str(SHIPPED), about, values)
    about = (
        "add, of a new store: tokens a slot or an entry; by default what the compressor is set to."
    )
    flags.DEFINE_float("ratio", None, about, flag_values=values)
    about = "add, of a new store: bits of each number that is kept; by default as they are."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)
    about = "ask: the most pieces to answer from."
    flags.DEFINE_integer("pieces", PIECES, about, 1, flag_values=values)
    flags.DEFINE_string("within", "", "ask: the only document to look in.", flag_values=values)
    about = "ask: withhold answers whose chance of being right is less, from 0 to 1."
    flags.DEFINE_float("threshold", None, about, flag_values=values)
    about = "ask: read the text again where an answer's score is less, from 0 to 1."
    flags.DEFINE_float("reread", None, about, 0, 1, flag_values=values)
    flags.DEFINE_bool("json", False, "Print one JSON object instead.", values)


if __name__ == "__main__":
    cli.run_with_words(
        main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config()
    )

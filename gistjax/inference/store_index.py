"""The folder of a store: its documents, the text of their pieces, and what is kept of these.

    index.sqlite        documents, their pieces in order, and a full-text index of these
    entries/            what a compressor keeps of each piece (`document_file`), under the SHA-256
                        of the piece's text, so equal pieces are kept once
    run.lock            who writes

A piece's file is written whole before the index names it, so that what was interrupted goes on.
It is removed after the index has forgotten it, which lists it as gone until then: the next process
that writes removes what a killed one has left. SQLite ranks pieces by BM25 (Robertson and Zaragoza
2009), of words that are stemmed as English. Nothing here needs JAX.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistjax.errors import CheckpointError, ConfigError, StorageError, did_you_mean
from gistjax.runtime.files import RunLock, make_folder

FORMAT = "1"
SCHEMA = (
    "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE document (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, "
    "sha256 TEXT NOT NULL, tokens INTEGER NOT NULL)",
    "CREATE TABLE piece (id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES document, "
    "place INTEGER NOT NULL, key TEXT NOT NULL, tokens INTEGER NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE gone (key TEXT PRIMARY KEY)",
    "CREATE INDEX piece_document ON piece (document)",
    "CREATE INDEX piece_key ON piece (key)",
    "CREATE VIRTUAL TABLE words USING fts5(text, content='piece', content_rowid='id', "
    "tokenize='porter unicode61')",
)
INDEX = "index.sqlite"
KEY = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"\w+")
FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a about an and are as at be been but by can could did do does for from had has have he "
        "her his how i if in is it its many me much my of on or our she so some that the their "
        "them there they this to was we were what when where which who whom whose why will with "
        "would you your "
    )
)
"""Words of English that a piece is not found by, unless a question has no others."""


@dataclass(frozen=True)
class Piece:
    """A piece of a document."""

    document: str  # name
    place: int  # among the pieces of its document, from 0
    key: str  # SHA-256 of its text
    tokens: int
    text: str


@dataclass(frozen=True)
class Held:
    """A document that a store holds."""

    name: str
    sha256: str  # of its text
    tokens: int
    pieces: int


def key_of(text: str) -> str:
    """Return the name under which what is kept of a piece is stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_store(path: Path) -> bool:
    """Return whether a folder is a store, or one that is damaged."""
    index = path / INDEX
    return index.is_file() and index.stat().st_size > 0


def check_place(path: Path) -> None:
    """Refuse a path that cannot become a store, but for one that was never filled.

    Raises:
        CheckpointError: saying what is there.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: a store is a folder of its own.")
    here = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if (path / "entries").is_dir() and any((path / "entries").iterdir()) and INDEX not in here:
        raise CheckpointError(
            f"{path} has lost its {INDEX}: restore it from a copy, or empty the folder and add the "
            "texts again."
        )
    if here - {INDEX, "entries", "run.lock"}:
        raise CheckpointError(f"{path} has other files in it: give a store an own folder.")


def _unlink(files: Iterable[Path]) -> None:
    """Remove files, those that are there.

    Raises:
        StorageError: if one cannot be removed.
    """
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {error.filename}: {error.strerror}.") from error


class StoreIndex:
    """A store without its compressor: it is looked through, searched, and made smaller.

    Args:
        path: the store's folder.
        about: what made it, such as compressor, ratio and bits, of a store that is to be made if
            it is not there; unless given, it must be there.

    Raises:
        CheckpointError: if there is no store, or it is damaged, of another version, or was made
            otherwise than `about` says.
        StorageError: if it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, str] | None = None):
        self.path, self.entries = path, path / "entries"
        if not is_store(path):
            check_place(path)
            if about is None:
                raise CheckpointError(
                    f"{path} is no store: `gistjax store add {path} FILE` makes one."
                )
            make_folder(self.entries)
        with self._explained():
            self._sql = sqlite3.connect(
                path / INDEX, timeout=30, isolation_level=None, check_same_thread=False
            )
            for pragma in ("trusted_schema=OFF", "secure_delete=ON", "foreign_keys=ON"):
                self._sql.execute(f"PRAGMA {pragma}")
            if about is not None and not self._schema():
                with self.transaction():
                    self._make(about)
            self._check_schema()
        self.about = dict(self._rows("SELECT key, value FROM about"))
        self._check_about(about)

    def _schema(self) -> set[str]:
        made = self._sql.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {sql for (sql,) in made if "'words_" not in sql}  # tables of fts5's own

    def _make(self, about: Mapping[str, str]) -> None:
        if self._schema():
            return  # another process was faster
        for statement in SCHEMA:
            self._sql.execute(statement)
        rows = {"format": FORMAT, **about}.items()
        self._sql.executemany("INSERT INTO about VALUES (?, ?)", rows)

    def _check_schema(self) -> None:
        """Refuse what is no such index: nothing that a file says is run."""
        if self._schema() != set(SCHEMA):
            raise CheckpointError(
                f"{self.path} is no store of this version of gistjax (its tables are others): "
                "make it anew from the texts."
            )

    def _check_about(self, about: Mapping[str, str] | None) -> None:
        found = self.about.get("format")
        if found != FORMAT:
            raise CheckpointError(
                f"{self.path} is a store of format {found}, this gistjax reads {FORMAT}: "
                "make it anew from the texts."
            )
        for name, ours in (about or {}).items():
            theirs = self.about.get(name)
            if theirs != ours:
                raise CheckpointError(
                    f"{self.path} was made with {name}={theirs}, not {ours}: give the same, or "
                    "make another store."
                )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise SQLite's errors as what a user can mend."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise CheckpointError(
                    f"{self.path} is damaged ({error}): restore it from a copy, or make it anew "
                    "from the texts."
                ) from error
            if code == sqlite3.SQLITE_BUSY:
                raise StorageError(
                    f"{self.path} is in use by another process: try again."
                ) from error
            raise StorageError(
                f"{self.path} cannot be read or written ({error}): what it held is intact."
            ) from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._sql.execute(query, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written in a `with` block, or nothing of it."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._sql.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out of a `with` block; what is forgotten in it is gone afterwards."""
        with RunLock(self.path, "write to another store"):
            make_folder(self.entries)
            self._bury()
            yield
            self._bury()

    def _bury(self) -> None:
        """Remove the files and words of what the index has forgotten."""
        gone = [key for (key,) in self._rows("SELECT key FROM gone")]
        if not gone:
            return
        named = "SELECT key FROM gone WHERE key NOT IN (SELECT key FROM piece)"
        _unlink(self.file(key) for (key,) in self._rows(named))
        with self._explained():  # words stand in the index until it is merged
            self._sql.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._sql.execute("DELETE FROM gone")

    def sweep(self) -> list[str]:
        """Remove what nothing names, of documents that were never whole; returns their names."""
        keys = self._rows("SELECT DISTINCT key FROM piece")
        named = {self.file(key) for (key,) in keys}
        left = [file for file in self.entries.iterdir() if file not in named]
        _unlink(left)
        return [file.name for file in left]

    def file(self, key: str) -> Path:
        """Return where what is kept of a piece stands.

        Raises:
            CheckpointError: if this is no key.
        """
        if not KEY.fullmatch(key):
            raise CheckpointError(f"{self.path} is damaged: it names a piece {key[:70]!r}.")
        return self.entries / f"{key}.safetensors"

    def documents(self) -> list[Held]:
        """Return the documents, by name."""
        query = (
            "SELECT name, sha256, tokens, (SELECT COUNT(*) FROM piece WHERE document = document.id)"
            " FROM document ORDER BY name"
        )
        return [Held(*row) for row in self._rows(query)]

    def find(self, name: str) -> Held | None:
        """Return a document, if it is here."""
        query = (
            "SELECT name, sha256, tokens, (SELECT COUNT(*) FROM piece WHERE document = document.id)"
            " FROM document WHERE name = ?"
        )
        rows = self._rows(query, name)
        return Held(*rows[0]) if rows else None

    def check_held(self, names: Sequence[str]) -> None:
        """Refuse names of documents that are not here.

        Raises:
            ConfigError: naming the nearest that is.
        """
        for name in names:
            if not self.find(name):
                known = [held.name for held in self.documents()]
                hint = (
                    did_you_mean(name, known)
                    if 0 < len(known) < 20
                    else (
                        ": `gistjax store list` shows what it holds." if known else ": it is empty."
                    )
                )
                raise ConfigError(f"{self.path} holds no {name!r}{hint}")

    def pieces(self, name: str) -> list[Piece]:
        """Return the pieces of a document in their order; none if it is not here."""
        query = (
            "SELECT name, place, key, piece.tokens, text FROM piece "
            "JOIN document ON document.id = document WHERE name = ? ORDER BY place"
        )
        return self._whole(self._rows(query, name))

    def search(self, question: str, limit: int, within: str | None = None) -> list[Piece]:
        """Return the pieces that share words with a question, the best by BM25 first.

        Args:
            within: the name of the only document to look in.
        """
        every = dict.fromkeys(_WORD.findall(question.casefold()))
        words = [word for word in every if word not in FUNCTION_WORDS] or list(every)
        query = (
            "SELECT name, place, key, piece.tokens, piece.text FROM words "
            "JOIN piece ON piece.id = words.rowid JOIN document ON document.id = document "
            "WHERE words MATCH ? AND (? IS NULL OR name = ?) ORDER BY rank, piece.id LIMIT ?"
        )
        matched = " OR ".join(f'"{word}"' for word in words)
        if not words:
            return []
        return self._whole(self._rows(query, matched, within, within, limit))

    def _whole(self, rows: Sequence[tuple[Any, ...]]) -> list[Piece]:
        """Return the pieces of these rows.

        Raises:
            CheckpointError: if a text is not the one that was added.
        """
        pieces = [Piece(*row) for row in rows]
        for piece in pieces:
            if key_of(piece.text) != piece.key:
                raise CheckpointError(
                    f"{self.path} is damaged: {piece.text[:60]!r} is not the text that was added "
                    f"as part of {piece.document}. Remove that and add it again."
                )
        return pieces

    def put(self, name: str, sha256: str, pieces: Sequence[Piece]) -> None:
        """Name a document and its pieces, whose files are there; one of that name is replaced."""
        with self._explained(), self.transaction():
            self._forget(name)
            values = (name, sha256, sum(piece.tokens for piece in pieces))
            query = "INSERT INTO document (name, sha256, tokens) VALUES (?, ?, ?)"
            document = self._sql.execute(query, values).lastrowid
            for piece in pieces:
                row = (document, piece.place, piece.key, piece.tokens, piece.text)
                query = (
                    "INSERT INTO piece (document, place, key, tokens, text) VALUES (?, ?, ?, ?, ?)"
                )
                number = self._sql.execute(query, row).lastrowid
                query = "INSERT INTO words (rowid, text) VALUES (?, ?)"
                self._sql.execute(query, (number, piece.text))

    def remove(self, names: Sequence[str]) -> None:
        """Remove documents, their text and what was kept of them; all of these or none.

        Raises:
            ConfigError: if one is not here.
            CheckpointError, StorageError: if another process writes, or the disk fails.
        """
        with self.writing():
            self.check_held(names)
            with self._explained(), self.transaction():
                for name in names:
                    self._forget(name)

    def _forget(self, name: str) -> None:
        """Delete a document from the index, inside of a transaction."""
        old = self._sql.execute("SELECT id FROM document WHERE name = ?", (name,)).fetchone()
        if old is None:
            return
        keys = "INSERT OR IGNORE INTO gone SELECT key FROM piece WHERE document = ?"
        self._sql.execute(keys, old)
        pieces = self._sql.execute("SELECT id, text FROM piece WHERE document = ?", old).fetchall()
        query = "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)"
        self._sql.executemany(query, pieces)
        self._sql.execute("DELETE FROM piece WHERE document = ?", old)
        self._sql.execute("DELETE FROM document WHERE id = ?", old)

    def problems(self) -> list[str]:
        """Return what is wrong with the index, a line each; an empty list if nothing is."""
        with self._explained():
            found = [row[0] for row in self._sql.execute("PRAGMA integrity_check")]
            found = [] if found == ["ok"] else found
            try:
                query = "INSERT INTO words (words, rank) VALUES ('integrity-check', 1)"
                self._sql.execute(query)
            except sqlite3.DatabaseError as error:
                found.append(f"the words do not fit the texts: {error}")
        for key, text in self._rows("SELECT key, text FROM piece"):
            if key_of(text) != key:
                found.append(f"a text is not the one that was added: {text[:60]!r}")
        return found

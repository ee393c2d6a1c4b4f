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
import difflib
import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistjax.errors import CheckpointError, ConfigError, StorageError
from gistjax.inference.store_place import check_place, is_store
from gistjax.inference.store_tables import FORMAT, HELD, SCHEMA, connect, schema_of
from gistjax.inference.words import words_of
from gistjax.runtime.files import RunLock, make_folder

OF_NAME = "(SELECT id FROM document WHERE name = ?3)"
COMPARED = 100
"""The most documents whose names are compared with one that is none: that takes time."""
PIECES = 2
"""Pieces that a question is answered from (measured: docs/using.md)."""
KEY = re.compile(r"[0-9a-f]{64}")


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
        wait_s: seconds that a writer waits for another process.

    Raises:
        CheckpointError: if there is no store, or it is damaged, of another version, or was made
            otherwise than `about` says.
        StorageError: if it cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, str] | None = None, wait_s: float = 0.0):
        self.path, self.entries, self._one = path, path / "entries", threading.RLock()
        self._wait_s = wait_s
        if not is_store(path):
            check_place(path)
            if about is None:
                raise CheckpointError(
                    f"{path} is no store: `gistjax store add {path} FILE` makes one."
                )
            make_folder(self.entries)
        with self._explained():
            self._sql = connect(path)
            if about is not None and not schema_of(self._sql):
                with self.transaction():
                    self._make(about)
            self._check_schema()
        self.about = dict(self._rows("SELECT key, value FROM about"))
        self._check_about(about)

    def _make(self, about: Mapping[str, str]) -> None:
        if schema_of(self._sql):
            return  # another process was faster
        for statement in SCHEMA:
            self._sql.execute(statement)
        rows = {"format": FORMAT, **about}.items()
        self._sql.executemany("INSERT INTO about VALUES (?, ?)", rows)

    def _check_schema(self) -> None:
        """Refuse what is no such index: nothing that a file says is run."""
        if schema_of(self._sql) != set(SCHEMA):
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
            damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            if damaged or "Could not decode" in str(error):
                raise self._damaged(str(error)) from error
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
        with self._one, RunLock(self.path, "write to another store", self._wait_s):
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
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise self._damaged(f"it names a piece {key[:70]!r}")
        return self.entries / f"{key}.safetensors"

    def documents(self, after: str = "", limit: int = -1) -> list[Held]:
        """Return the documents, by name.

        Read by a connection of its own, from any thread: what another one writes, or searches, is
        not waited for, and not seen before it is whole.

        Args:
            after: the name behind which the first one stands.
            limit: the most that are returned; all unless given.
        """
        query = f"{HELD} WHERE name > ? ORDER BY name LIMIT ?"
        with self._explained(), contextlib.closing(connect(self.path)) as sql:
            return [self._held(row) for row in sql.execute(query, (after, limit))]

    def find(self, name: str) -> Held | None:
        """Return a document, if it is here."""
        rows = self._rows(f"{HELD} WHERE name = ?", name)
        return self._held(rows[0]) if rows else None

    def _held(self, row: tuple[Any, ...]) -> Held:
        """Return the document of a row.

        Raises:
            CheckpointError: if its name is none that `put` takes.
        """
        if not isinstance(row[0], str) or not row[0].isprintable():
            raise self._damaged(f"it names a document {row[0]!r}"[:200])
        return Held(*row)

    def _damaged(self, what: str) -> CheckpointError:
        cure = "restore it from a copy, or make it anew from the texts"
        return CheckpointError(f"{self.path} is damaged ({what}): {cure}.")

    def check_held(self, names: Sequence[str]) -> None:
        """Refuse names of documents that are not here.

        Raises:
            ConfigError: naming the nearest that are, three at most, unless there are many.
        """
        for name in names:
            if not name.isprintable() or not self.find(name):
                known = [held.name for held in self.documents()]
                few = known if len(known) <= COMPARED else []
                near = difflib.get_close_matches(name, few, n=3, cutoff=0.5)
                hint = (
                    f"; did you mean {' or '.join(map(repr, near))}?"
                    if near
                    else (
                        ": `gistjax store list` shows what it holds." if known else ": it is empty."
                    )
                )
                raise ConfigError(f"{self.path} holds no {name!r}{hint}")

    def named(self) -> list[tuple[str, int, str, int]]:
        """Return name, place, key and tokens of every piece, without its text."""
        query = (
            "SELECT name, place, key, piece.tokens FROM piece "
            "JOIN document ON document.id = document ORDER BY name, place"
        )
        return self._rows(query)

    def about_as_long(self, part: float, limit: int) -> list[Piece]:
        """Return pieces that differ, as long as a part of all is at most; shorter ones first.

        Args:
            part: 0.5 for those of about the median, 1.0 for the longest.
        """
        (n,) = self._rows("SELECT COUNT(DISTINCT key) FROM piece")[0]
        first = max(min(int(part * n), n - limit), 0)
        query = (
            "SELECT name, place, key, piece.tokens, text FROM piece "
            "JOIN document ON document.id = document WHERE piece.id IN (SELECT MIN(id) FROM piece "
            "GROUP BY key ORDER BY MIN(tokens), key LIMIT ? OFFSET ?) ORDER BY piece.tokens, key"
        )
        return self._whole(self._rows(query, limit, first))

    def pieces(self, name: str) -> list[Piece]:
        """Return the pieces of a document in their order; none if it is not here."""
        query = (
            "SELECT name, place, key, piece.tokens, text FROM piece "
            "JOIN document ON document.id = document WHERE name = ? ORDER BY place"
        )
        return self._whole(self._rows(query, name))

    def search(self, question: str, limit: int, within: str | None = None) -> list[Piece]:
        """Return the pieces that share words with a question, the best by BM25, equal ones once.

        Args:
            within: the name of the only document to look in.
        """
        words = words_of(question)
        if not words:
            return []
        matched, inside = " OR ".join(f'"{word}"' for word in words), ""
        if within is not None:
            own = "(SELECT {}(id) FROM piece WHERE document = " + OF_NAME + ")"
            inside = f"AND document = {OF_NAME} AND words.rowid BETWEEN "
            inside += f"{own.format('MIN')} AND {own.format('MAX')} "
        found = (  # of equal pieces the first, without texts
            "SELECT MIN(piece.id) AS id, MIN(rank) AS best FROM words "
            f"JOIN piece ON piece.id = words.rowid WHERE words MATCH ?1 {inside}"
            "GROUP BY key ORDER BY best, id LIMIT ?2"
        )
        query = (
            f"SELECT name, place, key, piece.tokens, text FROM ({found}) AS found "
            "JOIN piece ON piece.id = found.id JOIN document ON document.id = document "
            "ORDER BY best, piece.id"
        )
        return self._whole(self._rows(query, matched, limit, *([] if within is None else [within])))

    def _whole(self, rows: Sequence[tuple[Any, ...]]) -> list[Piece]:
        """Return the pieces of these rows.

        Raises:
            CheckpointError: if a text is not the one that was added.
        """
        pieces = [Piece(*row) for row in rows]
        for piece in pieces:
            if not isinstance(piece.text, str) or key_of(piece.text) != piece.key:
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
        query = "SELECT id, text, key FROM piece WHERE document = ?"
        pieces = self._sql.execute(query, old).fetchall()
        query = "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)"
        self._sql.executemany(query, [(number, text) for number, text, _ in pieces])
        self._sql.execute("DELETE FROM piece WHERE document = ?", old)
        if any(not isinstance(text, str) or key_of(text) != key for _, text, key in pieces):
            self._sql.execute("INSERT INTO words (words) VALUES ('rebuild')")  # words of others
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
            if not isinstance(text, str) or key_of(text) != key:
                found.append(f"a text is not the one that was added: {text[:60]!r}")
        return found

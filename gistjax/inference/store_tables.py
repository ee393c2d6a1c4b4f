"""The tables of a store's index."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gistjax.inference.store_place import INDEX

FORMAT = "1"
CACHE_KIB = 1 << 16
"""Of the index in memory: each question looks through most of it."""
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
OF_FTS5 = {("table", f"words_{name}") for name in ("data", "idx", "docsize", "config")}
HELD = (
    "SELECT name, sha256, tokens, (SELECT COUNT(*) FROM piece WHERE document = document.id) "
    "FROM document"
)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the index of a store, or of a folder that becomes one.

    Raises:
        sqlite3.Error: if it cannot be opened.
    """
    sql = sqlite3.connect(path / INDEX, timeout=30, isolation_level=None, check_same_thread=False)
    cache = f"cache_size=-{CACHE_KIB}"
    for pragma in ("trusted_schema=OFF", "secure_delete=ON", "foreign_keys=ON", cache):
        sql.execute(f"PRAGMA {pragma}")
    return sql


def schema_of(sql: sqlite3.Connection) -> set[str]:
    """Return what an index was made with."""
    made = sql.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {sql for kind, name, sql in made if sql and (kind, name) not in OF_FTS5}

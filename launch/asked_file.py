"""Pages and the questions on them, as `launch.load_store` writes them for a load test."""

from dataclasses import asdict, dataclass
from pathlib import Path

from gistjax.errors import DataError
from gistjax.runtime.files import read_json, write_json


@dataclass(frozen=True)
class Question:
    """A question on a page."""

    text: str
    page: str  # name
    golds: tuple[str, ...]


def write_asked(file: Path, pages: dict[str, str], questions: list[Question]) -> None:
    """Write the texts of pages, by name, and the questions on them."""
    content = {"pages": pages, "questions": [asdict(question) for question in questions]}
    write_json(file, content, indent=None)


def read_asked(file: Path) -> tuple[dict[str, str], list[Question]]:
    """Return what `write_asked` wrote.

    Raises:
        DataError: if the file is no such file.
    """
    fix = "make it with `python -m launch.load_store`"
    found = read_json(file, DataError, fix, lambda it: it["pages"] and it["questions"])
    asked = [Question(one["text"], one["page"], tuple(one["golds"])) for one in found["questions"]]
    return found["pages"], asked

"""The articles of a JSON file in SQuAD's form, for programs that measure on them."""

import json
from pathlib import Path
from typing import Any

from gistjax.errors import DataError


def squad_articles(file: Path | str) -> list[dict[str, Any]]:
    """Return the articles, each `{"title", "paragraphs": [{"context", "qas"}]}`.

    Raises:
        DataError: if there is no such file.
    """
    try:
        articles: list[dict[str, Any]] = json.loads(Path(file).read_text())["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--data={file} is no JSON file in SQuAD's form ({type(error).__name__}): give one, "
            "such as SQuAD's validation.json."
        ) from error
    return articles

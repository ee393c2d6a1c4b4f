"""The page of every configuration key, made from the fields of `gistjax.config`.

python -m gistjax.reporting.config_page > docs/config.md
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from gistjax.config import CompressionConfig
from gistjax.settings import walk

COMMAND = "python -m gistjax.reporting.config_page > docs/config.md"

HEADER = f"""\
# Configuration

<!-- Written by `{COMMAND}`:
change gistjax/config.py instead. -->

Every key with its default. Set one on the command line, as in `--config.lora.rank=32`, or in a
config file, a Python file such as those in `configs/`. `--config` finds these by name from any
folder; a text after a colon is the file's argument: `--config configs/ablation.py:pooling,32`.
Lists are written with commas: `--config.ratios=2.,4.` A key or value that is not known is refused
with the nearest right one. `config.json` of a run has every key as it was used.
"""

BOUNDS = {"least": "at least {}", "above": "above {}", "below": "below {}", "most": "at most {}"}


def config_page() -> str:
    """Return the page in Markdown: a table of the run's own keys, and one for each group."""
    defaults = CompressionConfig()
    groups: dict[str, list[str]] = {}
    for key, default, rules in walk(defaults):
        about = rules["about"].replace("|", r"\|")
        row = f"| `{key}` | `{_written(default)}` | {about} | {_allowed(rules)} |"
        groups.setdefault(key.rpartition(".")[0], []).append(row)
    page = [HEADER]
    for group, rows in groups.items():
        about = (attrgetter(group)(defaults) if group else defaults).__doc__ or ""
        page += [f"\n## {f'`{group}`' if group else 'The run'}\n\n{about.splitlines()[0]}\n"]
        page += ["\n| key | default | meaning | allowed |\n| --- | --- | --- | --- |"]
        page += [f"\n{row}" for row in rows] + ["\n"]
    return "".join(page)


def _written(value: Any) -> str:
    """Return a default as it is written on a command line."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={weight:g}" for name, weight in value.items()) or "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return str(value) if value != "" else "''"


def _allowed(rules: Mapping[str, Any]) -> str:
    """Return the choices or bounds of a key; nothing if its type is the only rule."""
    if "choices" in rules:
        choices = [f"`{choice}`" if choice else "empty" for choice in rules["choices"]]
        return ", ".join(choices + ["the path of a class"] * bool(rules.get("or_path")))
    bounds = [text.format(rules[name]) for name, text in BOUNDS.items() if name in rules]
    if "special" in rules:
        bounds = [f"{rules['special']}, or {bounds[0]}"]
    return ", ".join(bounds) or ("ascending" if rules.get("ascending") else "")


if __name__ == "__main__":
    print(config_page(), end="")

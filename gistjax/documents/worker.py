"""The process that parses one file: its bytes on standard input, JSON on standard output.

python -m gistjax.documents.worker KIND SECONDS MEMORY_BYTES TEXT_BYTES

KIND names the module of this package whose `read` takes the bytes and returns the `text`, and
perhaps a `title` and a `warning`. Whatever goes wrong is an `error` in their place. The process can
write no file. It sets its limits itself: code between fork and exec may lock up a parent that has
threads, as JAX has.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import sys

from gistjax.errors import DataError, first_line


def main(kind: str, seconds: int, memory_bytes: int, text_bytes: int) -> None:
    """Print what a file of some kind has in it, as JSON in UTF-8."""
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_AS, memory_bytes)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    logging.disable()
    try:
        found = parse(kind)
    except MemoryError:  # what was read is let go of by now
        found = {
            "error": f"takes more than {memory_bytes / 1e6:,.0f} MB of memory to read: split it, "
            "or give its text."
        }
    printed = json.dumps(found, ensure_ascii=False).encode(errors="surrogatepass")
    if len(printed) > text_bytes:
        problem = f"has more than {text_bytes / 1e6:,.0f} MB of text in it: split it."
        printed = json.dumps({"error": problem}).encode()
    sys.stdout.buffer.write(printed)


def limit(kind: int, value: int) -> None:
    """Set a limit of this process, no higher than one that is set already."""
    _, highest = resource.getrlimit(kind)
    value = value if highest == resource.RLIM_INFINITY else min(value, highest)
    resource.setrlimit(kind, (value, highest))


def parse(kind: str) -> dict[str, str]:
    """Return what the module of a kind reads from standard input, or an `error`."""
    try:
        found: dict[str, str] = importlib.import_module(f"gistjax.documents.{kind}").read(
            sys.stdin.buffer.read()
        )
        return found
    except DataError as error:
        return {"error": str(error)}
    except ModuleNotFoundError as error:
        need = "pip install -e '.[documents]'"
        return {"error": f"needs the package {error.name} to be read: {need}."}
    except RecursionError:
        return {"error": "is nested too deeply to be read: give its text as a text file."}
    except MemoryError:
        raise
    except Exception as error:  # a parser may raise anything on a damaged file
        problem = f"is damaged ({first_line(error)})"
        return {"error": f"{problem}: save it anew, or give its text as a text file."}


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

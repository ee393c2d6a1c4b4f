"""What the commands share: typed overrides of a config file, errors without tracebacks, JSON as the last line.

A command defines its own absl flags, writes `main(config, args)`, and ends in `cli.run(main)`. Exit codes: 0 done,
2 a mistake that is the user's to mend, 75 stopped by SIGTERM or CTRL-C with the training saved (run the same command again
to go on), 130 interrupted at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from gistjax.config import CompressionConfig, did_you_mean
from gistjax.errors import ConfigError, GistjaxError
from gistjax.stopping import Stopped

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
HELP = {"--help", "-h", "-help", "--helpfull", "--helpshort"}

flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")

Main = Callable[[CompressionConfig, flags.FlagValues], None]
Defaults = Callable[[list[str]], CompressionConfig]


def run(main: Main, defaults: Defaults | None = None) -> None:
    """Parses the command line, calls `main`, and exits.

    Args:
        main: the command, given its config and its other flags.
        defaults: where the config comes from if not from a file named by --config.
    """
    argv = sys.argv
    show_traceback = "--traceback" in argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("jax", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    for raises in ("absl", "orbax"):  # they log tracebacks of what they raise
        logging.getLogger(raises).setLevel(logging.CRITICAL)
    try:
        config = parse(argv, defaults)
        main(config, flags.FLAGS)
    except GistjaxError as error:
        if show_traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse(
    argv: list[str], defaults: Defaults | None = None, values: flags.FlagValues = flags.FLAGS
) -> CompressionConfig:
    """The config that a command line asks for.

    Raises:
        ConfigError: for an unknown flag or key (with the nearest known one), a wrong type, a missing file.
    """
    about = "Config file; any key is overridden by --config.KEY=VALUE."
    if HELP & set(argv):
        app.define_help_flags()
    elif defaults is None:
        argv = sys.argv = _config_first(argv)  # ml_collections reads sys.argv
    if defaults is None or HELP & set(argv):
        config_flags.DEFINE_config_file("config", None, about, values, lock_config=True)
    else:
        config_flags.DEFINE_config_dict("config", defaults(argv).to_config_dict(), about, values)
    try:
        rest = values(argv)
    except AttributeError as error:  # how ml_collections says that a key is unknown
        raise ConfigError(_unknown_key(argv, error)) from error
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(error).strip()} (see --help)") from error
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}: options start with --, as in --config.seed=1."
        )
    config: Any = values["config"].value
    return CompressionConfig.from_dict(config)


def option(argv: list[str], name: str) -> str:
    """The value of a flag, before flags are parsed.

    Raises:
        ConfigError: if it is not given.
    """
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", word)
        if match:
            return match[1] if match[1] is not None else following
    raise ConfigError(f"--{name} is missing (see --help).")


def overrides() -> list[str]:
    """The `--config.KEY=VALUE` of this process's command line.

    Raises:
        ConfigError: if one has its value in the next word.
    """
    words = [word for word in sys.argv[1:] if re.match(r"--?config\.", word)]
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word} needs its value in the same word: {word}=VALUE.")
    return words


def _config_first(argv: list[str]) -> list[str]:
    """The command line with its config file in front, where ml_collections wants it, and checked to be there."""
    for i, word in enumerate(argv[1:], 1):
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match:
            rest = argv[1:i] + argv[i + 1 :]
            name = match[1]
            if name is None:
                name, rest = " ".join(argv[i + 1 : i + 2]), argv[1:i] + argv[i + 2 :]
            if Path(name).is_file():
                return [argv[0], f"--config={name}", *rest]
            near = difflib.get_close_matches(
                Path(name).name, [path.name for path in Path("configs").glob("*.py")], 1
            )
            hint = f"; did you mean configs/{near[0]}?" if near else "; see configs/."
            raise ConfigError(f"there is no config file {name!r}{hint}")
    raise ConfigError("which config? Give one, as in --config configs/gist_m64.py.")


def _unknown_key(argv: list[str], error: Exception) -> str:
    """Names the first override that the default config has no place for, and the nearest key."""
    defaults = CompressionConfig().to_config_dict()
    for word in argv[1:]:
        match = re.match(r"--?config\.([^=]+)", word)
        group: Any = defaults
        for part in match[1].split(".") if match else ():
            known = list(group) if hasattr(group, "keys") else []
            if part not in known:
                assert match is not None
                return f"config has no key {match[1]!r}{did_you_mean(part, known)}"
            group = group[part]
    return f"config has no key {error}"


def print_result(result: dict[str, Any]) -> None:
    """One JSON object on one line, the last of standard output."""
    sys.stderr.flush()
    print(json.dumps(result, ensure_ascii=False), flush=True)

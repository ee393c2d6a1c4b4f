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
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

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
        config_flags.DEFINE_config_file("config", None, about, values)
    else:
        argv, config = _from_file(argv) if defaults is None else (argv, defaults(argv))
        _check_keys(argv)
        config_flags.DEFINE_config_dict(
            "config", config.to_config_dict(), about, values, sys_argv=argv
        )
    try:
        rest = values(argv)
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(error).strip()} (see --help)") from error
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}: options start with --, as in --config.seed=1."
        )
    return CompressionConfig.from_dict(values["config"].value)  # type: ignore[arg-type]


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


def _from_file(argv: list[str]) -> tuple[list[str], CompressionConfig]:
    """The command line without its config file, and the config of that file."""
    files, rest, words = [], argv[:1], iter(argv[1:])
    for word in words:
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match:
            files.append(next(words, "") if match[1] is None else match[1])
        else:
            rest.append(word)
    if not files:
        raise ConfigError("which config? Give one, as in --config configs/gist_m64.py.")
    if len(files) > 1:
        raise ConfigError(f"--config is given twice ({' and '.join(files)}): give one file.")
    return rest, read_config_file(Path(files[0]))


def read_config_file(path: Path) -> CompressionConfig:
    """What `get_config()` of a Python file returns. The file is code, and is run.

    Raises:
        ConfigError: if it is missing, fails, or returns no config.
    """
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in Path("configs").glob("*.py")], 1
        )
        hint = f"; did you mean configs/{near[0]}?" if near else "; see configs/."
        raise ConfigError(f"there is no config file {str(path if path.name else '')!r}{hint}")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except GistjaxError:
        raise
    except Exception as error:  # whatever the code in the file runs into
        cause = f"{type(error).__name__}: {error}"
        unknown = re.search(r"unexpected keyword argument '(\w+)'", cause)
        hint = did_you_mean(unknown[1], _leaves()) if unknown else ""
        raise ConfigError(
            f"config file {path} fails ({cause}){hint or '.'} It needs get_config(), which returns a ConfigDict."
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config() of {path} returns {config!r}, not a ConfigDict: end it as configs/base.py does."
        )
    return CompressionConfig.from_dict(config)


def _leaves(group: ConfigDict | None = None) -> Iterator[str]:
    """The last parts of all keys."""
    for key, value in (group or CompressionConfig().to_config_dict()).items():
        yield key
        if isinstance(value, ConfigDict):
            yield from _leaves(value)


def _check_keys(argv: list[str]) -> None:
    """Refuses the first override that the configuration has no place for, with the nearest key."""
    for word in argv[1:]:
        match = re.match(r"--?config\.([^=]*)", word)
        group: Any = CompressionConfig().to_config_dict()
        for part in match[1].split(".") if match else ():
            known = list(group) if isinstance(group, ConfigDict) else []
            if part not in known:
                assert match is not None
                hint = did_you_mean(part, known) if known else ": it has no parts."
                raise ConfigError(f"config has no key {match[1]!r}{hint}")
            group = group[part]


def print_result(result: dict[str, Any]) -> None:
    """One JSON object on one line, the last of standard output."""
    sys.stderr.flush()
    print(json.dumps(result, ensure_ascii=False), flush=True)

"""What the commands share: typed overrides of a config file, errors without tracebacks, JSON as the last line.

A command defines its own absl flags, writes `main(config, args)`, and ends in `cli.run(main)`. Exit codes: 0 done,
2 a mistake that is the user's to mend, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

from absl import flags
from ml_collections import config_flags

from gistjax.config import CompressionConfig, did_you_mean
from gistjax.errors import ConfigError, GistjaxError

HELP = {"--help", "-h", "-help", "--helpfull"}

flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")

NO_SPACE = os.strerror(errno.ENOSPC)
CUDA_FAILED = r"CUDA_ERROR|CUDNN_STATUS|[Cc]u(DNN|BLAS|SOLVER)|no kernel image|PTX|Unable to initialize backend"
"""In what JAX raises where driver, CUDA and jaxlib do not fit."""

Main = Callable[[CompressionConfig, flags.FlagValues], None]
MainWithWords = Callable[[CompressionConfig, flags.FlagValues, list[str]], None]
Defaults = Callable[[list[str]], CompressionConfig]


def run(main: Main, defaults: Defaults | None = None) -> None:
    """Parses the command line, calls `main`, and exits.

    Args:
        main: the command, given its config and its other flags.
        defaults: where the config comes from if not from a file named by --config.
    """
    guard(lambda: main(parse(sys.argv, defaults), flags.FLAGS))


def run_with_words(main: MainWithWords, defaults: Defaults) -> None:
    """As `run`, for a command that also takes arguments without a flag."""

    def parsed() -> None:
        config, words = _parse(sys.argv, defaults, flags.FLAGS)
        main(config, flags.FLAGS, words)

    guard(parsed)


def run_bare(main: Callable[[flags.FlagValues], None]) -> None:
    """As `run`, for a command without a config."""

    def parsed() -> None:
        if HELP & set(sys.argv):
            print_help()
        _no_words(_parse_flags(sys.argv, flags.FLAGS))
        main(flags.FLAGS)

    guard(parsed)


def guard(command: Callable[[], None]) -> None:
    """Runs a command and exits: errors as one line, unless --traceback asks for more."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of PyTorch, which is not used
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("absl", "jax", "orbax", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        command()
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error)
        if message is None or "--traceback" in sys.argv:
            raise
        print(f"{coloured('error:', 'red', sys.stderr)} {message}", file=sys.stderr)
        sys.exit(code)


def explain(error: BaseException) -> tuple[str | None, int]:
    """What to tell the user of an error, and the exit code; None for what is not theirs to mend."""
    if isinstance(error, GistjaxError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or NO_SPACE in text:
        place = getattr(error, "filename", None)
        on = f" ({place})" if place else ""
        return f"the disk is full{on}: free some room, or give --workdir on another disk.", 2
    if isinstance(error, RuntimeError) and re.search(CUDA_FAILED, text):
        cause = text.strip().splitlines()[0][:200]
        return (
            f"CUDA failed ({cause}): `python -m gistjax.doctor` compares driver, CUDA and JAX.",
            2,
        )
    return None, 1


def parse(
    argv: list[str], defaults: Defaults | None = None, values: flags.FlagValues = flags.FLAGS
) -> CompressionConfig:
    """The config that a command line asks for.

    Raises:
        ConfigError: for an unknown flag or key (with the nearest known one), a wrong type, a missing file.
    """
    config, words = _parse(argv, defaults, values)
    _no_words(words)
    return config


def _parse(
    argv: list[str], defaults: Defaults | None, values: flags.FlagValues
) -> tuple[CompressionConfig, list[str]]:
    """The config, and the arguments without a flag."""
    if HELP & set(argv):
        print_help()
    about = "Config file; any key is overridden by --config.KEY=VALUE."
    if defaults is None:
        argv = sys.argv = _config_first(argv)  # ml_collections reads sys.argv
        config_flags.DEFINE_config_file("config", None, about, values, lock_config=True)
    else:
        config_flags.DEFINE_config_dict("config", defaults(argv).to_config_dict(), about, values)
    words = _parse_flags(argv, values)
    config: Any = values["config"].value
    return CompressionConfig.from_dict(config), words


def _parse_flags(argv: list[str], values: flags.FlagValues) -> list[str]:
    values.set_gnu_getopt(True)  # arguments and flags in any order
    try:
        return values(argv)[1:]
    except AttributeError as error:  # how ml_collections says that a key is unknown
        raise ConfigError(_unknown_key(argv, error)) from error
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(error).strip()} (see --help)") from error


def _no_words(words: list[str]) -> None:
    if words:
        raise ConfigError(
            f"unexpected argument {words[0]!r}: options start with --, as in --config.seed=1."
        )


def print_help() -> NoReturn:
    """What the command does and its flags; with --helpfull every key of the configuration too. Then exits."""
    about = (sys.modules["__main__"].__doc__ or "").strip()
    by_module = flags.FLAGS.flags_by_module_dict()
    own = by_module.get(sys.argv[0], [])  # absl's name for the module that was started
    print(f"{about}\n\nflags:")
    for flag in [*sorted(own, key=lambda flag: flag.name), *by_module[__name__]]:
        print(_flag_help(flag))
    if "--config." in about:
        if "--helpfull" in sys.argv:
            print("\nkeys, with their defaults (gistjax/config.py says what each means):")
            print("\n".join(f"  --config.{key}={value}" for key, value in keys()))
        else:
            print("\n--helpfull also lists every key that --config.KEY=VALUE sets.")
    sys.exit(0)


def _flag_help(flag: flags.Flag) -> str:
    is_switch = flag.flag_type() == "bool"
    name = f"--{flag.name}" if is_switch or not flag.default else f"--{flag.name}={flag.default}"
    lines = textwrap.wrap(" ".join((flag.help or "").split()), 72)
    return "\n".join([f"  {coloured(name, 'bold')}", *(f"      {line}" for line in lines)])


def keys(values: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration, such as `data.path`, and its default."""
    for key, value in (CompressionConfig().to_json() if values is None else values).items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value)


CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33}


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """The text in a colour, if the stream (standard output) is a terminal and NO_COLOR is not set."""
    if not (stream or sys.stdout).isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{CODES[colour]}m{text}\033[0m"


def option(argv: list[str], name: str, default: str = "") -> str:
    """The value of a flag, before flags are parsed.

    Raises:
        ConfigError: if it is not given and has no default.
    """
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", word)
        if match:
            return match[1] if match[1] is not None else following
    if default:
        return default
    raise ConfigError(f"--{name} is missing (see --help).")


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

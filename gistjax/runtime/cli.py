"""Shared by all commands: typed overrides, errors without tracebacks, JSON as the last line.

A command defines its own absl flags, writes `main(config, args)`, and ends in `cli.run(main)`. Exit
codes: 0 done, 1 some runs of a sweep failed, 2 a mistake that the user can fix, 75 stopped by
SIGTERM or CTRL-C with the training saved (run the same command again to go on), 130 interrupted at
once.
"""

from __future__ import annotations

import difflib
import errno
import json
import logging
import os
import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

from absl import flags
from ml_collections import ConfigDict, config_flags

from gistjax.config import ARCHITECTURES, CompressionConfig
from gistjax.errors import ConfigError, GistjaxError, did_you_mean, first_line
from gistjax.runtime.arguments import OVERRIDE, path_flags, plain_overrides, tidy_path
from gistjax.runtime.files import is_file, to_json
from gistjax.runtime.logs import HUB
from gistjax.runtime.signals import Stopped
from gistjax.runtime.texts import shown, tolerate_terminals, user_path
from gistjax.settings import walk

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
CONFIGS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""Folders of the configs that come with gistjax: in the installed package, in a checkout."""
KEYS_OF_A_RUN = "the defaults of training (of a run given, its own values hold)"
HELP = {"--help", "-h", "-help", "--helpfull"}

NO_SPACE = os.strerror(errno.ENOSPC)
CUDA_FAILED = (
    r"CUDA_ERROR|CUDNN_STATUS|[Cc]u(DNN|BLAS|SOLVER)|no kernel image|PTX"
    r"|Unable to initialize backend"
)
"""Pattern of JAX's messages where driver, CUDA and jaxlib do not fit."""

Main = Callable[[CompressionConfig, flags.FlagValues], None]
MainWithWords = Callable[[CompressionConfig, flags.FlagValues, list[str]], None]
Defaults = Callable[[list[str]], CompressionConfig]
DefineFlags = Callable[[flags.FlagValues], None]


def run(main: Main, define_flags: DefineFlags, defaults: Defaults | None = None) -> None:
    """Parse the command line, call `main`, and exit.

    Args:
        main: the command, given its config and its other flags.
        define_flags: defines those flags.
        defaults: gives the config if it does not come from a file named by --config.
    """

    def parsed() -> None:
        values = _flags(define_flags)
        main(parse(sys.argv, defaults, values), values)

    guard(parsed)


def run_with_words(main: MainWithWords, define_flags: DefineFlags, defaults: Defaults) -> None:
    """As `run`, for a command that also takes arguments without a flag."""

    def parsed() -> None:
        values = _flags(define_flags)
        config, words = _parse(sys.argv, defaults, values)
        main(config, values, words)

    guard(parsed)


def run_bare(main: Callable[[flags.FlagValues], None], define_flags: DefineFlags) -> None:
    """As `run`, for a command without a config."""

    def parsed() -> None:
        values = _flags(define_flags)
        if HELP & set(sys.argv):
            print_help(values)
        _no_words(_parse_flags(sys.argv, values), values)
        main(values)

    guard(parsed)


def _flags(define_flags: DefineFlags) -> flags.FlagValues:
    """Return a command's flags and those of all commands; absl's global flags stay as they are."""
    values = flags.FlagValues()
    define_flags(values)
    about = "Show where in the code an error arose."
    flags.DEFINE_bool("traceback", False, about, flag_values=values)
    return values


def guard(command: Callable[[], None]) -> None:
    """Run a command and exit: errors as one line, unless --traceback asks for more."""
    tolerate_terminals()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of PyTorch, which is not used
    # force: a library may have set up a log of its own while it was imported
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it sets its own level when imported
    for chatty in ("jax", *HUB):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    for raises in ("absl", "orbax"):  # they log tracebacks of what they raise
        logging.getLogger(raises).setLevel(logging.CRITICAL)
    try:
        command()
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message, code = explain(error)
        if message is None or "--traceback" in sys.argv:
            raise
        print(f"{coloured('error:', 'red', sys.stderr)} {message}", file=sys.stderr)
        sys.exit(code)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def explain(error: Exception) -> tuple[str | None, int]:
    """Return the message for a user and the exit code; None for an error that is not theirs."""
    if isinstance(error, GistjaxError):
        return str(error), 2
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or NO_SPACE in text:
        place = getattr(error, "filename", None)
        on = f" ({place})" if place else ""
        return f"the disk is full{on}: free some room, or give --workdir on another disk.", 2
    cause = first_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"memory ran out ({cause}): give less at once, or use a machine with more.", 2
    if isinstance(error, RuntimeError) and re.search(CUDA_FAILED, text):
        return (
            f"CUDA failed ({cause}): `python -m gistjax.doctor` compares driver, CUDA and JAX.",
            2,
        )
    return None, 1


def parse(
    argv: list[str], defaults: Defaults | None = None, values: flags.FlagValues | None = None
) -> CompressionConfig:
    """Return the config that a command line asks for.

    Raises:
        ConfigError: for an unknown flag or key (with the nearest known one), a wrong type, a
            missing file.
    """
    values = flags.FlagValues() if values is None else values
    config, words = _parse(argv, defaults, values)
    _no_words(words, values)
    return config


def _parse(
    argv: list[str], defaults: Defaults | None, values: flags.FlagValues
) -> tuple[CompressionConfig, list[str]]:
    """Return the config, and the arguments without a flag."""
    if HELP & set(argv):
        print_help(values, "their defaults" if defaults is None else KEYS_OF_A_RUN)
    about = "Config file; any key is overridden by --config.KEY=VALUE."
    argv = plain_overrides(argv)
    argv, config = _from_file(argv) if defaults is None else (argv, defaults(argv))
    _check_keys(argv)
    config_flags.DEFINE_config_dict("config", config.to_config_dict(), about, values, sys_argv=argv)
    words = _parse_flags(argv, values)
    return CompressionConfig.from_dict(values["config"].value), words  # type: ignore[arg-type]


def _parse_flags(argv: list[str], values: flags.FlagValues) -> list[str]:
    values.set_gnu_getopt(True)  # arguments and flags in any order
    try:
        return values(argv)[1:]
    except (flags.Error, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(error).strip()} (see --help)") from error


def _no_words(words: list[str], values: flags.FlagValues) -> None:
    if words:
        paths = " or ".join(f"--{name}" for name in path_flags(values))
        after = f", and a path stands after {paths}" if paths else ""
        raise ConfigError(
            f"unexpected argument {words[0]!r}: options start with --, as in --config.seed=1"
            f"{after} (see --help)."
        )


def print_help(values: flags.FlagValues, of_keys: str = "their defaults") -> NoReturn:
    """Print the command's page and flags, with --helpfull every configuration key too; exit.

    Args:
        of_keys: what the values shown of the keys are.
    """
    about = (sys.modules["__main__"].__doc__ or "").strip()
    own = [values[name] for name in values]
    print(f"{about}\n\nflags:")
    for flag in sorted(own, key=lambda flag: (flag.name == "traceback", flag.name)):
        print(_flag_help(flag))
    if "--config." in about:
        if "--helpfull" in sys.argv:
            print(f"\nkeys, with {of_keys}:")
            print("\n".join(_key_help(*key) for key in walk(CompressionConfig())))
        else:
            print("\n--helpfull also lists every key that --config.KEY=VALUE sets.")
    sys.exit(0)


def _key_help(name: str, default: Any, metadata: Mapping[str, Any]) -> str:
    choices = metadata.get("choices", ())
    one_of = f" ({' | '.join(choices)})" if choices and not isinstance(default, tuple) else ""
    about = textwrap.wrap(metadata["about"] + one_of, 90)
    title = coloured(f"--config.{name}={json.dumps(default)}", "bold")
    return "\n".join([f"  {title}", *(f"      {line}" for line in about)])


def _flag_help(flag: flags.Flag[Any]) -> str:
    is_switch = flag.flag_type() == "bool"
    name = f"--{flag.name}" if is_switch or not flag.default else f"--{flag.name}={flag.default}"
    lines = textwrap.wrap(" ".join((flag.help or "").split()), 72)
    return "\n".join([f"  {coloured(name, 'bold')}", *(f"      {line}" for line in lines)])


CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33}


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Colour the text if the stream (standard output) is a terminal and NO_COLOR is not set."""
    if not (stream or sys.stdout).isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{CODES[colour]}m{text}\033[0m"


def option(argv: list[str], name: str, default: str = "") -> str:
    """Return the path that a flag names, before flags are parsed.

    Raises:
        ConfigError: if it is not given and has no default.
    """
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        match = re.fullmatch(rf"--?{name}(?:=(.*))?", word)
        value = match and (match[1] if match[1] is not None else following).strip()
        if value:
            return tidy_path(value)
    if default:
        return default
    raise ConfigError(f"--{name} is missing (see --help).")


def overrides() -> list[str]:
    """Return the `--config.KEY=VALUE` of this process's command line.

    Raises:
        ConfigError: if one has its value in the next word.
    """
    words = [word for word in sys.argv[1:] if re.match(OVERRIDE, word)]
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word} needs its value in the same word: {word}=VALUE.")
    return words


def _from_file(argv: list[str]) -> tuple[list[str], CompressionConfig]:
    """Return the command line without its config file, and the config of that file."""
    files, rest, words = [], argv[:1], iter(argv[1:])
    for word in words:
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match:
            files.append(next(words, "") if match[1] is None else match[1])
        else:
            rest.append(word)
    if not files:
        near = next((word for word in argv[1:] if word.endswith(".py")), "configs/gist_m64.py")
        raise ConfigError(f"which config? Give one, as in --config {near}.")
    if len(files) > 1:
        raise ConfigError(f"--config is given twice ({' and '.join(files)}): give one file.")
    return rest, read_config_file(files[0])


def read_config_file(name: str) -> CompressionConfig:
    """Return the config of a Python file's `get_config()`. The file is code, and is run.

    Args:
        name: `FILE`, or `FILE:ARGUMENT` for a `get_config(argument)`. A file that is not there is
            looked for among the configs that come with gistjax.

    Raises:
        ConfigError: if it is missing, fails, or returns no config.
    """
    file, _, argument = name.strip().partition(":")
    path = _find_config(file)
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        config = get_config(argument) if argument else get_config()
    except GistjaxError:
        raise
    except Exception as error:  # whatever the code in the file runs into
        cause = f"{type(error).__name__}: {error}"
        unknown = re.search(r"unexpected keyword argument '(\w+)'", cause)
        hint = did_you_mean(unknown[1], _leaves()) if unknown else ""
        raise ConfigError(
            f"config file {name} fails ({cause}){hint or '.'} It needs get_config(), which returns "
            "a ConfigDict."
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config() of {name} returns {config!r}, not a ConfigDict: end it as "
            "configs/gist_m64.py does."
        )
    return CompressionConfig.from_dict(config)


def _find_config(name: str) -> Path:
    """Return the path of a config file, given its path or the name of one that comes with gistjax.

    Raises:
        ConfigError: with the nearest name, or what the file of gistjax 0.1 is called now.
    """
    path = user_path(name)
    if is_file(path):
        return path
    shipped = {
        file.relative_to(folder).as_posix(): file
        for folder in CONFIGS
        for file in sorted(folder.rglob("*.py"))
    }
    wanted = re.sub(r"^(.*/)?configs/", "", path.as_posix())
    if wanted in shipped:
        return shipped[wanted]
    ablation = re.fullmatch(r"(\w+)_m(32|64|128)(\.py)?", path.name)  # as 0.1 named them
    if ablation and ablation[1] in ARCHITECTURES:
        now = f"configs/seed/ablation.py:{ablation[1]},{ablation[2]}"
        raise ConfigError(f"there is no config file {name!r}; did you mean {now}?")
    near = difflib.get_close_matches(wanted, shipped, 1)
    hint = f"; did you mean configs/{near[0]}?" if near else f"; there are {', '.join(shipped)}."
    raise ConfigError(f"there is no config file {name!r}{hint}")


def _leaves(group: ConfigDict | None = None) -> Iterator[str]:
    """Yield the last part of every key."""
    for key, value in (group or CompressionConfig().to_config_dict()).items():
        yield key
        if isinstance(value, ConfigDict):
            yield from _leaves(value)


def _check_keys(argv: list[str]) -> None:
    """Refuse the first override that names no key, with the nearest one.

    Raises:
        ConfigError: naming both.
    """
    for word in argv[1:]:
        match = re.match(OVERRIDE, word)
        group: Any = CompressionConfig().to_config_dict()
        for part in match[1].split(".") if match else ():
            known = list(group) if isinstance(group, ConfigDict) else []
            if part not in known:
                assert match is not None
                hint = did_you_mean(part, known) if known else ": it has no parts."
                raise ConfigError(f"config has no key {match[1]!r}{hint}")
            group = group[part]


def print_result(result: dict[str, Any], for_people: str = "") -> None:
    """Print one JSON object as the last line; on a terminal the text for people, if given."""
    sys.stderr.flush()
    on_terminal = for_people and sys.stdout.isatty()
    text = to_json(result)
    line = for_people if on_terminal else shown(text, json.dumps(json.loads(text)))
    print(line, flush=True)

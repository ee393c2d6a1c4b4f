"""Serve a store over HTTP: add documents, ask, and chat as with OpenAI's API.

    python -m gistjax.serve --store STORE
    curl localhost:8000/documents --json '{"name": "mill", "text": "The mill was built in 1783."}'
    curl localhost:8000/ask --json '{"question": "When was the mill built?"}'

Only this machine can reach it unless --host says otherwise; that needs a token. SIGTERM or CTRL-C
answers what was accepted, and ends.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.store_place import check_place, is_store
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path

SHORTEST_TOKEN = 16
"""Characters: a shorter one can be guessed."""
EVERYWHERE = ("0.0.0.0", "::")


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Serve until a signal comes."""
    path, token = checked(args)
    try:
        from gistjax.serving.server import Listening, serve  # slow: flags are checked first
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a server needs the package {error.name}: pip install -e '.[serve]'."
        ) from error
    names = (args.host, *args.name)
    listening = Listening(args.host, args.port, names, token, args.seconds, args.queue)
    serve(path, args.run, config, listening)


def checked(args: flags.FlagValues) -> tuple[Path, str]:
    """Return the store's folder and the token that requests need; "" if they need none.

    Raises:
        CheckpointError: if the folder is no store and cannot become one.
        ConfigError: if others could reach it, or what a flag names is not there.
    """
    if not args.store:
        raise ConfigError("which store? Give its folder with --store.")
    path = Path(args.store)
    if not is_store(path):
        check_place(path)
    token = read_token(args.token_file) if args.token_file else ""
    check_reach(args.host, args.name, token)
    return path, token


def read_token(file: str) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: if it cannot be read, or is none.
    """
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token_file={file} cannot be read ({error}).") from error
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"--token_file={file} must have one line of {SHORTEST_TOKEN} or more plain characters: "
            "`openssl rand -hex 32` makes one."
        )
    return token


def check_reach(host: str, names: list[str], token: str) -> None:
    """Refuse to be reached from elsewhere without a token and a name.

    Raises:
        ConfigError: saying what is missing.
    """
    if is_loopback(host):
        if not token and (beyond := [name for name in names if not is_loopback(name)]):
            raise ConfigError(
                f"--name={beyond[0]} is what other machines call this one, through a proxy, and "
                "nothing would keep anyone out: give --token_file, or leave --name out."
            )
        return
    if not token:
        raise ConfigError(
            f"--host={host} lets other machines read the store, and nothing would keep anyone "
            "out: give --token_file, or leave --host out."
        )
    if host in EVERYWHERE and not names:
        raise ConfigError(
            f"--host={host} does not say what this machine is called by those who ask: give "
            "--name, as in --name=docs.example.org."
        )


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("store", "", "Folder of the store; it is made if it is not there.", values)
    define_path("run", str(SHIPPED), "Directory of the run whose compressor to use.", values)
    about = "Address to listen at; one that other machines reach needs --token_file."
    flags.DEFINE_string("host", "127.0.0.1", about, flag_values=values)
    flags.DEFINE_integer("port", 8000, "Port to listen at.", 0, 65535, flag_values=values)
    about = "Name by which clients call this machine, besides localhost and --host; repeated."
    flags.DEFINE_multi_string("name", [], about, flag_values=values)
    about = "File with the token that requests must have (Authorization: Bearer TOKEN)."
    define_path("token_file", "", about, values)
    about = "The most seconds that a request may take."
    flags.DEFINE_float("seconds", 60.0, about, 0.1, flag_values=values)
    about = "The most questions that wait; more are sent away with 503."
    flags.DEFINE_integer("queue", 256, about, 64, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())

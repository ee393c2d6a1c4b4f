"""A finished run in the form that others take it in.

python -m gistjax.export --run RUN --to peft --output DIR

peft    the decoder's adapter for PyTorch (gistjax/peft_export.py)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from absl import flags

from gistjax import cli
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.trained import load_config

Export = Callable[[Path, CompressionConfig, Path, flags.FlagValues, list[str]], None]


def export_peft(
    run: Path, config: CompressionConfig, output: Path, args: flags.FlagValues, words: list[str]
) -> None:
    """The decoder's adapter."""
    from gistjax import peft_export

    peft_export.export_peft(run, config, output, args, words)


EXPORTS: dict[str, Export] = {"peft": export_peft}


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    if not args.output:
        raise ConfigError("--output is missing: the folder to write to.")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    EXPORTS[args.to](Path(args.run), config, output, args, [])
    cli.print_result(
        {"output": str(output), "files": sorted(path.name for path in output.iterdir())}
    )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags."""
    for name, about in (
        ("run", "Directory of a finished run."),
        ("output", "Folder to write to; made if it is not there."),
    ):
        flags.DEFINE_string(name, "", about, values)
    flags.DEFINE_enum("to", "peft", list(EXPORTS), "The form.", flag_values=values)


if __name__ == "__main__":
    define_flags()
    cli.run(main, lambda argv: load_config(Path(cli.option(argv, "run"))))

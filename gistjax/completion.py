"""Completes gistjax's commands, their flags and the keys of the configuration in bash.

    source <(python -m gistjax.completion)

Then `python -m gistjax.tr<TAB>`, `--config conf<TAB>` and `--config.optimizer.<TAB>` do what one expects; every other use
of `python` completes as before. Put the line into ~/.bashrc to keep it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags

from gistjax.runtime import cli

SCRIPT = """\
_gistjax() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" module="" words="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ "${{COMP_WORDS[i]}}" == -m ]] && module="${{COMP_WORDS[i+1]}}" && break
    done
    if [[ $((i + 1)) -eq $COMP_CWORD && -n "$module$current" ]]; then
        COMPREPLY=($(compgen -W "{modules}" -- "$current"))
        return
    fi
    [[ "$current" == -* ]] || return
    case "$module" in
{cases}
        *) return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ "${{COMPREPLY[*]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _gistjax python python3
"""


def commands() -> list[str]:
    """The modules that are commands, such as `gistjax.train`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f"gistjax.{file.stem}" for file in files if "\n    cli.run" in file.read_text("utf-8")]


def flags_of(module: str) -> list[str]:
    """What the command's own help lists."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--helpfull"], capture_output=True, text=True, check=True
    )
    return re.findall(r"^  (--[\w.]+)", done.stdout, re.MULTILINE)


def script() -> str:
    """The bash function and its registration."""
    modules = commands()
    with ThreadPoolExecutor() as pool:
        found = dict(zip(modules, pool.map(flags_of, modules), strict=True))
    cases = []
    for module, names in found.items():
        words = " ".join(f"{name}=" if name.startswith("--config.") else name for name in names)
        cases.append(f'        {module}) words="{words}" ;;')
    return SCRIPT.format(modules=" ".join(modules), cases="\n".join(cases))


def main(args: flags.FlagValues) -> None:
    """The command."""
    print(script())


if __name__ == "__main__":
    cli.run_bare(main)

"""Write the table, plots and predictions of a sweep.

    python -m gistjax.report --runs runs/compression_ablations [--runs runs/controls …]
        [--write_to FOLDER] [--title TEXT]

Reads the run directories in and below the folders, and writes to the first of them, or to FOLDER:
`results_summary.json`, `results.md` (for papers), `results.csv` (everything, in full precision) and
`report.html`, one file that needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import make_folder, write_atomically, write_json


def report(
    folders: list[Path], out: Path | None = None, title: str = "", questions: int = 100
) -> dict[str, Any]:
    """Write the four files; return the content of `results_summary.json`.

    Raises:
        DataError: if there is no run, or a file of one is damaged.
        ConfigError: if the drawing library is not installed; nothing is written then.
        StorageError: if the folder cannot be written.
    """
    from gistjax.reporting import page, tables, task_table
    from gistjax.reporting.runs import find_runs

    results = find_runs(folders)
    out = out or folders[0]
    columns, rows = tables.table(results)
    tasks = task_table.task_table(results)
    html = page.render(title or out.resolve().name, results, (columns, rows), tasks, questions)
    make_folder(out)
    summary = {
        "runs": {row["run"]: row for row in rows},
        "tasks": tasks[1],
        "unfinished": [result.name for result in results if not result.metrics],
    }
    write_json(out / "results_summary.json", summary)
    markdown = filter(None, (tables.to_markdown(columns, rows), tables.to_markdown(*tasks)))
    write_atomically(out / "results.md", "\n".join(markdown).encode())
    write_atomically(out / "results.csv", tables.to_csv(columns, rows).encode())
    write_atomically(out / "report.html", html.encode())
    return summary


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Write the report on the folders that the flags name."""
    if not args.runs:
        raise ConfigError(
            "a report of what? Give a folder, as in --runs runs/compression_ablations."
        )
    out = Path(args.write_to) if args.write_to else None
    folders = [Path(name) for name in args.runs]
    summary = report(folders, out, args.title, args.questions)
    cli.print_result(summary, f"open {(out or folders[0]).absolute() / 'report.html'}")


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    about = "Folder of a sweep, or directory of a run"
    define_path("runs", "", about, values, many=True)
    about = "Folder for the report; by default the first of --runs."
    define_path("write_to", "", about, values)
    flags.DEFINE_string(
        "title", "", "The report's title; by default the folder's name.", flag_values=values
    )
    flags.DEFINE_integer(
        "questions", 100, "Questions shown side by side in the page.", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())

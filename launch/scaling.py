"""Measure what more GPUs are worth to one run: one GPU against meshes of several.

    python -m launch.scaling [--gpus 4] [--rows 8 32] [--layouts data fsdp tensor]
        [-- FLAGS OF gistjax.benchmark]

Times the train step of `gistjax.benchmark`. Prints a line of a table as each is measured, and JSON
last. `rows` are those of each GPU; a layout that splits the model instead of the rows takes all of
them at once. Efficiency is the rows a second against as many GPUs that each do what one does alone.
The loss is that of the last step; with the first of `rows`, one GPU also takes the rows of all, to
compare it. Start it from the repository's root; without GPUs, it uses as many virtual devices.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from launch.peers import OURS, json_lines

LAYOUTS = ("data", "fsdp", "tensor")
COLUMNS = ("layout", "GPUs", "rows", "step ms", "rows/s", "efficiency", "GiB a GPU", "loss")
"""Columns of the table; `rows` are those of a step on all GPUs."""


def measure(gpus: int, layout: str, rows: int, flags: Sequence[str], timeout: float) -> Any:
    """Run one process on so many GPUs, `rows` on each; None if it failed, which it says itself."""
    devices = [
        f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(gpus)))}",
        f"JAX_NUM_CPU_DEVICES={gpus}",
    ]
    mesh = {axis: gpus if axis == layout else 1 for axis in LAYOUTS}
    per_share = rows * gpus if layout == "tensor" else rows
    command = [*OURS, "--mode=train", f"--config.batch_size={per_share}", *flags]
    command += [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    found = json_lines(["env", *devices, *command], timeout)
    return found[-1] if found else None


def line(layout: str, gpus: int, found: Any, alone: Any) -> list[str]:
    """Return the table's cells, `alone` being what one GPU does with as many rows."""
    if found is None:
        return [layout, str(gpus), *["failed"] * (len(COLUMNS) - 2)]
    efficiency = ""
    if alone is not None:
        efficiency = f"{found['examples_per_s'] / (gpus * alone['examples_per_s']):.1%}"
    memory = found["peak_memory_gib"]
    cells = (layout, gpus, found["rows"], found["step_ms"], found["examples_per_s"], efficiency)
    return [*map(str, cells), "" if memory is None else str(memory), str(found["loss"])]


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="of each GPU")
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one process")
    parser.add_argument("flags", nargs="*", help="of gistjax.benchmark")
    args = parser.parse_args()
    results = []
    print(table_row(COLUMNS), table_row(["---"] * len(COLUMNS)), sep="\n", flush=True)

    def show(layout: str, gpus: int, rows: int, alone: Any = None) -> Any:
        found = measure(gpus, layout, rows, args.flags, args.timeout)
        results.append({"layout": layout, "gpus": gpus, **(found or {})})
        print(table_row(line(layout, gpus, found, alone)), flush=True)
        return found

    wanted = dict.fromkeys([*args.rows, args.rows[0] * args.gpus])
    alone = {rows: show("alone", 1, rows) for rows in wanted}
    for rows in args.rows:
        for layout in args.layouts:
            show(layout, args.gpus, rows, alone[rows])
    print(json.dumps(results))
    sys.exit(not all("loss" in result for result in results))


if __name__ == "__main__":
    main()

"""Time gistjax and a PyTorch peer on one GPU, in turn.

    python launch/peers.py [--works train_8b_8 generate_8b …] [--peers eager compile]

Prints a table of times and ratios, and JSON as the last line. Needs what `launch/torch_peer.py`
needs. The two never run at the same time: neither holds memory or time that the other could use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

OURS = [sys.executable, "-m", "gistjax.benchmark"]
PEER = [sys.executable, str(Path(__file__).with_name("torch_peer.py"))]


class Work(NamedTuple):
    """A measurement in the words of both sides."""

    size: str  # the peer's name of the base
    peer: str  # the peer's mode and rows
    flags: Sequence[str]  # ours


def work(size: str, mode: str, rows: int, name: str, *flags: str, peer_mode: str = "") -> Work:
    """Return a work of `rows` rows on the base that gistjax calls `name`."""
    ours = [f"--mode={mode}", f"--config.model.name={name}", f"--config.batch_size={rows}", *flags]
    return Work(size, f"{peer_mode or mode}:{rows}", ours)


LLAMA, SMOL = "llama-3.1-8b-instruct", "smollm2-135m-instruct"
WORKS = {
    "train_135m_32": work("135m", "train", 32, SMOL),
    "train_8b_8": work("8b", "train", 8, LLAMA),
    "train_8b_32": work("8b", "train", 32, LLAMA),
    "generate_8b": work("8b", "generate", 32, LLAMA),
    "generate_8b_full": work(
        "8b", "generate", 32, LLAMA, "--config.architecture=none", peer_mode="generate_full"
    ),
    "train_tiny": work("tiny", "train", 2, "tiny-random"),
}


def json_lines(command: list[str], timeout: float) -> list[dict[str, Any]]:
    """Return what a command measured; say on standard error why it did not."""
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        print(f"took over {timeout:.0f} s", file=sys.stderr)
        output = error.stdout.decode() if error.stdout else ""
    else:
        output = done.stdout
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    whole = lines if output.endswith("\n") else lines[:-1]  # the last may be cut off
    return [json.loads(line) for line in whole]


def measure_peer(
    size: str, works: list[Work], kind: str, device: str, timeout: float
) -> dict[str, dict[str, Any]]:
    """Return the peer's measurements on one base, by its own name of the work."""
    # A growing cache would be compiled anew for every token.
    wanted = [w.peer for w in works if kind == "eager" or w.peer.startswith("train")]
    if not wanted:
        return {}
    command = [*PEER, f"--size={size}", f"--device={device}", "--works", *wanted]
    command += ["--compile"] if kind == "compile" else []
    return {line["work"]: line for line in json_lines(command, timeout)}


def our_seconds(ours: dict[str, Any]) -> float | None:
    """Return the time to compare with the peer's; generating from slots includes compressing."""
    if "step_ms" in ours:
        return ours["step_ms"] / 1e3
    return ours["answer_s"] + ours["compress_ms"] / 1e3 if "answer_s" in ours else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS)[:-1])
    parser.add_argument("--peers", nargs="*", choices=["eager", "compile"], default=["eager"])
    parser.add_argument("--device", default="cuda", help="the peer's")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one process")
    args = parser.parse_args()
    chosen = {name: WORKS[name] for name in args.works}
    results: dict[str, Any] = {}
    for size in dict.fromkeys(work.size for work in chosen.values()):
        here = {name: work for name, work in chosen.items() if work.size == size}
        peers = {
            kind: measure_peer(size, list(here.values()), kind, args.device, args.timeout)
            for kind in args.peers
        }
        for name, one in here.items():
            lines = json_lines([*OURS, *one.flags], args.timeout)
            ours = lines[-1] if lines else {}
            theirs = {kind: found[one.peer] for kind, found in peers.items() if one.peer in found}
            results[name] = {"gistjax": ours, **theirs}
            print(row(name, our_seconds(ours), theirs), flush=True)
    print(json.dumps(results))


def row(name: str, ours: float | None, theirs: dict[str, Any]) -> str:
    """Return a line of the table; the ratio is to the fastest peer."""
    times = {kind: found["seconds"] for kind, found in theirs.items()}
    cells = [f"{kind} {seconds * 1e3:.1f} ms" for kind, seconds in times.items()]
    cells.insert(0, f"gistjax {ours * 1e3:.1f} ms" if ours else "gistjax failed")
    if ours and times:
        cells.append(f"ratio {min(times.values()) / ours:.2f}")
    return f"{name}: {', '.join(cells)}"


if __name__ == "__main__":
    main()

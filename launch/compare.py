"""gistjax and the PyTorch peer on one GPU, in turn: prints a table of times and ratios, and JSON as the last line.

    python launch/compare.py [--works train_8b_8 generate_8b …] [--peers eager compile]

Needs what `launch/peers/torch_peer.py` needs. Each measurement is a process of its own, so that neither side holds memory
that the other could use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = [sys.executable, "-m", "gistjax.benchmark"]
PEER = [sys.executable, str(Path(__file__).parent / "peers" / "torch_peer.py")]
LLAMA, SMOL = "llama-3.1-8b-instruct", "smollm2-135m-instruct"
FULL = ["--config.architecture=none"]

WORKS: dict[str, dict[str, Any]] = {
    "train_8b_8": {"mode": "train", "name": LLAMA, "size": "8b", "rows": 8},
    "train_8b_32": {"mode": "train", "name": LLAMA, "size": "8b", "rows": 32},
    "train_135m_32": {"mode": "train", "name": SMOL, "size": "135m", "rows": 32},
    "generate_8b": {"mode": "generate", "name": LLAMA, "size": "8b", "rows": 32},
    "generate_8b_full": {
        "mode": "generate", "name": LLAMA, "size": "8b", "rows": 32,
        "ours": FULL, "peer_mode": "generate_full",
    },
    "tiny": {"mode": "train", "name": "tiny-random", "size": "tiny", "rows": 2},
}  # fmt: skip


def last_json(command: list[str], timeout: float) -> dict[str, Any]:
    """What a command measured, or why it did not."""
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"took over {timeout:.0f} s"}
    except (IndexError, json.JSONDecodeError):
        return {"error": done.stderr.strip()[-500:]}


def compare(work: dict[str, Any], peers: list[str], device: str, timeout: float) -> dict[str, Any]:
    """Ours, then each peer."""
    rows = work["rows"]
    ours = last_json(
        [*OURS, f"--mode={work['mode']}", f"--config.model.name={work['name']}",
         f"--config.batch_size={rows}", *work.get("ours", [])],
        timeout,
    )  # fmt: skip
    found = {}
    for peer in peers:
        mode = work.get("peer_mode", work["mode"])
        if peer == "compile" and mode != "train":
            continue  # a growing cache recompiles at every token
        command = [*PEER, f"--size={work['size']}", f"--mode={mode}", f"--rows={rows}"]
        command += [f"--device={device}", *(["--compile"] if peer == "compile" else [])]
        found[peer] = last_json(command, timeout)
    return {"ours": ours, "peers": found}


def seconds_of(ours: dict[str, Any]) -> float | None:
    """The time that stands against the peer's: compression counts where the peer compresses."""
    if "step_ms" in ours:
        return ours["step_ms"] / 1e3
    if "answer_s" in ours:
        return ours["answer_s"] + ours["compress_ms"] / 1e3
    return None


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = [name for name in WORKS if name != "tiny"]
    parser.add_argument("--works", nargs="+", choices=WORKS, default=every)
    parser.add_argument("--peers", nargs="*", choices=["eager", "compile"], default=["eager"])
    parser.add_argument("--device", default="cuda", help="of the peer")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a measurement may take")
    args = parser.parse_args()
    results = {}
    for name in args.works:
        result = compare(WORKS[name], args.peers, args.device, args.timeout)
        ours = seconds_of(result["ours"])
        times = {peer: value.get("seconds") for peer, value in result["peers"].items()}
        best = min((time for time in times.values() if time), default=None)
        result["ratio"] = round(best / ours, 2) if best and ours else None
        results[name] = result
        shown = ", ".join(
            f"{peer} {time and round(time * 1e3, 1)} ms" for peer, time in times.items()
        )
        mine = f"{ours * 1e3:.1f} ms" if ours else result["ours"]["error"]
        print(f"{name}: gistjax {mine}; {shown}; ratio {result['ratio']}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Host memory and speed of loading a base: writes a synthetic Hugging Face folder of a known shape, loads it, prints JSON.

    python launch/measure_loading.py --name llama-3.2-1b-instruct --folder /tmp/synthetic

Peak anonymous memory is what the process itself allocated; the peak of the resident set also counts file pages that the
kernel takes back when it needs them. On the CPU backend the model's own arrays are host memory too.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from gistjax.config import MeshConfig, ModelConfig
from gistjax.weights.loading import NAMES
from gistjax.weights.registry import KNOWN

GIB = 2**30


def write_folder(name: str, folder: Path) -> None:
    """One shard a layer, so that no more than a layer is in memory."""
    c = KNOWN[name].config
    D, F = c.d_model, c.d_ff
    NH, KH = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = {
        "embedding": (c.vocab_size, D), "output": (c.vocab_size, D), "final_norm": (D,),
        "layers/attention_norm": (D,), "layers/ffn_norm": (D,), "layers/q": (NH, D),
        "layers/k": (KH, D), "layers/v": (KH, D), "layers/o": (D, NH), "layers/gate": (F, D),
        "layers/up": (F, D), "layers/down": (D, F),
    }  # fmt: skip
    if c.tie_embeddings:
        del shapes["output"]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    index: dict[str, str] = {}

    def save(file: str, leaves: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            key: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for key, shape in leaves.items()
        }
        save_file(tensors, folder / file)
        index.update(dict.fromkeys(tensors, file))

    save("model-top.safetensors", {NAMES[k]: s for k, s in shapes.items() if "/" not in k})
    for layer in range(c.n_layers):
        leaves = {NAMES[k].format(layer): s for k, s in shapes.items() if "/" in k}
        save(f"model-{layer:05d}.safetensors", leaves)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": D, "intermediate_size": F,
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "rms_norm_eps": c.rms_eps,
        "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_embeddings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


class PeakAnonymous(threading.Thread):
    """Samples this process's anonymous resident memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def now(self) -> int:
        """Bytes at this moment."""
        match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(match[1]) * 1024 if match else 0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def load(name: str, folder: Path) -> None:
    """Loads the folder in this process and prints what it took."""
    import jax
    from flax import nnx

    from gistjax.sharding import make_mesh
    from gistjax.weights.registry import load_base, resolve

    model = ModelConfig(name=name, path=str(folder))
    mesh = make_mesh(MeshConfig())
    memory = PeakAnonymous()
    before = memory.now()
    memory.start()
    start = time.perf_counter()
    base = load_base(resolve(model), model, mesh)
    seconds = time.perf_counter() - start
    arrays = jax.tree.leaves(nnx.state(base))
    size = sum(array.nbytes for array in arrays)
    largest = max(array.nbytes for array in arrays)
    print(
        json.dumps(
            {
                "model": name,
                "device": str(jax.devices()[0].device_kind),
                "weights_gib": round(size / GIB, 3),
                "largest_leaf_gib": round(largest / GIB, 3),
                "peak_anonymous_gib": round((memory.peak - before) / GIB, 3),
                "peak_resident_gib": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3
                ),
                "seconds": round(seconds, 2),
                "gb_per_s": round(size / seconds / 1e9, 2),
            }
        )
    )


def main() -> None:
    """Writes the folder where it is missing, and loads it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="llama-3.2-1b-instruct", choices=sorted(KNOWN))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.name, args.folder)
        return
    if not (args.folder / "config.json").exists():
        print(f"writing {args.folder}", file=sys.stderr)
        write_folder(args.name, args.folder)
    subprocess.run([sys.executable, *sys.argv, "--load"], check=True)


if __name__ == "__main__":
    main()

"""The memory estimate of `--dry_run` beside the measured peak, one process a configuration.

    python tests/stress/memory_estimate.py [NAME …] [--reports FOLDER | --compiled_for TARGET]

Without names, the five configurations of the bar; `others` is every other one. Prints a JSON object
for each configuration, and ends with exit code 1 if an estimate is further than 10 % from its peak.
`--reports` keeps XLA's own account of its buffers.

`--compiled_for` needs no GPU but `jax[cuda13]`: it compiles each step for one that a file describes
(`xla_gpu_target_config`, which `--reports` on such a GPU writes too), without autotuning and
Triton's products, and takes the memory that XLA assigns as the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

LLAMA = ("--config", "configs/seed/gist_m64.py", "--config.model.path=random")
SMOL = ("--config.model.name=smollm2-135m-instruct", "--config.model.path=random")
ANSWERS_ALONE = (
    "--config.loss_weights.generation=0",
    "--config.loss_weights.contrastive=0",
    "--config.accumulation=1",
)
QA = ("--config", "configs/qa.py", *SMOL)

BAR = {
    "8b_8_rows": (*LLAMA, *ANSWERS_ALONE),
    "8b_32_rows": (*LLAMA, *ANSWERS_ALONE, "--config.batch_size=32"),
    "qa": QA,
    "pretrain": ("--config", "configs/pretrain.py", *SMOL, "--config.text.path=unread"),
    "all_losses": ("--config", "configs/seed/gist_m64.py", *SMOL),
}
OTHERS = {
    "qa_16_contexts": (*QA, "--config.batch_size=16"),
    "qa_unrolled": (*QA, "--config.model.scan_layers=False"),
    "qa_remat": (*QA, "--config.model.remat=True"),
    "8b_scan": (*LLAMA, *ANSWERS_ALONE, "--config.model.scan_layers=True"),
    "8b_remat": (*LLAMA, *ANSWERS_ALONE, "--config.batch_size=32", "--config.model.remat=True"),
    "full_context": ("--config", "configs/full_context.py", *SMOL),
    "key_values": (
        *("--config", "configs/seed/gist_m64.py", *SMOL, *ANSWERS_ALONE, "--config.batch_size=32"),
        *("--config.slot_form=key_values", "--config.encoder.kind=lora"),
    ),
}
TOLERANCE = 0.10


def measure(flags: tuple[str, ...], reports: Path | None) -> dict[str, object]:
    """One configuration in a process of its own; its last lines of error output if it fails."""
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ}
    if reports is not None:
        environment["XLA_FLAGS"] = (
            f"{environment.get('XLA_FLAGS', '')} --xla_dump_to={reports} --xla_dump_hlo_as_text "
            "--xla_dump_hlo_module_re=jit_train_step"
        )
    return result_of(["-m", "gistjax.benchmark", "--mode=memory", *flags], environment)


def result_of(words: list[str], environment: dict[str, str]) -> dict[str, object]:
    """The last line of a Python process."""
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": done.stderr[-2000:] or f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


COMPILING = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
}


def compiled(flags: tuple[str, ...], target: Path) -> dict[str, object]:
    """What XLA assigns to a step that is compiled for another machine's GPU."""
    words = [__file__, "--compile_one", str(target), *flags]
    return result_of(words, {**os.environ, **COMPILING})


def compile_one(target: str, argv: list[str]) -> None:
    """In a process of its own: estimate and assigned bytes of one configuration, in GiB."""
    import jax
    import numpy as np
    from absl import flags
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from gistjax.estimate.memory import GIB, memory_estimate, prefix_tokens
    from gistjax.estimate.train_program import train_program
    from gistjax.model.attention import choose_kernel
    from gistjax.runtime import cli
    from gistjax.runtime.sharding import one_device
    from gistjax.weights.registry import resolve

    config = cli.parse(["memory_estimate", *argv], values=flags.FlagValues())
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=Path(target).read_text(), topology="1x1x1"
    )
    mesh = one_device()
    mesh = jax.sharding.Mesh(
        np.array(topology.devices).reshape(mesh.devices.shape), mesh.axis_names, mesh.axis_types
    )
    source = resolve(config.model, offline=True)
    base, prefix = source.config, prefix_tokens(source)
    dtype = jax.numpy.dtype(config.model.dtype)
    kernel = choose_kernel(config.model.attention, base.head_dim, dtype, "gpu")
    program = train_program(config, base, prefix, kernel, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), program.arguments
    )
    xla = program.step.lower(*arguments).compile().memory_analysis()
    used = xla.argument_size_in_bytes + xla.output_size_in_bytes - xla.alias_size_in_bytes
    assigned = (used + xla.temp_size_in_bytes) / GIB
    estimate = memory_estimate(config, base, prefix)
    print(
        json.dumps(
            {
                "estimate_gib": estimate,
                "assigned_gib": round(assigned, 3),
                "estimate_over_peak": round(estimate["total"] / assigned, 3),
            }
        )
    )


def main() -> int:
    if "--compile_one" in sys.argv[1:2]:
        compile_one(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(BAR))
    parser.add_argument("--reports", type=Path)
    parser.add_argument("--compiled_for", type=Path)
    arguments = parser.parse_args()
    known = BAR | OTHERS
    missed = 0
    for name in OTHERS if arguments.names == ["others"] else arguments.names:
        folder = arguments.reports and arguments.reports / name
        if arguments.compiled_for:
            result = compiled(known[name], arguments.compiled_for)
        else:
            result = measure(known[name], folder)
        print(json.dumps({"name": name, **result}), flush=True)
        missed += not abs((result.get("estimate_over_peak") or 0) - 1) <= TOLERANCE
    print(f"{missed} further than {TOLERANCE:.0%} from the peak", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())

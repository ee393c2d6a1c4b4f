"""Train a compressor that selects entries of the key/value cache, and score it.

    python -m launch.selection.prepare --squad=FOLDER --data=data
    python -m launch.selection.run --data=data --name=full --full --epochs=1.5 --lr=8e-4 …

docs/results/selection.md has the commands behind its tables. The recipe, in reading order:
`options` (what can be set), `passes` (read, score, answer), `budget` (what is kept, and its
gradient), `scorers`, `train` (loss and step), `evaluate`. A rehearsal on a CPU, on a random model:

    python -m launch.selection.run --data=data --tiny --rank=4 --batch=4 --eval_batch=4
        --epochs=.001 --seconds=60 --score=mlp --temperature=1 --evaluate=held:40

On a GPU, XLA_FLAGS="--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0" compiles in
seconds instead of minutes, and XLA_PYTHON_CLIENT_PREALLOCATE=false lets runs share it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from gistjax.errors import ConfigError
from gistjax.runtime import cli
from gistjax.runtime.files import make_folder, write_json
from launch.selection.attention import cudnn_agrees
from launch.selection.evaluate import calibrate, evaluate, time_to_compress
from launch.selection.leaves import count, load, save, starting_leaves
from launch.selection.model import Leaves, load_base, random_base
from launch.selection.options import Options, define_flags, from_flags
from launch.selection.passes import Frozen
from launch.selection.train import train

log = logging.getLogger(__name__)


def run(options: Options) -> dict[str, Any]:
    """Train, calibrate, evaluate and time, as far as the options ask for it.

    Returns:
        What is also written to `NAME.json`, beside the leaves `NAME.npz` (fp16) and `NAME.q8.npz`
        (adapters in int8), and the answers of each evaluation.

    Raises:
        ConfigError: if fixed parts are asked for and there are none.
    """
    start = time.time()
    make_folder(Path(options.out))
    frozen = frozen_parts(options)
    if options.cudnn:
        fits = not options.bidirectional and cudnn_agrees(frozen.base)
        options = dataclasses.replace(options, cudnn=fits)
    leaves = starting_leaves(frozen.base, options)
    log.info("%s, trainable: %s", jax.devices()[0].device_kind, count(leaves))
    found: dict[str, Any] = {"options": dataclasses.asdict(options)}
    found["device"] = jax.devices()[0].device_kind
    if options.seconds:
        trained = train(leaves, frozen, options, start)
        leaves = trained.leaves
        found["train"] = {k: v for k, v in vars(trained).items() if k != "leaves"}
        save(leaves, Path(options.out) / f"{options.name}.npz")
        save(leaves, Path(options.out) / f"{options.name}.q8.npz", bits=8)
    if options.calibrate:
        profile = calibrate(leaves, frozen, options)
        frozen = frozen._replace(profile_LxKxR=jnp.array(profile))
    found |= evaluations(leaves, frozen, options)
    if options.time:
        found["compress_ms"] = time_to_compress(leaves, frozen, options)
    write_json(Path(options.out) / f"{options.name}.json", found)
    return found


def frozen_parts(options: Options) -> Frozen:
    """Return base, teacher and profile.

    Raises:
        ConfigError: see `run`.
    """
    base = (random_base if options.tiny else load_base)(Path(options.data))
    teacher = load(Path(options.teacher))["enc"] if options.teacher else None
    profile = None
    if options.profile and not options.calibrate:
        with np.load(options.profile) as file:
            profile = jnp.array(file["profile"])
    elif options.spread == "profile":
        raise ConfigError("--spread=profile needs a --profile that an earlier run has written.")
    return Frozen(base, teacher, profile)


def evaluations(leaves: Leaves, frozen: Frozen, options: Options) -> dict[str, Any]:
    """Evaluate the leaves on every split and in every way that the options name."""
    found = {}
    for which in filter(None, options.evaluate.split(",")):
        for score, spread in [(options.score, options.spread), *options.more]:
            way = dataclasses.replace(options, score=score, spread=spread, also="")
            found[f"{which}|{score}@{spread}"] = evaluate(leaves, frozen, which, way)
    return found


def main(values: flags.FlagValues) -> None:
    """Run, and print scores by ratio."""
    options = from_flags(values)
    if options.tiny:
        jax.config.update("jax_platforms", "cpu")
    found = run(options)
    shown = {k: v["table"] for k, v in found.items() if "|" in k}
    cli.print_result(json.loads(json.dumps({"name": options.name, **shown})))


if __name__ == "__main__":
    cli.run_bare(main, define_flags)

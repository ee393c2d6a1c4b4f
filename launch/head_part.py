"""What the head's part in the slots is worth: a finished run's answers with it, without it, and with one vector in its place.

    python -m launch.head_part --run gistjax/shipped/smollm2_135m --config.model.dtype=float32 --config.ratio=8 \\
        --config.data.validation_examples=200

Of runs whose slots start from their windows (`slot_start`), where the head's part stands behind a gate. The vector is the mean
of that part over the slots of the questions' contexts, the same in every slot: a mark, without a word of the text. Prints how
much of the part's power that vector has, and F1 and EM of each variant; JSON last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from gistjax.compress.architectures import HEADS, standardize
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.config import CompressionConfig
from gistjax.data.prompts import TokenizedExample, encode_splits
from gistjax.data.squad import load_squad
from gistjax.errors import ConfigError
from gistjax.experiment import base as assembly
from gistjax.experiment.evaluator import Evaluator
from gistjax.experiment.run_dir import load_config
from gistjax.runtime import cli
from gistjax.training.step import split_model


def parts(model: CompressedLM, rows: list[TokenizedExample]) -> np.ndarray:
    """What the head adds to each slot of the rows' contexts, before the gate, `[slots, D]`."""
    compressor, found = model.compressor, []
    assert compressor is not None
    for row in {row.context_id: row for row in rows}.values():
        length_B = jnp.array([len(row.context_ids)])
        slots_B = compressor.slots_used(length_B)
        states_1xCxD = compressor.encoder(model.base, jnp.asarray(row.context_ids)[None], length_B)
        slots_1xMxD = compressor.head(states_1xCxD, length_B, slots_B, int(slots_B[0]))
        found.append(np.asarray(standardize(slots_1xMxD)[0], np.float32))
    return np.concatenate(found)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command."""
    pretrained = assembly.load_pretrained(config, assembly.find_prompt(config))
    model = nnx.merge(*assembly.start_model(config.replace(init_from=args.run), pretrained))
    gate = model.compressor and model.compressor.gate
    if model.compressor is None or gate is None or not np.any(gate[...]):
        raise ConfigError(f"{args.run} has no head behind a gate, or a gate that never opened.")
    squad = load_squad(config.data, config.seed)
    _, rows, _ = encode_splits(squad, pretrained.prompt, config.data, config.seed)

    def measure() -> dict[str, float]:
        graphdef, *weights = split_model(model)
        return Evaluator(config, pretrained, rows, squad.validation, graphdef).headline(*weights)

    part_XxD = np.asarray(gate[...]) * parts(model, rows)
    mark_D = part_XxD.mean(axis=0)
    power = float(np.sum(mark_D**2) / np.mean(np.sum(part_XxD**2, axis=1)))
    result: dict[str, Any] = {"questions": len(rows), "power_of_the_mark": round(power, 3)}
    result["as_trained"] = measure()
    gate[...] = jnp.zeros_like(gate[...])
    result["without"] = measure()
    # A head's output is standardized: the gate gives it its size back.
    model.compressor.head = mark = HEADS["mark"](model.base.config, 1, 1, jax.random.key(0))
    mark.vector[...] = jnp.asarray(mark_D)
    gate[...] = jnp.full_like(gate[...], np.sqrt(np.mean(mark_D**2)))
    result["one_vector"] = measure()
    cli.print_result(result)


if __name__ == "__main__":
    flags.DEFINE_string("run", "", "Directory of a finished run.")
    cli.run(main, lambda argv: load_config(Path(cli.option(argv, "run"))))

"""The speed of a configuration on this machine, and its distance from the hardware's limits.

    python -m gistjax.benchmark --mode train [--tokens 64] [--answer_tokens 16] [--repeats 10]
                                [--config FILE] [--config.KEY=VALUE …]

    train      a whole train step on synthetic rows: time, examples/s, TFLOP/s, share of the matmul
               rate, memory
    memory     the peak of training in the config's largest shapes, beside the estimate of
               `--dry_run`
    generate   the same rows answered: compress, prefill and decode apart
    load       the base's weights from config.model.path: GB/s and peak host memory
    data       the input pipeline on config.data alone: examples/s, share of real tokens
    answer     config.data's validation questions answered by real weights, after compilation

Rows are full: config.data.context_tokens of context, `tokens` of question and answer. Weights are
random unless config.model.path says otherwise. `gistjax.estimate.flops` says what counts as a FLOP.
"""

from __future__ import annotations

import re
import sys

from absl import flags

from gistjax.config import CompressionConfig, DataConfig, ModelConfig
from gistjax.errors import ConfigError
from gistjax.estimate import out_of_memory
from gistjax.runtime import cli
from gistjax.validation import validate

MODES = ("train", "memory", "generate", "load", "data", "answer")


def defaults() -> CompressionConfig:
    """512 → 64 with random weights and teacher forcing alone, on the questions of the package."""
    return CompressionConfig(
        accumulation=1,
        loss_weights={"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0},
        model=ModelConfig(path="random"),
        data=DataConfig(path="sample"),
    )


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Measure a configuration in one mode, and print the result."""
    validate(config)
    if args.answer_tokens >= args.tokens:
        raise ConfigError(
            f"--answer_tokens={args.answer_tokens} leaves no question in --tokens={args.tokens}."
        )
    from gistjax.estimate import measure  # after what may be refused: it imports for seconds
    from gistjax.experiment.run_dir import versions
    from gistjax.runtime.devices import choose_kernels, device_name

    choose_kernels(config)
    workload = measure.Workload(args.tokens, args.answer_tokens, args.repeats, args.profile)
    doing: out_of_memory.Doing = "training"
    if args.mode in ("generate", "answer"):
        doing = "a forward pass"
    with out_of_memory.explained(config, doing):
        measured = measure.MEASURES[args.mode](config, workload)
    cli.print_result(
        {
            "mode": args.mode,
            "base_model": config.model.known_as,
            "architecture": config.architecture,
            **measured,
            "device": device_name(),
            "packages": versions(),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_enum("mode", "train", MODES, "What to measure.", flag_values=values)
    flags.DEFINE_integer(
        "tokens", 64, "Question and answer tokens of a row.", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer(
        "answer_tokens",
        16,
        "Answer tokens of a row, or to generate.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "repeats", 10, "Timed calls; the median counts.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "profile", 0, "Also list so many of the longest kernels.", lower_bound=0, flag_values=values
    )


if __name__ == "__main__":
    from_file = any(re.match(r"--?config(=|$)", word) for word in sys.argv[1:])
    cli.run(main, define_flags, None if from_file else lambda argv: defaults())

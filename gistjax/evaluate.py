"""A finished run on a split, scored anew.

    python -m gistjax.evaluate --run runs/compression_ablations/M64_gist
        [--config.KEY=VALUE …] [--output FILE] [--threshold 0.5] [--bits 4]
        [--refine STEPS]

The configuration is the run's own `config.json`; overrides change what is evaluated on (data, batch
size), not what was trained. With --bits a run answers from slots or kept entries as a document that
was saved in so many bits has them. With --refine each context's entries are refined first, in
batches; `refined` in the metrics has the seconds that it took a context.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from gistjax.compress.budget import Budget
from gistjax.compress.refiner import Refiner
from gistjax.config import ASKS, CompressionConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.tasks import each_task, load_task
from gistjax.errors import ConfigError
from gistjax.estimate.out_of_memory import explained
from gistjax.evaluation.treatment import Refined, Treatment
from gistjax.experiment.base import load_trained
from gistjax.experiment.confidence import Confidence, read_calibration
from gistjax.experiment.evaluator import Evaluator
from gistjax.experiment.meaning import asked, check_meaning
from gistjax.experiment.run_dir import RunDir
from gistjax.experiment.task_evaluator import MixtureEvaluator
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.files import check_writable, write_json
from gistjax.runtime.quantize import BITS, check_bits
from gistjax.validation import check_refines, note_budget, validate

log = logging.getLogger(__name__)


def evaluate_run(
    rundir: str | Path,
    config: CompressionConfig | None = None,
    output: str | Path | None = None,
    slot_attention: str | Path | None = None,
    kept_entries: str | Path | None = None,
    threshold: float | None = None,
    bits: int | None = None,
    refine: int | None = None,
) -> dict[str, Any]:
    """Scores a run's exported compressor on the validation split of its data.

    Args:
        rundir: the run's directory.
        config: the run's configuration with other data or evaluation settings; by default as
            trained.
        output: a JSON file for all predictions.
        slot_attention: a JSON file for what each slot reads.
        kept_entries: a JSON file for what each KV head keeps, of architecture `select`.
        threshold: withhold answers whose chance of being right is less: they are scored as none.
        bits: of slots or kept entries, rounded as a saved document has them; as they are unless
            given.
        refine: steps on each context's kept entries before it is asked; none unless given.

    Raises:
        GistjaxError: for anything that a user can fix.
    """
    run = RunDir(rundir)
    for file in (output, slot_attention, kept_entries):
        if file:
            check_writable(Path(file))
    trained = run.config()
    config = asked(config or trained, trained)
    if bits is not None:
        check_rounds(config, bits)
    if refine is not None:
        check_refinable(config, refine)
    confidence = Confidence(read_calibration(run, config), threshold)
    evaluator, weights = prepare(run, config, confidence, bits, refine)
    with explained(config, "a forward pass"):
        result = evaluator.measure(*weights)
    if output:
        write_json(Path(output), result.predictions)
    if slot_attention:
        write_json(Path(slot_attention), result.slot_attention, indent=None)
    if kept_entries:
        write_json(Path(kept_entries), result.kept_entries, indent=None)
    return result.metrics if bits is None else {**result.metrics, "bits": bits}


def check_rounds(config: CompressionConfig, bits: int) -> None:
    """Refuse bits of what is not saved in them, or of what is not scored from it.

    Raises:
        ConfigError: saying what to change.
    """
    check_bits(bits)
    if not config.compresses:
        raise ConfigError(
            f"--bits is of slots or kept entries, and architecture={config.architecture!r} has "
            "none: leave it out, or give --config.architecture=select to a run of the whole "
            "context."
        )
    for name in each_task(config.data):
        if load_task(name).likelihood:
            raise ConfigError(
                f"task {name!r} also scores how likely its gold answers are, which is not read "
                "from what is rounded: leave --bits out."
            )


def check_refinable(config: CompressionConfig, steps: int) -> None:
    """Refuse to refine what keeps no entries, or keeps others for each question, or several tasks.

    Raises:
        ConfigError: saying what to change.
    """
    check_refines(config, steps)
    if config.data.mixture:
        raise ConfigError("--refine is for one task at a time: set --config.data.task to one.")
    if config.select.scorer == ASKS:
        raise ConfigError(
            f"select.scorer={ASKS!r} looks at the question, and --refine refines entries before "
            "any question is asked: leave it out, or give another scorer."
        )


def prepare(
    run: RunDir,
    config: CompressionConfig,
    confidence: Confidence | None = None,
    bits: int | None = None,
    refine: int | None = None,
) -> tuple[Evaluator | MixtureEvaluator, tuple[Any, Any]]:
    """Return what answers a run's questions, and the model's trained and frozen leaves.

    Raises:
        GistjaxError: for anything that a user can fix.
    """
    trained = run.config()
    check_meaning(config, trained)
    validate(config)
    note_budget(config)
    untrained = config.compresses and config.ratio not in (0, trained.ratio)
    given = trained.replace(select=config.select) if trained.compresses else config
    if untrained and (problem := Budget.of(given).ratio_problem(config.ratio)):
        log.warning("warning: %s", problem)
    if not config.data.validation_examples:
        raise ConfigError(
            "no question is asked for: set --config.data.validation_examples (-1 is all)."
        )
    data = config.data if config.data.holdout else replace(config.data, train_examples=0)
    dataset = load_dataset(data, config.seed)
    pretrained, (graphdef, *weights) = load_trained(run, config)
    _, rows, report = encode_splits(dataset, pretrained.prompt, config.data, config.seed)
    log.info("%s", report)
    trainable, frozen = weights
    refined = None
    if refine is not None:
        refined = Refined(Refiner(config, pretrained.prompt, pretrained.mesh, graphdef), refine)
    treatment = Treatment(bits, refined)
    kind = MixtureEvaluator if config.data.mixture else Evaluator
    evaluator = kind(config, pretrained, rows, dataset.validation, graphdef, confidence, treatment)
    return evaluator, (trainable, frozen)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Score the run and print its metrics."""
    files = args.output or None, args.slot_attention or None, args.kept_entries or None
    bits = int(args.bits) if args.bits else None
    given = {"threshold": args.threshold, "bits": bits, "refine": args.refine}
    cli.print_result(evaluate_run(args.run, config, *files, **given))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", "", "Directory of a finished run.", values)
    about = "Also write the predictions of every question to this JSON file."
    define_path("output", "", about, values)
    about = "Withhold answers whose chance of being right is less, from 0 to 1."
    flags.DEFINE_float("threshold", None, about, flag_values=values)
    about = "Score slots or kept entries as --save --bits of `ask` keeps them."
    flags.DEFINE_enum("bits", None, [*map(str, BITS)], about, flag_values=values)
    about = "Architecture select: steps that refine each context's entries before it is asked."
    flags.DEFINE_integer("refine", None, about, flag_values=values)
    about = "Also write what each slot reads to this JSON file."
    define_path("slot_attention", "", about, values)
    about = "Architecture select: also write what each KV head keeps to this JSON file."
    define_path("kept_entries", "", about, values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run")).config())

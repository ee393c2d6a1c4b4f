"""One run: config → base → data → model → train step → checkpoints → evaluation → results.

python -m gistjax.train --config configs/gist_m64.py [--config.KEY=VALUE …] [--workdir DIR]
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from gistjax.compress.parameters import export_trainable
from gistjax.config import CompressionConfig
from gistjax.data.batching import TrainPlan
from gistjax.data.dataset import load_dataset
from gistjax.data.mixture import MixedPlan
from gistjax.estimate.flops import least_seconds
from gistjax.estimate.out_of_memory import explained
from gistjax.estimate.plan import dry_run
from gistjax.experiment.base import PretrainedBase
from gistjax.experiment.evaluator import Evaluator, write_unscored
from gistjax.experiment.inputs import Inputs, check_sources, load_inputs, plan_training, start_model
from gistjax.experiment.run_dir import RunDir, default_workdir, provenance
from gistjax.experiment.task_evaluator import MixtureEvaluator
from gistjax.runtime import cli, distributed
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import choose_kernels, start_jax
from gistjax.runtime.files import RunLock
from gistjax.runtime.logs import show_progress
from gistjax.runtime.sharding import is_primary, make_mesh
from gistjax.runtime.signals import StopSignals
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.loop import Loop, train
from gistjax.training.losses import LossSettings
from gistjax.training.metrics_log import MetricsLog
from gistjax.training.optimizer import make_optimizer
from gistjax.training.step import init_state, make_train_step, state_shardings
from gistjax.validation import check_trains, note_budget, validate

log = logging.getLogger(__name__)


def run_single_ablation(
    config: CompressionConfig,
    workdir: str | Path | None = None,
    pretrained: PretrainedBase | None = None,
) -> dict[str, Any]:
    """Train one configuration, evaluate it, write its results; resume an interrupted run.

    Log lines are shown on standard error, unless the program has set up logging itself.

    Args:
        workdir: the run directory, by default named after architecture and slots.
        pretrained: the base and what belongs to it, if several runs of a process share it.

    Returns:
        The content of `metrics.json`: `final_f1`, `final_em`, `compression_ratio`, …

    Raises:
        GistjaxError: for anything that a user can fix.
        Stopped: if SIGTERM or CTRL-C asked to stop during training; the state is saved.
    """
    show_progress()
    validate(config)
    check_trains(config)
    note_budget(config)
    run = RunDir(workdir or default_workdir(config))

    # Devices, and beside their start the files: mistakes are told before weights are loaded
    choose_kernels(config)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start_jax, config)
        sources = check_sources(config)
        dataset = load_dataset(config.data, config.seed)
        started.result()
    mesh = make_mesh(config.mesh)
    lock = RunLock(run.path) if is_primary() else contextlib.nullcontext()
    with lock, explained(config, "training"):
        run.claim(config)
        if run.is_finished:
            log.info("%s is trained to its end: it is only evaluated again", run)
        run.check_trained({**sources, "mesh": dict(mesh.shape)})
        inputs = load_inputs(config, run, mesh, dataset, pretrained)
        with explained(config, "a forward pass"):
            plan = plan_training(config, inputs)
        return _train_and_evaluate(config, run, inputs, plan, sources)


def _train_and_evaluate(
    config: CompressionConfig,
    run: RunDir,
    inputs: Inputs,
    plan: TrainPlan | MixedPlan,
    sources: Mapping[str, str],
) -> dict[str, Any]:
    # Model, optimizer, train step
    pretrained = inputs.pretrained
    graphdef, trainable, frozen = start_model(config, pretrained)
    optimizer = make_optimizer(config.optimizer, plan.total_steps, trainable)
    state = init_state(trainable, optimizer, pretrained.mesh)
    settings = LossSettings(config.loss_weights, plan.answer_tokens, pretrained.prompt.end_ids)
    shardings = state_shardings(state, pretrained.mesh)
    train_step = make_train_step(graphdef, optimizer, settings, shardings, config.spike_factor)

    # Evaluation, if there are questions to answer
    evaluator = evaluate = None
    if inputs.validation:
        kind = MixtureEvaluator if config.data.mixture else Evaluator
        evaluator = kind(config, pretrained, inputs.validation, inputs.examples, graphdef)
        evaluate = explained(config, "a forward pass")(evaluator.headline)

    # Training, from the last checkpoint on
    with StopSignals() as stop, Checkpointer(run.checkpoint) as checkpointer:
        if checkpointer.latest_step is not None:
            state = checkpointer.restore(state)
        run.write_about(config, pretrained, {**sources, "data_sha256": inputs.data_sha256})
        metrics = MetricsLog(run.log_file, int(state.step), config.log_every, config.tensorboard)
        loop = Loop(
            config=config,
            mesh=pretrained.mesh,
            plan=plan,
            train_step=train_step,
            checkpointer=checkpointer,
            metrics=metrics,
            stop=stop,
            evaluate=evaluate,
            least_seconds=least_seconds(config, pretrained.source.config),
            task=plan.task if isinstance(plan, MixedPlan) else None,
        )
        with contextlib.closing(metrics):
            state = train(state, frozen, loop)
    export_trainable(state.trainable, run.exported, provenance(config))

    # Results
    if evaluator is None:
        return write_unscored(run, config, int(state.step))
    with explained(config, "a forward pass"):
        result = evaluator.measure(state.trainable, frozen)
    return result.write(run, int(state.step), config.evaluation.sample_predictions)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Plan the run (--dry_run) or make it."""
    # Modules and traces stay: Python's garbage collector otherwise takes a tenth of a start
    gc.set_threshold(50_000, 20, 20)
    if args.dry_run:
        return cli.print_result(*dry_run(config))
    if args.distributed:
        choose_kernels(config)
        distributed.join(args.distributed)
    metrics = run_single_ablation(config, args.workdir or None)
    if is_primary():
        cli.print_result(metrics)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    folder = (
        "Run directory; by default runs/compression_ablations/M<slots>_<architecture>, which of "
        "architecture select names the scorer too."
    )
    define_path("workdir", "", folder, values)
    flags.DEFINE_string("distributed", "", distributed.ABOUT, flag_values=values)
    flags.DEFINE_bool("dry_run", False, "Print what the run needs, and stop.", flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags)

"""One run, top to bottom: config → base → data → model → train step → checkpoints → evaluation → results.

python -m gistjax.train --config configs/gist_m64.py [--config.KEY=VALUE …] [--workdir DIR] [--dry_run]
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.estimate import out_of_memory as device_memory
from gistjax.runtime import cli
from gistjax.validation import check_trains, validate

if TYPE_CHECKING:
    from gistjax.data.batching import TrainPlan
    from gistjax.data.example import Dataset, TokenizedExample
    from gistjax.data.report import DataReport
    from gistjax.experiment.base import PretrainedBase
    from gistjax.experiment.evaluator import Evaluator
    from gistjax.training.step import TrainState, TrainStep


log = logging.getLogger(__name__)

COLLECTED_AFTER = 50_000, 20, 20
"""For the whole run: Python's garbage collector otherwise takes a tenth of a start, in which modules, texts and traces are
there to stay, and of what a step makes little is garbage."""


def run_single_ablation(
    config: CompressionConfig,
    workdir: str | Path | None = None,
    pretrained: PretrainedBase | None = None,
) -> dict[str, Any]:
    """Trains one configuration, evaluates it and writes its results; resumes where an earlier run ended.

    Args:
        workdir: the run directory, by default named after architecture and slots.
        foundation: the base and what belongs to it, where several runs of a process share it.

    Returns:
        What `metrics.json` holds: `final_f1`, `final_em`, `compression_ratio`, …

    Raises:
        GistjaxError: for anything that is the user's to mend.
        Stopped: if SIGTERM or CTRL-C asked to stop while training; the state is saved.
    """
    from gistjax.runtime.devices import choose_kernels, start_jax

    validate(config)
    check_trains(config)
    choose_kernels(config)
    with ThreadPoolExecutor(1) as pool:  # a GPU takes seconds to start, and so do the imports
        started = pool.submit(start_jax, config)
        from gistjax.data.dataset import load_dataset
        from gistjax.experiment import base as assembly
        from gistjax.experiment import evaluator as results
        from gistjax.runtime.lock import RunLock
        from gistjax.runtime.sharding import is_primary, make_mesh

        # What is read: refused, if at all, before weights are loaded
        assembly.check_sources(config)
        if started.done():
            started.result()  # no device: told before questions are fetched, if it is known
        dataset = load_dataset(config.data, config.seed)
        started.result()
    make_mesh(config.mesh)  # refused, if at all, before anything is written or tokenised
    rundir = Path(workdir) if workdir else default_workdir(config)
    lock = RunLock(rundir) if is_primary() else contextlib.nullcontext()
    with lock, device_memory.explained(config, "training"):
        results.claim(rundir, config)
        return _run(config, rundir, dataset, pretrained)


def _run(
    config: CompressionConfig, rundir: Path, dataset: Dataset, pretrained: PretrainedBase | None
) -> dict[str, Any]:
    from gistjax.compress.parameters import export_trainable
    from gistjax.experiment import base as assembly
    from gistjax.experiment import evaluator as results
    from gistjax.experiment.run_dir import EXPORTED
    from gistjax.training.losses import LossSettings
    from gistjax.training.optimizer import make_optimizer
    from gistjax.training.step import init_state, make_train_step, state_shardings

    # Base and data
    pretrained, questions, validation_rows, report = _read(config, rundir, dataset, pretrained)
    with device_memory.explained(config, "a forward pass"):
        plan = assembly.plan_training(config, pretrained, questions, report)

    # Model, optimizer, train step
    graphdef, trainable, frozen = assembly.start_model(config, pretrained)
    optimizer = make_optimizer(config.optimizer, plan.total_steps, trainable)
    state = init_state(trainable, optimizer, pretrained.mesh)
    settings = LossSettings(config.loss_weights, plan.answer_tokens, pretrained.prompt.end_id)
    shardings = state_shardings(state, pretrained.mesh)
    train_step = make_train_step(graphdef, optimizer, settings, shardings, config.spike_factor)

    # Evaluation, where there are questions to answer
    scorer = None
    if validation_rows:
        scorer = results.Evaluator(
            config, pretrained, validation_rows, dataset.validation, graphdef
        )

    # Training, from the last checkpoint on
    results.write_config(rundir, config, pretrained)
    state = _train(config, rundir, pretrained, plan, train_step, state, frozen, scorer)
    export_trainable(state.trainable, rundir / EXPORTED, results.provenance(config))

    # Results
    if scorer is None:
        return results.write_untested(rundir, config, int(state.step))
    with device_memory.explained(config, "a forward pass"):
        measured = scorer.measure(state.trainable, frozen)
    return measured.write(rundir, int(state.step), config.evaluation.sample_predictions)


def _read(
    config: CompressionConfig, rundir: Path, dataset: Dataset, pretrained: PretrainedBase | None
) -> tuple[PretrainedBase, list[TokenizedExample], list[TokenizedExample], DataReport]:
    """The base, and beside loading it the questions as tokens: to train on, to answer, and what was left out."""
    from gistjax.data.encoding import encode_splits
    from gistjax.experiment import base as assembly
    from gistjax.experiment import evaluator as results

    found = (pretrained.source, pretrained.prompt) if pretrained else assembly.find_prompt(config)
    assembly.check_fit(config, *found)
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(encode_splits, dataset, found[1], config.data, config.seed)
        pretrained = pretrained or assembly.load_pretrained(config, found)
        results.check_base(rundir, pretrained)
        return pretrained, *encoded.result()


def _train(
    config: CompressionConfig,
    rundir: Path,
    pretrained: PretrainedBase,
    plan: TrainPlan,
    train_step: TrainStep,
    state: TrainState,
    frozen: Any,
    scorer: Evaluator | None,
) -> TrainState:
    """Trains on from the last checkpoint, if there is one, with log, checkpoints and signals."""
    from gistjax.estimate.flops import least_seconds
    from gistjax.runtime.signals import StopSignals
    from gistjax.training.checkpoint import Checkpointer
    from gistjax.training.loop import MetricsLog, train

    def evaluate(state: TrainState) -> dict[str, float]:
        assert scorer is not None
        with device_memory.explained(config, "a forward pass"):
            return scorer.headline(state.trainable, frozen)

    with StopSignals() as stop, Checkpointer(rundir / "checkpoint") as checkpointer:
        if checkpointer.latest_step is not None:
            state = checkpointer.restore(state)
        log_file = rundir / "metrics.jsonl"
        metrics = MetricsLog(log_file, int(state.step), config.log_every, config.tensorboard)
        seconds = least_seconds(config, pretrained.source.config)
        with contextlib.closing(metrics):
            return train(
                state, frozen, train_step, plan, plan.total_steps, checkpointer, metrics, config, pretrained.mesh,
                stop, evaluate if scorer else None, seconds,
            )  # fmt: skip


def default_workdir(config: CompressionConfig) -> Path:
    """`runs/compression_ablations/M64_gist`; controls without slots have no M."""
    compresses = config.architecture not in ("none", "closed_book")
    slots = f"R{config.ratio:g}_" if config.ratio else f"M{config.target_length}_"
    slots = slots if compresses else ""
    return Path("runs/compression_ablations") / f"{slots}{config.architecture}"


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """The command: a dry run, or the run."""
    gc.set_threshold(*COLLECTED_AFTER)
    if args.dry_run:
        from gistjax.estimate.plan import for_people, plan
        from gistjax.weights.registry import resolve

        validate(config)
        check_trains(config)
        found = plan(config, resolve(config.model, offline=True))
        cli.print_result({"config": config.to_json(), **found}, for_people(found))
        return
    if args.distributed:
        from gistjax.runtime.devices import choose_kernels

        choose_kernels(config)
        join(args.distributed)
    found = run_single_ablation(config, args.workdir or None)
    from gistjax.runtime.sharding import is_primary

    if is_primary():
        cli.print_result(found)


def join(word: str) -> None:
    """Meets the other processes of this run; from then on all their devices are one mesh. One process on each host has
    all devices of its host.

    Raises:
        ConfigError: if they cannot be met.
    """
    import jax

    match = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", word)
    if not match and word != "auto":
        raise ConfigError(
            f"--distributed={word} must be auto, or ADDRESS:PORT,PROCESSES,ID as in 10.0.0.1:8476,2,0."
        )
    try:
        if match:
            jax.distributed.initialize(match[1], int(match[2]), int(match[3]))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--distributed={word} does not come together: {error}") from error
    if one_process_a_host():  # JAX takes SLURM's and Open MPI's processes to have one GPU each
        jax.config.update("jax_cuda_visible_devices", "all")
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)  # one voice


def one_process_a_host() -> bool:
    """Whether SLURM or Open MPI started this process, and none beside it."""
    slurm = [os.environ.get(name) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES")]
    of_slurm = slurm[0] is not None and slurm[0] == slurm[1]
    return of_slurm or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_string(
        "workdir",
        "",
        "Run directory; by default runs/compression_ablations/M<slots>_<architecture>.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print config, parameters and memory, touch no weights, and stop.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "distributed",
        "",
        "One run over the devices of several processes, each of which is given the same command: `auto` under SLURM, MPI or "
        "Kubernetes, else ADDRESS:PORT,PROCESSES,ID of this process. --workdir must be a folder that all see.",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run(main, define_flags)

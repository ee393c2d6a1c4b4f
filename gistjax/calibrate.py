"""Make chances of being right of a run's scores, on training paragraphs that it has not seen.

    python -m gistjax.calibrate --run RUN --config.data.holdout=0.05 [--config.KEY=VALUE …]

Answers questions on the share of the training split's paragraphs that `data.holdout` takes, fits a
logistic curve from the probability of an answer to the chance that it is right, and writes it to
`calibration.json` in the run's directory. From then on `Answer.score` is that chance, and `ask` and
`evaluate` take a --threshold. The validation split is not read. `data.validation_examples` says how
many questions are asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig, DataConfig, file_name
from gistjax.errors import ConfigError
from gistjax.estimate.out_of_memory import explained
from gistjax.evaluate import prepare
from gistjax.evaluation.selective import accuracy_area, auroc, calibration_error
from gistjax.experiment.confidence import Confidence, fit, write_calibration
from gistjax.experiment.evaluator import Evaluator
from gistjax.experiment.meaning import asked, changed_in_use
from gistjax.experiment.run_dir import RunDir
from gistjax.experiment.seen import check_unseen
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from gistjax.runtime.devices import device_name
from gistjax.runtime.files import check_writable


def calibrate(rundir: str | Path, config: CompressionConfig | None = None) -> dict[str, Any]:
    """Write a run's calibration, and return what was found.

    Args:
        rundir: the run's directory.
        config: the run's configuration with the data to ask about; by default as trained.

    Raises:
        GistjaxError: for anything that a user can fix.
    """
    run = RunDir(rundir)
    check_writable(run.calibration_file)
    trained = run.config()
    config = asked(config or trained, trained)
    if changed := changed_in_use(config, trained):
        raise ConfigError(
            f"a calibration is of the run as it was trained: leave --config.{changed[0]} out."
        )
    check_asked(config.data)
    check_unseen(run, config)
    evaluator, weights = prepare(run, config)
    assert isinstance(evaluator, Evaluator)  # of one task
    with explained(config, "a forward pass"):
        scores = evaluator.judge(*weights, "calibrating")
    log_probability_N, right_N = scores.log_probability_N, scores.em_N == 1
    found = fit(log_probability_N, right_N)
    about = {
        "task": config.data.task,
        "data": file_name(config.data.path) if config.data.path else config.data.name,
        "ratio": config.ratio,
        "n_examples": scores.n,
        "n_contexts": len(set(scores.clusters_N.tolist())),
        "em": scores.em,
        "device": device_name(),
    }
    write_calibration(run, found, about)
    chance_N = Confidence(found).scores(log_probability_N)
    return {
        "slope": found.slope,
        "intercept": found.intercept,
        **about,
        "accuracy_area": accuracy_area(chance_N, right_N),
        "auroc": auroc(chance_N, right_N),
        "calibration_error": calibration_error(chance_N, right_N),
    }


def check_asked(data: DataConfig) -> None:
    """Refuse several tasks, and paragraphs that are not of the training split.

    Raises:
        ConfigError: saying which, and what to give.
    """
    if data.mixture:
        raise ConfigError(
            "this run was trained on a mixture, and one curve is made for one task: name it, as in "
            "--config.data.task=squad."
        )
    if not data.holdout:
        raise ConfigError(
            "a calibration is made on training paragraphs, not on the validation split: set "
            "--config.data.holdout, the share of them to ask about, such as 0.05."
        )


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Calibrate the run and print what was found."""
    cli.print_result(calibrate(args.run, config))


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("run", "", "Directory of a finished run.", values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run")).config())

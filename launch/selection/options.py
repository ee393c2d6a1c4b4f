"""Options of a run of `launch.selection.run`, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from absl import flags

from gistjax.errors import ConfigError

RATIOS = (1, 2, 4, 8, 16, 32)
"""Tokens an entry. Every compressed context can be read at each of them."""

SCORERS = ("mlp", "linear", "conv", "cross", "gist")


class Bucket(NamedTuple):
    """A static shape: contexts of up to `length` tokens, and a tail for their questions."""

    length: int  # prompt before the context included
    tail: int  # tokens of all questions of a context, for one of the ratios that they are read at
    share: float  # of --batch: long contexts come in smaller batches


BUCKETS = (
    Bucket(152, 128, 1.25),
    Bucket(216, 128, 1.0),
    Bucket(312, 144, 0.75),
    Bucket(536, 160, 0.375),
)
TINY_BUCKETS = (Bucket(88, 80, 1.0),)


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Options:
    """What is trained, from what, and what is evaluated. Each field is a flag."""

    name: str = _option("run", "Name of the files that are written.")
    data: str = _option("data", "Folder that launch.selection.prepare wrote.")
    out: str = _option("out", "Folder of the files that are written.")
    init: str = _option("", "Trained leaves to start from; several, with commas: their mean.")
    seed: int = _option(0, "Order of the data and draw of the ratios.")
    # training
    train: str = _option("train", "Split to train on.")
    seconds: float = _option(0.0, "Training stops at this time after the start; 0: no training.")
    epochs: float = _option(1.0, "Passes over the questions, if the time allows.")
    lr: float = _option(3e-4, "Peak learning rate of the adapters.")
    batch: int = _option(32, "Contexts a step, of up to 193 tokens.")
    rank: int = _option(64, "Rank of the adapters.")
    full: bool = _option(False, "Train and evaluate on the full context: nothing is cut.")
    adapters: int = _option(1, "2: one for prompt and context, one for question and answer.")
    bidirectional: bool = _option(False, "Context tokens see the whole context.")
    teacher: str = _option("", "Leaves of the full-context model, for --kl.")
    kl: float = _option(0.0, "Weight of the KL divergence to the teacher's distribution.")
    odds: str = _option(".08,.12,.2,.2,.2,.2", "Odds of the ratios in training.")
    # selection
    score: str = _option("kvzip", f"What chooses entries: kvzip, or {', '.join(SCORERS)}.")
    warm: float = _option(0.1, "Part of the steps in which KVzip still chooses.")
    temperature: float = _option(0.0, "Of the straight-through gate; 0: no gate.")
    scorer_rate: float = _option(4.0, "Learning rate of the scorer, times --lr.")
    teach_after: float = _option(1.0, "Weight of the regression on KVzip after --warm.")
    open: bool = _option(False, "Let the loss reach the encoder through the scorer.")
    bias: bool = _option(False, "Learn a bias a KV head, times log(tokens an entry).")
    spread: str = _option("global", "global: one budget over all KV heads; profile: fixed parts.")
    profile: str = _option("", "File of the fixed parts: written by --calibrate, else read.")
    calibrate: bool = _option(False, "Write the mean part of each KV head to --profile.")
    # evaluation
    evaluate: str = _option("", "What to score: split:N,…; N questions of it, 0: all.")
    also: str = _option("", "Further evaluations of the same leaves: score@spread,…")
    ratios: str = _option("1,2,4,8,16,32", "Tokens an entry to evaluate at.")
    slots: str = _option("", "Entries a KV head to evaluate at, in place of --ratios: 32,64,128.")
    eval_batch: int = _option(32, "Contexts a batch in evaluation.")
    longest: int = _option(24, "Longest answer that is written, in tokens.")
    time: bool = _option(False, "Measure the time to compress.")
    cudnn: bool = _option(True, "Use cuDNN's attention where the encoder is causal and it agrees.")
    tiny: bool = _option(False, "Rehearse on the CPU: two random layers, short contexts.")

    def __post_init__(self) -> None:
        for score, spread in [(self.score, self.spread), *self.more]:
            if score not in ("kvzip", *SCORERS) or spread not in ("global", "profile"):
                raise ConfigError(
                    f"{score}@{spread} is no way to choose entries: the score is kvzip or "
                    f"{', '.join(SCORERS)}, the spread global or profile."
                )
        if self.slots:
            self._check_slots()
        if self.kl and not self.teacher:
            raise ConfigError("--kl needs a --teacher: the leaves of a full-context run.")
        if (self.calibrate or "profile" in self.spreads) and not self.profile:
            raise ConfigError("where are the fixed parts? Name their file with --profile=FILE.")

    def _check_slots(self) -> None:
        counts = self.slots.split(",")
        if len(counts) > len(RATIOS) or not all(n.isdecimal() and int(n) for n in counts):
            raise ConfigError(
                f"--slots={self.slots} must be up to {len(RATIOS)} numbers of entries: 32,64,128."
            )
        if self.seconds or self.full or self.time or self.calibrate or "profile" in self.spreads:
            raise ConfigError(
                "--slots are for evaluation with one budget over all KV heads: leave out --seconds,"
                " --full, --time, --calibrate and profiles."
            )

    @property
    def more(self) -> list[tuple[str, str]]:
        """Pairs of score and spread named by --also."""
        return [(s, p) for s, _, p in (e.partition("@") for e in self.also.split(",") if e)]

    @property
    def spreads(self) -> set[str]:
        """How the budgets of all evaluations are spread."""
        return {self.spread, *(spread for _, spread in self.more)}

    @property
    def learned(self) -> bool:
        """True if a learned scorer chooses, after its warm-up."""
        return self.score != "kvzip"

    @property
    def copies(self) -> int:
        """Number of ratios that are drawn for a question in training."""
        return 1 if self.full else 2

    @property
    def ratio_ids(self) -> list[int]:
        """Places in `RATIOS` that are evaluated; `slot_counts` take the first ones."""
        if self.full:
            return [0]
        if self.slots:
            return list(range(len(self.slot_counts)))
        return [RATIOS.index(int(r)) for r in self.ratios.split(",")]

    @property
    def slot_counts(self) -> tuple[int, ...]:
        """Entries a KV head to evaluate at, if they are the same for every context."""
        return tuple(int(n) for n in self.slots.split(",") if n)

    @property
    def budget_names(self) -> tuple[str, ...]:
        """What answers at each place in `RATIOS` are filed under: "8", or "64 slots"."""
        slots = tuple(f"{n} slots" for n in self.slot_counts)
        return (*slots, *map(str, RATIOS[len(slots) :]))

    @property
    def ratio_odds(self) -> list[float]:
        """Odds of `RATIOS` in training."""
        return [float(odds) for odds in self.odds.split(",")]

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return TINY_BUCKETS if self.tiny else BUCKETS

    @property
    def new_tokens(self) -> int:
        """Longest answer that is written."""
        return 3 if self.tiny else self.longest


def define_flags(values: flags.FlagValues) -> None:
    """Define a flag for each option."""
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for option in fields(Options):
        define_one = define[type(option.default)]
        define_one(option.name, option.default, option.metadata["about"], flag_values=values)


def from_flags(values: flags.FlagValues) -> Options:
    """Return the options of a command line.

    Raises:
        ConfigError: if two of them do not go together.
    """
    return Options(**{option.name: values[option.name].value for option in fields(Options)})

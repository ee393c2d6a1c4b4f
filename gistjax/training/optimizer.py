"""AdamW with one learning rate for the compressor and one for LoRA, decided by parameter names.

The trainable tree holds nothing frozen, so clipping and partitioning see trainable leaves only.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from flax import nnx

from gistjax.config import OptimizerConfig
from gistjax.errors import ConfigError
from gistjax.runtime.sharding import path_name

SCORER = "scorer"

GROUPS: tuple[tuple[str, str], ...] = (
    (r"lora/adapters/.*", "lora"),
    (r"(compressor|selector)/encoder/lora/adapters/.*", "lora"),
    (r"compressor/(gate|(architecture|connector)/.*)", "compressor"),
    (r"selector/profile", "compressor"),
    (r"selector/(learned/.*|gists)", SCORER),
)
"""Parameter name to learning-rate group. Every trainable leaf must match exactly one."""

B1, B2 = 0.9, 0.999
"""Decays of Adam's moments (Kingma and Ba 2015, arXiv:1412.6980)."""


def label_groups(trainable: Any) -> Any:
    """The group of every leaf.

    Raises:
        ValueError: naming a leaf that no rule, or more than one, matches.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        matches = [group for pattern, group in GROUPS if re.fullmatch(pattern, name)]
        if len(matches) != 1:
            raise ValueError(
                f"trainable parameter {name!r} matches {len(matches)} rules of optimizer.GROUPS "
                "instead of one: give it a learning rate there"
            )
        return matches[0]

    return jax.tree_util.tree_map_with_path(label, trainable)


def is_decayed(trainable: Any) -> Any:
    """True for every leaf that weight decay shrinks: matrices that do not declare `decay=False`.

    Norms, biases and scores are vectors; queries and depthwise kernels declare it.
    """

    def of_variable(variable: Any) -> Any:
        is_variable = isinstance(variable, nnx.Variable)
        allowed = variable.get_metadata().get("decay", True) if is_variable else True
        return jax.tree.map(lambda leaf: allowed and leaf.ndim >= 2, variable)

    return jax.tree.map(of_variable, trainable, is_leaf=lambda node: isinstance(node, nnx.Variable))


def schedules(config: OptimizerConfig, total_steps: int) -> dict[str, optax.Schedule]:
    """Linear warm-up and cosine decay to zero, for each group; no step is lost at rate 0."""
    warmup = min(max(round(config.warmup_fraction * total_steps), 1), max(total_steps - 1, 1))
    peaks = {"compressor": config.compressor_lr, "lora": config.lora_lr, SCORER: config.scorer_lr}
    return {
        group: optax.warmup_cosine_decay_schedule(
            peak / (warmup + 1), peak, warmup, max(total_steps, warmup + 1)
        )
        for group, peak in peaks.items()
    }


def make_optimizer(
    config: OptimizerConfig, total_steps: int, trainable: Any
) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Raises:
        ConfigError: if nothing is trainable.
        ValueError: if a leaf has no learning rate (see `label_groups`).
    """
    if not jax.tree.leaves(trainable):
        raise ConfigError(
            "nothing is trainable: set --config.lora.rank above 0 or choose an architecture with "
            "parameters."
        )

    def adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1=B1, b2=B2),
            optax.masked(optax.add_decayed_weights(config.weight_decay), is_decayed),
            optax.scale_by_learning_rate(schedule),
        )

    groups = label_groups(trainable)
    rates = schedules(config, total_steps)
    if SCORER not in jax.tree.leaves(groups):
        del rates[SCORER]  # the optimizer's state, which a checkpoint holds, has no place for it
    by_group = {group: adamw(schedule) for group, schedule in rates.items()}
    return optax.chain(_clip(config.clip_norm, groups), optax.partition(by_group, groups))


def _clip(norm: float, groups: Any) -> optax.GradientTransformation:
    """Clip all gradients together, but those of a learned scorer apart.

    While that is far off, its gradients are large: they must not slow the adapters down.
    """
    clip = optax.clip_by_global_norm(norm)
    if SCORER not in jax.tree.leaves(groups):
        return clip
    apart = jax.tree.map(lambda group: group if group == SCORER else "others", groups)
    return optax.partition({SCORER: clip, "others": clip}, apart)

"""Two architectures stacked: the second reads what the first makes of the context."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from gistjax.model.config import LlamaConfig


class Stack(nnx.Module):
    """Context to about √ratio slots for each slot, those to the slots; parameters of both.

    `stack` makes a class of it for two architectures.
    """

    gives: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[type[Any], type[Any]]]

    def __init__(self, base: LlamaConfig, M: int, ratio: int, key: Array):
        keys = jax.random.split(key)
        self.factor = max(math.isqrt(ratio), 2)  # positions that the second reads for each slot
        first, second = self.parts
        self.first = first(base, self.factor * M, max(ratio // self.factor, 1), keys[0])
        self.second = second(base, M, min(self.factor, ratio), keys[1])

    @classmethod
    def resize(cls, name: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Make a parameter fit as its own part does."""
        place, _, own = name.partition("/")
        resized: np.ndarray = cls.parts[place == "second"].resize(own, old, shape)
        return resized

    def _middle(self, C: int, length_B: Array, slots_B: Array, M: int) -> tuple[Array, int]:
        """Positions between the two that each row uses, and how many there is room for."""
        return jnp.minimum(self.factor * slots_B, length_B), min(self.factor * M, C)

    def __call__(self, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
        middle_B, N = self._middle(states_BxCxD.shape[1], length_B, slots_B, M)
        states_BxNxD = self.first(states_BxCxD, length_B, middle_B, N)
        slots_BxMxD: Array = self.second(states_BxNxD, middle_B, slots_B, M)
        return slots_BxMxD


def _weights(stack: Stack, states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
    """The part of each token in each slot: the product of what the two read."""
    middle_B, N = stack._middle(states_BxCxD.shape[1], length_B, slots_B, M)
    read_BxNxC = stack.first.weights(states_BxCxD, length_B, middle_B, N)
    states_BxNxD = stack.first(states_BxCxD, length_B, middle_B, N)
    weights_BxMxC: Array = stack.second.weights(states_BxNxD, middle_B, slots_B, M) @ read_BxNxC
    return weights_BxMxC


@functools.cache
def stack(first: type[Any], second: type[Any]) -> type[Stack]:
    """Return the architecture that stacks two; it has `weights` where both have."""
    gives = tuple(one for one in first.gives if one in second.gives)
    own: dict[str, Any] = {"parts": (first, second), "gives": gives, "__module__": __name__}
    if hasattr(first, "weights") and hasattr(second, "weights"):
        own["weights"] = _weights
    return type(f"{first.__name__}{second.__name__}", (Stack,), own)

"""Numbers that stay packed in few bits, and are unpacked where they are read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax

from gistjax.runtime.quantize import from_codes, unpack_bits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Codes:
    """Rows of H numbers as a file of few bits has them, `code · scale + offset`; numpy or JAX.

    Rows may share ranges: `of` gives each its own, before they are read.
    """

    code_TxW: Any  # uint8, W = ⌈H · bits / 8⌉ (`runtime.quantize.pack_bits`)
    scale: Any  # fp16, [T, 1] or as many rows as there are ranges, of a number or H
    offset: Any
    bits: int = field(metadata={"static": True})
    width: int = field(metadata={"static": True})  # H
    dtype: Any = field(metadata={"static": True})  # of the numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers."""
        return (*self.code_TxW.shape[:-1], self.width)

    def of(self, index: Any) -> Codes:
        """The same codes with the ranges of these numbers."""
        return replace(self, scale=self.scale[index], offset=self.offset[index])

    def numbers(self) -> Any:
        """The numbers in their dtype: the same on the host and in a program, to the last bit.

        A code times a scale is exact in fp32, so it does not matter if a compiler fuses the sum.
        """
        codes = unpack_bits(self.code_TxW, self.bits, self.width)
        return from_codes(codes, self.scale, self.offset).astype(self.dtype)


def numbers(x: Any) -> Any:
    """Return the numbers of an array, or of codes."""
    return x.numbers() if isinstance(x, Codes) else x

"""Out of memory on a device, as an error that says what is needed, what there is, what to change.

`explained` is a context manager around a command's work. What explains the error is imported only
once it has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from gistjax.config import CompressionConfig
from gistjax.errors import DeviceMemoryError

Doing = Literal["training", "a forward pass"]


@contextmanager
def explained(config: CompressionConfig, doing: Doing) -> Iterator[None]:
    """Turn a lack of memory, of the device or of the host, into an error that tells the way out.

    Raises:
        DeviceMemoryError: if memory runs out in the `with` block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # JAX's own is a RuntimeError
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        from gistjax.estimate import ways_out

        needed = (
            ways_out.explain_training(config)
            if doing == "training"
            else ways_out.explain_forward(config, str(error))
        )
        raise DeviceMemoryError(f"{doing} ran out of memory. {needed}") from error

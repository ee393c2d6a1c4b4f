"""An architecture of a user's own, as CONTRIBUTING shows one."""

from flax import nnx
from jax.sharding import PartitionSpec as P

from gistjax.compress.architectures import first_rows
from gistjax.compress.layers import apply, matrix
from gistjax.compress.windows import window_ends
from gistjax.model.layer import take_positions


class LastToken(nnx.Module):
    """The state of each window's last token, through one matrix: D² parameters."""

    gives = ("slots",)
    resize = staticmethod(first_rows)

    def __init__(self, base, M, ratio, key):
        self.projection = matrix(key, base.d_model, base.d_model, P("tensor", "fsdp"))

    def __call__(self, states_BxCxD, length_B, slots_B, M):
        last_BxMxD = take_positions(states_BxCxD, window_ends(length_B, slots_B, M))
        return apply(last_BxMxD, self.projection)

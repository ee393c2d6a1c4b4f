"""From context tokens to slots, and from slots to the decoder's states.

    context ids ── encoder ── head ── connector ──▶ Memory ──▶ prefix · memory · question · answer ──▶ decoder

A `Memory` is whatever the decoder reads in place of the context: slots as soft tokens, slots as keys and values, the
whole context (architecture `none`) or nothing (`closed_book`). All of them go through the same code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import Array

from gistjax.config import CompressionConfig, EncoderConfig
from gistjax.model.cache import Cache
from gistjax.model.heads import HEADS, matrix, rms_norm
from gistjax.model.llama import Frozen, Llama, LlamaConfig
from gistjax.model.lora import LoRA
from gistjax.model.masks import (
    bidirectional_mask,
    causal_mask,
    gist_mask,
    lengths_to_valid,
    positions_of,
)


@struct.dataclass
class Memory:
    """What stands between prefix and question: X positions of soft tokens, or of keys and values.

    Exactly one of `x_BxXxD` and `kv` is set.
    """

    x_BxXxD: Array | None
    kv: Cache | None
    valid_BxX: Array  # real positions
    cut_BxX: Array  # read by the slots only, hidden from question and answer
    length_B: Array  # rotary positions that the memory takes up
    slots_B: (
        Array  # slots used, for the effective ratio (context tokens where nothing is compressed)
    )

    @property
    def size(self) -> int:
        """X, the positions that this memory takes in the decoder's sequence."""
        return self.valid_BxX.shape[1]


class Encoder(nnx.Module):
    """Context tokens to the states that a head reads, `[B, C, D]`."""

    def __init__(self, base: LlamaConfig, config: EncoderConfig, key: Array):
        self.kind = config.kind
        self.bidirectional = config.bidirectional
        self.n_layers = base.n_layers if config.layers < 0 else config.layers
        self.lora = LoRA(base, config.lora, key) if config.kind == "lora" else None

    def __call__(self, base: Llama, ids_BxC: Array, length_B: Array) -> Array:
        x_BxCxD = base.embed(ids_BxC)
        if self.kind == "embeddings":
            return x_BxCxD
        valid_BxC = lengths_to_valid(length_B, ids_BxC.shape[1])
        mask = bidirectional_mask if self.bidirectional else causal_mask
        states_BxCxD, _ = base(
            x_BxCxD, positions_of(valid_BxC), mask(valid_BxC), self.lora, n_layers=self.n_layers
        )
        return states_BxCxD


class Connector(nnx.Module):
    """Makes slots look like token embeddings: an optional D×D projection, then RMS matching."""

    def __init__(self, base: LlamaConfig, kind: str, key: Array):
        self.kind = kind
        self.projection = matrix(key, base.d_model, base.d_model) if kind == "linear" else None
        self.embedding_rms = Frozen(jnp.ones((), jnp.float32))  # of the base's table, once loaded

    def __call__(self, slots_BxMxD: Array) -> Array:
        if self.kind == "none":
            return slots_BxMxD
        dtype = slots_BxMxD.dtype
        if self.projection is not None:
            slots_BxMxD = slots_BxMxD @ self.projection[...].astype(dtype)
        return rms_norm(slots_BxMxD, self.embedding_rms[...].astype(dtype), 1e-12)


class Compressor(nnx.Module):
    """Encoder, head and connector."""

    def __init__(self, base: LlamaConfig, config: CompressionConfig, key: Array):
        key_e, key_h, key_c = jax.random.split(key, 3)
        self.M = config.target_length
        ratio = max(config.data.context_tokens // config.target_length, 1)
        self.encoder = Encoder(base, config.encoder, key_e)
        self.head = HEADS[config.architecture](base, self.M, ratio, key_h)
        self.connector = Connector(base, config.connector, key_c)

    def slots_used(self, length_B: Array) -> Array:
        """M, or one a token where the context is shorter than that."""
        return jnp.minimum(length_B, self.M)

    def __call__(self, base: Llama, ids_BxC: Array, length_B: Array) -> tuple[Array, Array]:
        """Slots `[B, M, D]` in the base's dtype, and how many of them each row uses."""
        slots_B = self.slots_used(length_B)
        states_BxCxD = self.encoder(base, ids_BxC, length_B)
        return self.connector(self.head(states_BxCxD, length_B, slots_B)), slots_B


class CompressedLM(nnx.Module):
    """A frozen base, the decoder's LoRA, and the compressor in front of them.

    base         Llama        Frozen
    lora         LoRA         trainable, or None
    compressor   Compressor   trainable (but its `embedding_rms`), or None for the uncompressed controls
    """

    def __init__(
        self, base: Llama, config: CompressionConfig, prefix_ids: tuple[int, ...], key: Array
    ):
        key_l, key_c = jax.random.split(key)
        self.base = base
        self.architecture = config.architecture
        self.slot_form = config.slot_form
        self.prefix_ids = tuple(prefix_ids)
        self.lora = LoRA(base.config, config.lora, key_l) if config.lora.rank else None
        compresses = config.architecture in HEADS
        self.compressor = Compressor(base.config, config, key_c) if compresses else None

    def memory(self, ids_BxC: Array, length_B: Array) -> Memory:
        """The memory as soft tokens in the decoder's sequence: the form that is trained.

        With `slot_form = key_values` the context stays in the sequence before the slots and is cut off after them.
        """
        if self.compressor is None:
            if self.architecture == "closed_book":
                ids_BxC, length_B = ids_BxC[:, :0], jnp.zeros_like(length_B)
            return _soft_memory(self.base.embed(ids_BxC), length_B)
        slots_BxMxD, slots_B = self.compressor(self.base, ids_BxC, length_B)
        slots = _soft_memory(slots_BxMxD, slots_B)
        if self.slot_form == "soft_tokens":
            return slots
        context_BxCxD = self.base.embed(ids_BxC)
        valid_BxC = lengths_to_valid(length_B, ids_BxC.shape[1])
        return Memory(
            x_BxXxD=jnp.concatenate([context_BxCxD, slots_BxMxD], axis=1),
            kv=None,
            valid_BxX=jnp.concatenate([valid_BxC, slots.valid_BxX], axis=1),
            cut_BxX=jnp.concatenate([valid_BxC, jnp.zeros_like(slots.valid_BxX)], axis=1),
            length_B=length_B + slots_B,
            slots_B=slots_B,
        )

    def compress(self, ids_BxC: Array, length_B: Array) -> Memory:
        """The memory in the form that is kept: M soft tokens, or M keys and values a layer.

        Answers from it equal those from `memory`; the context is not needed any more.
        """
        memory = self.memory(ids_BxC, length_B)
        if self.slot_form == "soft_tokens":
            return memory
        P, C, M = len(self.prefix_ids), ids_BxC.shape[1], memory.size - ids_BxC.shape[1]
        x_BxTxD, valid_BxT, cut_BxT, after_BxT = self._sequence(memory, None, None)
        empty = self._empty_cache(*x_BxTxD.shape[:2])
        mask_BxTxT = gist_mask(valid_BxT, cut_BxT, after_BxT)
        _, cache = self._extend(
            x_BxTxD, positions_of(valid_BxT), mask_BxTxT, empty, 0, x_BxTxD.shape[1]
        )
        valid_BxM = memory.valid_BxX[:, C:]
        return memory.replace(  # type: ignore[attr-defined]
            x_BxXxD=None,
            kv=cache.part(P + C, M),
            valid_BxX=valid_BxM,
            cut_BxX=jnp.zeros_like(valid_BxM),
        )

    def states(self, memory: Memory, tokens_BxS: Array, length_B: Array) -> Array:
        """The decoder's states over the tokens that follow the memory, `[B, S, D]`, in one pass."""
        x_BxTxD, valid_BxT, cut_BxT, after_BxT = self._sequence(memory, tokens_BxS, length_B)
        mask_BxTxT = gist_mask(valid_BxT, cut_BxT, after_BxT)
        h_BxTxD, _ = self.base(x_BxTxD, positions_of(valid_BxT), mask_BxTxT, self.lora)
        return h_BxTxD[:, -tokens_BxS.shape[1] :]

    def prefill(
        self, memory: Memory, tokens_BxS: Array, length_B: Array, room: int
    ) -> tuple[Array, Cache, Array, Array]:
        """Reads memory and question into a cache with `room` more positions.

        Returns:
            The state of each row's last token `[B, D]`, the cache, the cache positions that later tokens may look at
            `[B, U]`, and the next token's rotary position `[B]`.
        """
        B, S = tokens_BxS.shape
        P = len(self.prefix_ids)
        U = P + memory.size + S + room
        cache = self._empty_cache(B, U)
        x_BxTxD, valid_BxT, cut_BxT, after_BxT = self._sequence(memory, tokens_BxS, length_B)
        mask_BxTxT = gist_mask(valid_BxT, cut_BxT, after_BxT)
        positions_BxT = positions_of(valid_BxT)
        if memory.kv is not None:
            # Slots are in the cache already: run the prefix, put them behind it, run the rest.
            positions_BxT = self._positions_around_kv(memory, S)
            _, cache = self._extend(x_BxTxD, positions_BxT, mask_BxTxT, cache, 0, P)
            cache = cache.insert(P, memory.kv)
            h_BxTxD, cache = self._extend(
                x_BxTxD, positions_BxT, mask_BxTxT, cache, P + memory.size, S
            )
        else:
            h_BxTxD, cache = self._extend(x_BxTxD, positions_BxT, mask_BxTxT, cache, 0, U - room)
        last_BxD = jnp.take_along_axis(h_BxTxD[:, -S:], (length_B - 1)[:, None, None], axis=1)[:, 0]
        visible_BxU = jnp.pad(valid_BxT & ~cut_BxT, ((0, 0), (0, room)))
        return last_BxD, cache, visible_BxU, P + memory.length_B + length_B

    def decode(
        self, ids_B: Array, position_B: Array, visible_BxU: Array, cache: Cache, index: Array
    ) -> tuple[Array, Cache, Array]:
        """One more token a row, written at cache position `index`: states `[B, D]`, cache, visible."""
        visible_BxU = visible_BxU | (jnp.arange(visible_BxU.shape[1]) == index)
        x_Bx1xD = self.base.embed(ids_B[:, None])
        h_Bx1xD, new_cache = self.base(
            x_Bx1xD, position_B[:, None], visible_BxU[:, None], self.lora, cache, index
        )
        assert new_cache is not None
        return h_Bx1xD[:, 0], new_cache, visible_BxU

    def _sequence(
        self, memory: Memory, tokens_BxS: Array | None, length_B: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Embeddings, real positions, cut positions and those after the cut, over prefix · memory · tokens.

        Slots that are kept as keys and values have no embeddings: zeros hold their place.
        """
        B, X = memory.valid_BxX.shape
        prefix_ids = jnp.asarray(self.prefix_ids, jnp.int32)
        prefix_BxPxD = jnp.broadcast_to(
            self.base.embed(prefix_ids[None]), (B, len(self.prefix_ids), self.base.config.d_model)
        )
        x_BxXxD = memory.x_BxXxD
        if x_BxXxD is None:
            x_BxXxD = jnp.zeros((B, X, self.base.config.d_model), self.base.dtype)
        real_BxP = jnp.ones((B, len(self.prefix_ids)), bool)
        x, valid, cut = [prefix_BxPxD, x_BxXxD], [real_BxP, memory.valid_BxX], [~real_BxP]
        cut.append(memory.cut_BxX)
        after = [~real_BxP, jnp.zeros_like(memory.valid_BxX)]
        if tokens_BxS is not None and length_B is not None:
            valid_BxS = lengths_to_valid(length_B, tokens_BxS.shape[1])
            x.append(self.base.embed(tokens_BxS))
            valid.append(valid_BxS)
            cut.append(jnp.zeros_like(valid_BxS))
            after.append(jnp.ones_like(valid_BxS))
        x_BxTxD, valid_BxT, cut_BxT, after_BxT = (
            jnp.concatenate(parts, axis=1) for parts in (x, valid, cut, after)
        )
        return x_BxTxD, valid_BxT, cut_BxT, after_BxT

    def _positions_around_kv(self, memory: Memory, S: int) -> Array:
        """As `positions_of`, but counting the context that the slots stand for."""
        B, P = memory.valid_BxX.shape[0], len(self.prefix_ids)
        prefix_BxP = jnp.broadcast_to(jnp.arange(P), (B, P))
        unused_BxX = jnp.zeros((B, memory.size), jnp.int32)
        tokens_BxS = (P + memory.length_B)[:, None] + jnp.arange(S)
        return jnp.concatenate([prefix_BxP, unused_BxX, tokens_BxS], axis=1)

    def _extend(
        self, x_BxTxD: Array, positions_BxT: Array, mask_BxTxT: Array, cache: Cache, at: int, n: int
    ) -> tuple[Array, Cache]:
        """Runs n positions of the sequence from index `at` on, into the cache at the same index."""
        part = slice(at, at + n)
        room = cache.k_LxBxUxKxH.shape[2] - mask_BxTxT.shape[2]
        mask_BxnxU = jnp.pad(mask_BxTxT[:, part], ((0, 0), (0, 0), (0, room)))
        h_BxnxD, new_cache = self.base(
            x_BxTxD[:, part], positions_BxT[:, part], mask_BxnxU, self.lora, cache, at
        )
        assert new_cache is not None
        return h_BxnxD, new_cache

    def _empty_cache(self, batch: int, length: int) -> Cache:
        c = self.base.config
        return Cache.empty(c.n_layers, batch, length, c.n_kv_heads, c.head_dim, self.base.dtype)


def _soft_memory(x_BxXxD: Array, length_B: Array) -> Memory:
    valid_BxX = lengths_to_valid(length_B, x_BxXxD.shape[1])
    return Memory(x_BxXxD, None, valid_BxX, jnp.zeros_like(valid_BxX), length_B, length_B)


def answer_states(h_BxSxD: Array, question_length_B: Array, n_answer: int) -> Array:
    """The states that predict the answer's tokens, `[B, A, D]`.

    Answer token a stands at `question_length + a`; the state before it predicts it.
    """
    index_BxA = question_length_B[:, None] - 1 + jnp.arange(n_answer)
    index_BxA = jnp.minimum(index_BxA, h_BxSxD.shape[1] - 1)
    return jnp.take_along_axis(h_BxSxD, index_BxA[:, :, None], axis=1)

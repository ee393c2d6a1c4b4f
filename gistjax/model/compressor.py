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


@struct.dataclass
class Sequence:
    """What the decoder reads: prefix · memory · tokens."""

    x_BxTxD: Array
    valid_BxT: Array  # real positions
    cut_BxT: Array  # hidden from those after the cut
    after_BxT: Array

    @property
    def positions_1xT(self) -> Array:
        """Rotary positions, once the sequence is compact."""
        return jnp.arange(self.valid_BxT.shape[1])[None]

    def compact(self) -> Sequence:
        """Real positions first, in their order, padding last: where nothing is cut, causality is then mask enough."""
        order_BxT = jnp.argsort(~self.valid_BxT, axis=1, stable=True)
        return jax.tree.map(lambda x: jax.vmap(_permute)(x, order_BxT), self)


def _permute(x_Tx: Array, order_T: Array) -> Array:
    return x_Tx.at[order_T].get(mode="promise_in_bounds", unique_indices=True)


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
        C = ids_BxC.shape[1]
        mask_BxCxC = None  # causal: padding stands last, where nobody sees it
        if self.bidirectional:
            mask_BxCxC = bidirectional_mask(lengths_to_valid(length_B, C))
        states_BxCxD, _ = base(
            x_BxCxD, jnp.arange(C)[None], mask_BxCxC, self.lora, n_layers=self.n_layers
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


@struct.dataclass
class Reading:
    """What a decoder has read, as keys and values with room for more."""

    cache: Cache
    visible_BxU: Array  # positions of the cache that later tokens may look at
    position_B: Array  # the next token's rotary position
    first_free: int = struct.field(
        pytree_node=False
    )  # its index in the cache, the same in every row


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
        if not self._cuts:
            return memory
        P, C = len(self.prefix_ids), ids_BxC.shape[1]
        sequence = self._sequence(memory)
        B, T = sequence.valid_BxT.shape
        cache = self.base.empty_cache(B, T)
        _, cache = self._extend(sequence, positions_of(sequence.valid_BxT), cache, 0, T)
        valid_BxM = memory.valid_BxX[:, C:]
        return memory.replace(  # type: ignore[attr-defined]
            x_BxXxD=None,
            kv=cache.part(P + C, memory.size - C),
            valid_BxX=valid_BxM,
            cut_BxX=jnp.zeros_like(valid_BxM),
        )

    def states(
        self, memory: Memory, tokens_BxS: Array, length_B: Array, wanted_BxW: Array | None = None
    ) -> Array:
        """The decoder's states over the tokens that follow the memory, in one pass.

        Args:
            wanted_BxW: of which tokens, by number; by default of all S.

        Returns:
            `[B, W, D]`.
        """
        sequence = self._sequence(memory, tokens_BxS, length_B).compact()
        h_BxWxD, _ = self.base(
            sequence.x_BxTxD,
            sequence.positions_1xT,
            self._mask(sequence),
            self.lora,
            wanted_BxW=self._places(memory, tokens_BxS, wanted_BxW),
        )
        return h_BxWxD

    def read(
        self,
        memory: Memory,
        tokens_BxS: Array,
        length_B: Array,
        room: int,
        wanted_BxW: Array,
        seen_B: Array | None = None,
    ) -> tuple[Array, Reading]:
        """As `states`, keeping keys and values with `room` for more tokens.

        Those follow the row's first `seen` tokens, by default all, and see no others.
        """
        seen_B = length_B if seen_B is None else seen_B
        S, first_B = tokens_BxS.shape[1], self._first_token(memory)
        sequence = self._sequence(memory, tokens_BxS, length_B)
        B, T = sequence.valid_BxT.shape
        cache = self.base.empty_cache(B, T + room)
        if memory.kv is not None:
            h_BxWxD, cache = self._read_around(memory, memory.kv, sequence, cache, S, wanted_BxW)
            end_B = T - S + seen_B
        else:
            sequence = sequence.compact()
            places_BxW = self._places(memory, tokens_BxS, wanted_BxW)
            h_BxWxD, cache = self._extend(sequence, sequence.positions_1xT, cache, 0, T, places_BxW)
            end_B = first_B + seen_B
        visible_BxT = sequence.valid_BxT & ~sequence.cut_BxT & (jnp.arange(T) < end_B[:, None])
        visible_BxU = jnp.pad(visible_BxT, ((0, 0), (0, room)))
        return h_BxWxD, Reading(cache, visible_BxU, first_B + seen_B, T)

    def extend(self, ids_BxA: Array, reading: Reading, done: Array | int) -> tuple[Array, Reading]:
        """A more tokens a row after the `done` ones that were added already: states `[B, A, D]`, and the new reading."""
        A, U = ids_BxA.shape[1], reading.visible_BxU.shape[1]
        index = reading.first_free + done
        own_AxU = jnp.arange(U) - index <= jnp.arange(A)[:, None]
        own_AxU &= jnp.arange(U) >= index
        positions_BxA = reading.position_B[:, None] + done + jnp.arange(A)
        h_BxAxD, cache = self.base(
            self.base.embed(ids_BxA),
            positions_BxA,
            reading.visible_BxU[:, None] | own_AxU,
            self.lora,
            reading.cache,
            index,
        )
        visible_BxU = reading.visible_BxU | own_AxU[-1]
        return h_BxAxD, reading.replace(cache=cache, visible_BxU=visible_BxU)  # type: ignore[attr-defined]

    def decode(self, ids_B: Array, reading: Reading, done: Array) -> tuple[Array, Reading]:
        """One more token a row: states `[B, D]`, and the new reading."""
        h_Bx1xD, reading = self.extend(ids_B[:, None], reading, done)
        return h_Bx1xD[:, 0], reading

    @property
    def _cuts(self) -> bool:
        """Whether the context stands in the decoder's sequence and is hidden after the slots."""
        return self.compressor is not None and self.slot_form == "key_values"

    def _first_token(self, memory: Memory) -> Array:
        """The position of the first token after the memory, `[B]`."""
        return len(self.prefix_ids) + memory.length_B

    def _places(self, memory: Memory, tokens_BxS: Array, wanted_BxW: Array | None) -> Array:
        """Where tokens, given by number, stand in the compact sequence; past its end, its last position."""
        if wanted_BxW is None:
            wanted_BxW = jnp.arange(tokens_BxS.shape[1])[None]
        last = len(self.prefix_ids) + memory.size + tokens_BxS.shape[1] - 1
        return jnp.minimum(self._first_token(memory)[:, None] + wanted_BxW, last)

    def _sequence(
        self, memory: Memory, tokens_BxS: Array | None = None, length_B: Array | None = None
    ) -> Sequence:
        """prefix · memory · tokens. Slots kept as keys and values have no embeddings: zeros hold their place."""
        B, X = memory.valid_BxX.shape
        D, P = self.base.config.d_model, len(self.prefix_ids)
        prefix_PxD = self.base.embed(jnp.asarray(self.prefix_ids, jnp.int32))
        x_BxXxD = memory.x_BxXxD
        if x_BxXxD is None:
            x_BxXxD = jnp.zeros((B, X, D), self.base.dtype)
        real_BxP, nobody_BxX = jnp.ones((B, P), bool), jnp.zeros((B, X), bool)
        parts = [
            Sequence(jnp.broadcast_to(prefix_PxD, (B, P, D)), real_BxP, ~real_BxP, ~real_BxP),
            Sequence(x_BxXxD, memory.valid_BxX, memory.cut_BxX, nobody_BxX),
        ]
        if tokens_BxS is not None and length_B is not None:
            valid_BxS = lengths_to_valid(length_B, tokens_BxS.shape[1])
            nobody_BxS = jnp.zeros_like(valid_BxS)
            parts.append(Sequence(self.base.embed(tokens_BxS), valid_BxS, nobody_BxS, ~nobody_BxS))
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

    def _mask(self, sequence: Sequence) -> Array | None:
        """None where causality alone is right: nothing is cut, and padding stands last."""
        if not self._cuts:
            return None
        return gist_mask(sequence.valid_BxT, sequence.cut_BxT, sequence.after_BxT)

    def _read_around(
        self, memory: Memory, kv: Cache, sequence: Sequence, cache: Cache, S: int, wanted_BxW: Array
    ) -> tuple[Array, Cache]:
        """The slots are in a cache already: run the prefix, put them behind it, run the tokens: `[B, W, D]`."""
        B, P = memory.valid_BxX.shape[0], len(self.prefix_ids)
        prefix_BxP = jnp.broadcast_to(jnp.arange(P), (B, P))
        unused_BxX = jnp.zeros((B, memory.size), jnp.int32)
        tokens_BxS = self._first_token(memory)[:, None] + jnp.arange(S)
        positions_BxT = jnp.concatenate([prefix_BxP, unused_BxX, tokens_BxS], axis=1)
        _, cache = self._extend(sequence, positions_BxT, cache, 0, P)
        cache = cache.insert(P, kv)
        return self._extend(sequence, positions_BxT, cache, P + memory.size, S, wanted_BxW)

    def _extend(
        self, sequence: Sequence, positions_BxT: Array, cache: Cache, at: int, n: int,
        wanted_BxW: Array | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        """Runs n positions of the sequence from index `at` on, into the cache at the same index."""
        part = slice(at, at + n)
        mask_BxnxU = None
        if self._cuts:
            room = cache.length - sequence.valid_BxT.shape[1]
            mask_BxTxT = gist_mask(sequence.valid_BxT, sequence.cut_BxT, sequence.after_BxT)
            mask_BxnxU = jnp.pad(mask_BxTxT[:, part], ((0, 0), (0, 0), (0, room)))
        h_BxnxD, new_cache = self.base(
            sequence.x_BxTxD[:, part], positions_BxT[:, part], mask_BxnxU, self.lora, cache, at,
            wanted_BxW=wanted_BxW,
        )  # fmt: skip
        assert new_cache is not None
        return h_BxnxD, new_cache


def _soft_memory(x_BxXxD: Array, length_B: Array) -> Memory:
    valid_BxX = lengths_to_valid(length_B, x_BxXxD.shape[1])
    return Memory(x_BxXxD, None, valid_BxX, jnp.zeros_like(valid_BxX), length_B, length_B)


def answer_positions(question_length_B: Array, n: int, size: int) -> Array:
    """The numbers of the tokens whose states predict the first n answer tokens, `[B, n]`, of `size` tokens.

    Answer token a stands at `question_length + a`; the state before it predicts it.
    """
    return jnp.minimum(question_length_B[:, None] - 1 + jnp.arange(n), size - 1)

"""The file of a document for transformers, in PyTorch (`gistjax/sharing/transformers_reader.py`).

    k, v        [entries, head]     by layer, KV head and position, as a decoder's cache has them
    count       [layers, KV heads]  how many of each

They are all that a decoder reads before a question: the prompt, and behind it slots or kept
entries, whatever their form in gistjax, as numbers in the base's dtype. The metadata tell where the
question stands (`positions`), its template and what ends an answer (`prompt`, JSON), and which
compressor and base it is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gistjax.compress.context import CompressedContext, DecodeState
from gistjax.compress.kept import Entries, entries_of, merged
from gistjax.compress.rounded import file_arrays
from gistjax.data.prompts import Prompt
from gistjax.errors import ExportError
from gistjax.runtime.tensors import save_tensors

FORMAT = {"format": "gistjax-transformers", "version": "1"}

PROBE = "Who built it, and when?"
"""A question, to see whether a tokenizer gives it the ids that it has in the prompt."""


def write(
    file: Path,
    state: DecodeState,
    context: CompressedContext,
    prompt: Mapping[str, object],
    origin: Mapping[str, str],
) -> int:
    """Write what a decoder has read of one row; return the file's size in bytes.

    Args:
        state: prompt and context as read.
        context: the same; kept entries are taken from here.
        prompt: of `prompt_of`.
        origin: compressor and base, in the metadata.

    Raises:
        StorageError: if the disk is full or fails.
    """
    parts = [_read(state)]
    if context.kept is not None:
        parts.append(entries_of(context).numbers())
    positions = str(int(state.position_B[0]))
    about = {**FORMAT, **origin, "positions": positions, "prompt": json.dumps(prompt)}
    save_tensors(file, file_arrays(merged(parts)), about)
    return file.stat().st_size


def _read(state: DecodeState) -> Entries:
    """Return the positions of the cache that later tokens look at."""
    visible_U = np.asarray(state.visible_BxU)[0]
    k_LxKxUxH, v_LxKxUxH = (
        np.stack([np.asarray(layer)[0][:, visible_U] for layer in layers])
        for layers in (state.cache.k, state.cache.v)
    )
    *heads, U, H = k_LxKxUxH.shape
    count_LxK = np.full(heads, U, np.int32)
    return Entries(k_LxKxUxH.reshape(-1, H), v_LxKxUxH.reshape(-1, H), count_LxK)


def prompt_of(prompt: Prompt, answer_tokens: int) -> dict[str, object]:
    """Return what makes a prompt of a question, and what ends its answer.

    A question's ids are `open_ids`, those of its text between `before` and `after` without the
    first `skip`, and `close_ids`. A tokenizer may put a space before a text that stands alone.

    Raises:
        ExportError: if that space becomes one with the text.
    """
    around = prompt.around
    text = around.before + PROBE + around.after
    alone = prompt.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    opened, closed = len(around.open_ids), len(around.close_ids)
    within = prompt.encode_question(PROBE).tolist()
    within = within[opened : len(within) - closed]
    skip = len(alone) - len(within)
    if skip not in (0, 1) or alone[skip:] != within:
        raise ExportError(
            "this base's tokenizer gives a question other tokens where it stands alone than behind "
            "a text, so transformers would read another prompt: use a base with another tokenizer."
        )
    return {
        "open_ids": around.open_ids,
        "before": around.before,
        "after": around.after,
        "skip": skip,
        "close_ids": around.close_ids,
        "end_ids": prompt.end_ids,
        "answer_tokens": answer_tokens,
    }

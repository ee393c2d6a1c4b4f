"""Documents of gistjax in transformers: what was kept of a text is asked in PyTorch.

    from transformers_reader import KeptText

    model = AutoModelForCausalLM.from_pretrained(BASE)
    model = PeftModel.from_pretrained(model, DIR)  # the decoder's adapter
    text = KeptText.read(f"{DIR}/document.safetensors", model)
    inputs = text.inputs(tokenizer, ["Who built the mill?", "When?"])
    ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    print(tokenizer.batch_decode(ids, skip_special_tokens=True))

This file stands alone: it needs torch, transformers and safetensors, and no gistjax, where nothing
imports it. Each KV head of each layer keeps a number of entries of its own. A layer's cache is as
long as the longest of its heads; where another has no entry the key is not a number, and attention
leaves it out. So no mask has to travel with a cache, which is repeated, reordered and moved like
any other.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from transformers import AttentionInterface, AttentionMaskInterface, GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import eager_mask

ATTENTION = "kept_entries"
"""The name of `attend` among the attentions of transformers."""


def attend(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> tuple[Any, Any]:
    """Return the values `[B, T, N, H]` of queries `[B, N, T, H]`, and their weights.

    Args:
        key, value: `[B, K, U, H]`; a key that is not a number is no entry.
        mask: `[B, 1, T, positions]`, added to logits. It tells of positions, which differ in number
            from entries. Those before the last T hide none, so it is read from its end.
    """
    B, N, T, H = query.shape
    K, U = key.shape[1:3]
    logits = (query.reshape(B, K, -1, H) @ key.transpose(2, 3)).float() * scaling
    logits = logits.view(B, K, -1, T, U)
    told = min(U, mask.shape[-1])
    logits[..., U - told :] += mask[:, :, None, :, mask.shape[-1] - told :]
    logits = logits.masked_fill(key[:, :, None, None, :, 0].isnan(), float("-inf"))
    weights = logits.softmax(-1).to(value.dtype)
    y = weights.view(B, K, -1, U) @ value
    return y.view(B, N, T, H).transpose(1, 2).contiguous(), weights.view(B, N, T, U)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


class KeptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's cache, which begins with entries that stand for more or fewer positions."""

    keys: Any

    def __init__(self, keys: Any, values: Any, positions: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.update(keys, values)
        self._more: int = positions - keys.shape[-2]

    def get_seq_length(self) -> int:
        """Return the next token's position, which makes positions and masks."""
        return int(self.keys.shape[-2]) + self._more


@dataclass(frozen=True)
class KeptText:
    """What was kept of a text, ready for questions."""

    layers: Sequence[tuple[Any, Any]]  # keys and values of each, [1, K, U, H]
    positions: int  # that it takes up, with the prompt before it
    prompt: dict[str, Any]  # the template of a question, and what ends an answer

    @classmethod
    def read(cls, file: str, model: Any) -> KeptText:
        """Read a document that gistjax wrote for transformers.

        Args:
            model: what will read it. It gets the attention that knows entries, which computes what
                others do where there are none.

        Raises:
            ValueError: if the file is another.
        """
        with safe_open(file, framework="pt", device=str(model.device)) as content:
            about = content.metadata() or {}
            if (about.get("format"), about.get("version")) != ("gistjax-transformers", "1"):
                raise ValueError(f"{file} was not written by gistjax for transformers.")
            keys, values = (content.get_tensor(name).to(model.dtype) for name in "kv")
            count = content.get_tensor("count")
        if about.get("adapter") == "1" and not hasattr(model, "peft_config"):
            warnings.warn(
                "the model has no adapter, unless it is merged: without PeftModel.from_pretrained("
                "model, FOLDER) it answers as the base does.",
                stacklevel=2,
            )
        model.set_attn_implementation(ATTENTION)
        layers, start = [], 0
        for counts in count.tolist():
            k = keys.new_full((1, len(counts), max(counts), keys.shape[1]), float("nan"))
            v = values.new_zeros(k.shape)
            for head, n in enumerate(counts):
                k[0, head, :n], v[0, head, :n] = keys[start : start + n], values[start : start + n]
                start += n
            layers.append((k, v))
        return cls(layers, int(about["positions"]), json.loads(about["prompt"]))

    def cache(self, rows: int = 1) -> Cache:
        """Return a cache to begin with; what is added to it leaves the text as it is."""
        layers: list[Any] = [
            KeptLayer(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), self.positions)
            for k, v in self.layers
        ]
        return Cache(layers=layers)

    def question_ids(self, tokenizer: Any, question: str) -> list[int]:
        """Return the tokens of a question, with the template around them."""
        text = self.prompt["before"] + question.strip() + self.prompt["after"]
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        own = ids[self.prompt["skip"] :]
        return [*self.prompt["open_ids"], *own, *self.prompt["close_ids"]]

    def inputs(self, tokenizer: Any, questions: str | Sequence[str]) -> dict[str, Any]:
        """Return what `generate` takes to answer questions greedily, a row each.

        `input_ids` begin with a placeholder for each position of the text, which is not read;
        `generate` returns them before the answer.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        if not asked or not all(question.strip() for question in asked):
            raise ValueError("there is no question, or an empty one: give one or more.")
        ids = [self.question_ids(tokenizer, question) for question in asked]
        longest, end = max(map(len, ids)), self.prompt["end_ids"]
        pads = [longest - len(row) for row in ids]
        rows = [[end[0]] * (self.positions + pad) + row for pad, row in zip(pads, ids, strict=True)]
        real = [[1] * self.positions + [0] * pad + [1] * (longest - pad) for pad in pads]
        integers = self.layers[0][0].new_zeros(0).long()
        return {
            "input_ids": integers.new_tensor(rows),
            "attention_mask": integers.new_tensor(real),
            CACHE: self.cache(len(asked)),
            "max_new_tokens": self.prompt["answer_tokens"],
            "eos_token_id": end,
            "pad_token_id": end[0],
            "do_sample": False,
        }


_PARAMETERS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"
"""What this transformers calls a cache."""

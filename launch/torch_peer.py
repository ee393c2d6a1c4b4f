"""Do the work of `gistjax.benchmark` as a PyTorch user would.

    python launch/torch_peer.py --size 8b --works train:8 train:32 generate:32 [--compile]

A work is a mode and its number of rows. The model is transformers' Llama with PEFT's LoRA and SDPA.
train: B contexts of C tokens go through a gist compressor to M soft tokens; the decoder reads M + S
tokens; the loss is on the last A; one AdamW step on LoRA and compressor. generate and generate_full
answer from the slots or from the whole context. Weights are random: only time and memory are
measured. Needs torch, transformers and peft; prints one JSON object a work.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "8b": dict(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        head_dim=128,
        rope_theta=500000.0,
    ),
    "135m": dict(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "tiny": dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        head_dim=16,
    ),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Gist(nn.Module):
    """M queries: cross-attention to the context, self-attention, a narrow feed-forward."""

    def __init__(self, width: int, heads: int, slots: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.ffn = nn.Sequential(
            nn.Linear(width, width // 16), nn.GELU(), nn.Linear(width // 16, width)
        )

    def forward(self, states: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Return slots `[B, M, D]` of states `[B, C, D]`."""
        x = self.queries.expand(states.shape[0], -1, -1)
        x = (
            x
            + self.cross(
                self.norms[0](x), states, states, key_padding_mask=padding, need_weights=False
            )[0]
        )
        h = self.norms[1](x)
        x = x + self.own(h, h, h, need_weights=False)[0]
        return x + self.ffn(self.norms[2](x))


class Peer:
    """Base, adapters and compressor, and a random batch once `rows` are set."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.config = LlamaConfig(**SIZES[args.size], max_position_embeddings=8192)
        self.config._attn_implementation = "sdpa"
        with torch.device(args.device):
            base = LlamaForCausalLM(self.config)
            heads = self.config.num_attention_heads
            self.compressor = Gist(self.config.hidden_size, heads, args.slots)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        self.model = get_peft_model(base, lora).to(args.device)
        self.embed = base.get_input_embeddings()

    def set_rows(self, rows: int) -> None:
        """Draw a batch."""
        V, args = self.config.vocab_size, self.args
        with torch.device(args.device):
            self.context = torch.randint(0, V, (rows, args.context))
            self.tokens = torch.randint(0, V, (rows, args.tokens))
            self.padding = torch.zeros(rows, args.context, dtype=torch.bool)

    def slots(self) -> torch.Tensor:
        """Return the compressed context."""
        return self.compressor(self.embed(self.context), self.padding)

    def loss(self) -> torch.Tensor:
        """Return the teacher-forcing loss on the last A tokens."""
        A = self.args.answer_tokens
        x = torch.cat([self.slots(), self.embed(self.tokens)], 1)
        logits = self.model(inputs_embeds=x, logits_to_keep=A + 1).logits[:, :-1]
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.tokens[:, -A:].flatten()
        )

    def trainer(self) -> Callable[[], None]:
        """Return a function that makes one optimizer step."""
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += self.compressor.parameters()
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=self.args.device == "cuda")
        loss = torch.compile(self.loss) if self.args.compile else self.loss

        def step() -> None:
            loss().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def generator(self, from_slots: bool) -> Callable[[], None]:
        """Return a function that answers every row greedily; no answer ends early."""
        n = self.args.answer_tokens
        greedy = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        self.model.eval()

        @torch.no_grad()
        def answer() -> None:
            if from_slots:
                inputs = {"inputs_embeds": torch.cat([self.slots(), self.embed(self.tokens)], 1)}
            else:
                inputs = {"input_ids": torch.cat([self.context, self.tokens], 1)}
            (given,) = inputs.values()
            mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
            self.model.generate(**inputs, attention_mask=mask, **greedy)

        return answer


def measure(peer: Peer, work: str) -> dict[str, object]:
    """Return the median seconds of a work's calls, after three that are not counted."""
    args = peer.args
    mode, rows = work.split(":")
    peer.set_rows(int(rows))
    call = peer.trainer() if mode == "train" else peer.generator(from_slots=mode == "generate")
    cuda = args.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.repeats + 3):
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None
    return {
        "work": work,
        "peer": "torch.compile" if args.compile else "torch eager",
        "size": args.size,
        "seconds": sorted(seconds[3:])[args.repeats // 2],
        "warm_up_s": round(sum(seconds[:3]), 1),
        "peak_memory_gib": memory,
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure one work after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--works", nargs="+", default=["train:8"])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--answer_tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    peer = Peer(args)
    for work in args.works:
        print(json.dumps(measure(peer, work)), flush=True)


if __name__ == "__main__":
    main()

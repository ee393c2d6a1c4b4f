"""What entries are worth by each method's formula, in PyTorch, on one row without padding."""

import numpy as np

from tests.helpers.lazy import F, torch

MIN = float(np.finfo(np.float32).min)


class Pass:
    """What attention does in each layer while a model of transformers reads some tokens.

    Everything is of the whole sequence, without a batch: keys and values `[K, T, H]`, queries
    before rotation `[N, T, H]`, probabilities `[N, T, T]`.
    """

    def __init__(self, model, ids, mask=None):
        self.model, self.T = model, len(ids)
        queries = []
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda attn, args, kwargs: queries.append(unrotated(attn, kwargs)),
                with_kwargs=True,
            )
            for layer in model.model.layers
        ]
        with torch.no_grad():
            out = model(
                torch.tensor(ids)[None],
                attention_mask=None if mask is None else torch.where(mask, 0.0, MIN)[None, None],
                output_attentions=True,
                use_cache=True,
            )
        for hook in hooks:
            hook.remove()
        self.q = queries
        self.k = [layer.keys[0] for layer in out.past_key_values.layers]
        self.v = [layer.values[0] for layer in out.past_key_values.layers]
        self.attention = [a[0] for a in out.attentions]
        self.sees = torch.ones(self.T, self.T).tril().bool() if mask is None else mask

    def __len__(self):
        return len(self.k)

    @property
    def groups(self):
        return len(self.attention[0]) // len(self.k[0])


def unrotated(attn, kwargs):
    """Queries `[N, T, H]` as the layer makes them, normed where it norms them."""
    h = kwargs["hidden_states"]
    q = attn.q_proj(h).view(*h.shape[:2], -1, attn.head_dim)
    return (attn.q_norm(q) if hasattr(attn, "q_norm") else q)[0].transpose(0, 1)


def grouped(x, groups):
    """`[N, …]` as `[K, G, …]`."""
    return x.view(-1, groups, *x.shape[1:])


def kvzip(p, layer, end):
    return grouped(p.attention[layer][:, end:, :end], p.groups).amax((1, 2))


def smoothed_window(p, layer, window):
    """SnapKV: mean of the last tokens' attention to those before them, smoothed; per KV head."""
    first = p.T - window
    mean = p.attention[layer][:, first:, :first].mean(1)
    smooth = F.avg_pool1d(mean[:, None], 5, stride=1, padding=2)[:, 0]
    return grouped(smooth, p.groups).mean(1)


def snapkv(p, layer, window):
    """As its window is kept first, the last token before the others, it stands above all else."""
    score = smoothed_window(p, layer, window)
    return torch.cat([score, (1e6 + torch.arange(window)).expand(len(score), -1)], 1)


def h2o(p, layer):
    return (grouped(p.attention[layer], p.groups).mean(1)).sum(1) / p.sees.sum(0)


def expected_attention(p, layer, sinks=4, future=512):
    attn = p.model.model.layers[layer].self_attn
    q, k, v = p.q[layer][:, sinks:], p.k[layer][:, sinks:], p.v[layer][:, sinks:]
    H = q.shape[-1]
    turn = torch.eye(H)
    if getattr(attn, "use_rope", True):
        places = torch.arange(p.T, p.T + future)[None]
        cos, sin = (x[0].mean(0) for x in p.model.model.rotary_emb(q, places))
        half = torch.zeros(H, H)  # x ↦ (−second half, first half)
        half[: H // 2, H // 2 :] = -torch.eye(H // 2)
        half[H // 2 :, : H // 2] = torch.eye(H // 2)
        turn = torch.diag(cos) + torch.diag(sin) @ half
    scores = []
    for n, own in enumerate(q):
        mean, cov = own.mean(0), torch.cov(own.T, correction=0)
        keys = k[n // p.groups]
        line = keys @ (turn @ mean) / H**0.5
        square = torch.stack([key @ turn @ cov @ turn.T @ key for key in keys]) / (2 * H)
        scores.append((line + square).softmax(0))
    share = grouped(torch.stack(scores), p.groups).mean(1)
    return torch.cat([torch.full((len(k), sinks), 1e6), share * v.norm(dim=-1)], 1)


def keydiff(p, layer):
    k = p.k[layer]
    anchor = F.normalize(k, dim=-1).mean(1, keepdim=True)
    return -F.cosine_similarity(k, anchor, dim=-1)


def knorm(p, layer):
    return -p.k[layer].square().sum(-1).sqrt()


def streaming(p, layer, sinks=4):
    score = torch.arange(p.T, dtype=torch.float32)
    score[:sinks] = 1e6
    return score.expand(len(p.k[layer]), -1)


OF_THE_CONTEXT = {
    "h2o": h2o,
    "expected_attention": expected_attention,
    "keydiff": keydiff,
    "knorm": knorm,
    "streaming": streaming,
}
"""Those that need to know of the pass that reads the context, and of nothing else."""


def scores(name, model, prefix, context, behind=(), mask=None):
    """Scores of a context's entries `[L, K, C]`.

    Args:
        behind: tokens of the second pass, for those that have one.
        mask: who sees whom while prompt and context are read, `[T, T]`; causal by default.
    """
    ids, end = [*prefix, *context], len(prefix) + len(context)
    if name in ("kvzip", "question_aware"):
        ids = [*ids, *behind]
        if mask is not None:
            causal = torch.ones(len(ids), len(ids)).tril().bool()
            causal[:end, :end] = mask
            mask = causal
    p = Pass(model, ids, mask)

    def of_layer(layer):
        if name == "kvzip":
            return kvzip(p, layer, end)
        if name == "question_aware":
            return smoothed_window(p, layer, len(behind))
        if name == "snapkv":
            return snapkv(p, layer, min(64, max(1, len(context) // 16)))
        return OF_THE_CONTEXT[name](p, layer)

    return torch.stack([of_layer(i) for i in range(len(p))])[:, :, len(prefix) :].numpy()

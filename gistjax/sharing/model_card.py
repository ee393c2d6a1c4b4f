"""The page of an exported compressor: its use, its training data, its scores, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gistjax.config import CompressionConfig, file_name
from gistjax.evaluation.selective import f1_by_coverage
from gistjax.names import own_parts
from gistjax.sharing.base_model import BaseModel, base_model

MARK = "library_name: gistjax"
"""Line in the header of every card."""
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Shares of the questions at which the card gives the F1 of what is answered."""

SECTIONS = """\
---
{header}
---

# {title}

{about} Made with gistjax; architecture `{architecture}`.

## Use

{before}```python
import gistjax

engine = gistjax.load("FOLDER_OF_THIS_PAGE"{load_base})
print(engine.compress("Anneke Dursel built the mill.").ask("Who built the mill?").text)
```

The base is not included. It has to be the one that the compressor was trained on: {weights}, in
{dtype} (SHA-256 of all weights `{base_sha256}`).{size}

## How good

{scores}

## Trained on

{data}

## Limits

It always answers, also where the text does not say. Names and numbers may come out misspelt, and
mistakes look like answers. Longer texts, other languages and other kinds of question than it was
trained on may be answered far worse. The licences of the base and of the data apply.
"""


def model_card(
    config: CompressionConfig,
    stored: Mapping[str, Any],
    metrics: Mapping[str, Any],
    size: str = "",
    predictions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return Markdown with the hub's header.

    Args:
        stored: the run's `config.json`.
        metrics: the run's `metrics.json`; empty where there is none.
        size: a sentence on the bytes of the weights.
        predictions: the run's `predictions.json`; empty where there is none.
    """
    base = base_model(config, stored)
    header = [MARK, "tags: [context-compression]"]
    if base.repo:
        header.insert(0, f"base_model: {base.repo}")
    return SECTIONS.format(
        header="\n".join(header),
        title=f"{'A context compressor' if config.compresses else 'An adapter'} for {base.name}",
        about=_about(config, base.name),
        before=_before(config, base),
        load_base=', base="FOLDER_OR_GGUF_FILE_OF_THE_BASE"' if base.is_local else "",
        weights=base.weights,
        architecture=config.architecture,
        dtype=config.model.dtype,
        base_sha256=stored["base_sha256"],
        size=size and f" {size}",
        scores=_scores(metrics, config, "mean_of" in stored) + _coverage(metrics, predictions),
        data=_data(config, stored),
    )


def _about(config: CompressionConfig, base: str) -> str:
    tokens = f"a text of up to {config.data.context_tokens} tokens"
    if config.compresses:
        return (
            f"Compresses {tokens} into {_slots(config)}, which {base} reads in place of the text "
            "to answer questions about it."
        )
    if config.architecture == "closed_book":
        return f"With it {base} answers questions without a text: a control."
    if config.data.select == "all":
        return f"With it {base} answers questions about {tokens}, which it reads whole."
    return f"With it {base} answers questions about {tokens}, of which it reads a part: a control."


def _before(config: CompressionConfig, base: BaseModel) -> str:
    """Return what has to be there before the lines under "Use" run."""
    needs = []
    if base.is_local:
        needs.append("say where the base is")
    if own_parts(config.architecture):
        needs.append(f"have `{config.architecture}`, which gistjax does not, where Python finds it")
    return f"First {' and '.join(needs)}.\n\n" if needs else ""


def _slots(config: CompressionConfig) -> str:
    """Return how much is kept of a text."""
    if config.selects:
        return f"{_entries(config)} of the key/value cache (by `{config.select.scorer}`)"
    if config.ratios:
        least, most = config.ratios[0], config.ratios[-1]
        asked = f"as many as asked for, {config.ratio:g} by default"
        return f"one slot for each {least:g} to {most:g} tokens ({asked})"
    if config.ratio:
        return f"one slot for each {config.ratio:g} tokens"
    return f"{config.target_length} slots"


def _entries(config: CompressionConfig) -> str:
    """Return how many entries are kept, of which each layer and KV head has one a token."""
    if config.select.bytes:
        return f"at most {config.select.bytes:,} bytes of entries"
    if config.ratios:
        least, most = config.ratios[0], config.ratios[-1]
        return f"one entry in {least:g} to {most:g} (as asked for, {config.ratio:g} by default)"
    if config.ratio:
        return f"one of {config.ratio:g} entries"
    return f"{config.target_length} entries a KV head on average"


def _scores(metrics: Mapping[str, Any], config: CompressionConfig, mean: bool) -> str:
    if "final_f1" not in metrics:
        return "Not measured."
    interval = metrics.get("final_f1_interval")
    name = "this compressor" if config.compresses else "this adapter"
    kept = "entries" if config.selects else "slots"
    rows = [(name, metrics["final_f1"], interval, metrics["final_em"])]
    if metrics.get("shuffled_f1") is not None:
        rows.append((f"the same, with another text's {kept}", metrics["shuffled_f1"], None, None))
    if metrics.get("baseline_f1") is not None:
        interval, em = metrics.get("baseline_f1_interval"), metrics["baseline_em"]
        rows.append(("the untuned base with the whole text", metrics["baseline_f1"], interval, em))
    lines = ["| | F1 | EM |", "| --- | --- | --- |"]
    for name, f1, interval, em in rows:
        between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(f"| {name} | {f1:.3f}{between} | {'' if em is None else f'{em:.3f}'} |")
    for task, block in (metrics.get("tasks") or {}).items():
        low, high = block["final_f1_interval"]
        em, between = block["final_em"], f" [{low:.3f}, {high:.3f}]"
        lines.append(f"| of these, {task} | {block['final_f1']:.3f}{between} | {em:.3f} |")
    effective = metrics.get("effective_compression_ratio")
    each = "an entry" if config.selects else "a slot"
    ratio = f" at {effective:.2f} tokens {each}" if effective and config.compresses else ""
    questions = f"{metrics['n_examples']} validation questions{ratio}"
    of = "; means over tasks" if metrics.get("tasks") else ""
    seed = "" if mean else f"; seed {metrics['seed']}"
    lines.append(f"\nOn {questions}{of}; 95 % intervals{seed}.")
    return "\n".join(lines)


def _coverage(metrics: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of F1 by the share of questions answered; empty where there is none."""
    if "final_f1" not in metrics:
        return ""
    found = f1_by_coverage(predictions, SHARES, metrics["final_f1"])
    if not found:
        return ""
    lines = [f"| {share:.0%} | {f1:.3f} |" for share, f1 in found.items()]
    head = ["\n\nWhere it answers only what it is surest of (`score` of an answer):\n"]
    head += ["| questions answered | F1 of these |", "| --- | --- |"]
    return "\n".join([*head, *lines])


def _data(config: CompressionConfig, stored: Mapping[str, Any]) -> str:
    name = file_name(config.data.path) if config.data.path else config.data.name
    start = config.init_from and f", from an earlier stage (`{file_name(config.init_from)}`)"
    weights = config.loss_weights.items()
    losses = ", ".join(f"{name} {weight:g}" for name, weight in weights if weight)
    packages = ", ".join(f"{k} {v}" for k, v in stored.get("packages", {}).items())
    runs = stored.get("mean_of")
    seed = f"the mean of {len(runs)} runs' parameters" if runs else f"seed {config.seed}"
    device = stored.get("device", "an unnamed device")
    whole = sum(config.data.mixture.values())
    shares = [f"{task} {weight / whole:.0%}" for task, weight in config.data.mixture.items()]
    tasks = f" (of the answer tokens {', '.join(shares)})" if shares else ""
    return (
        f"Questions of `{name}`{tasks}, losses {losses}, {seed}{start}; on {device} with "
        f"{packages}. `config.json` has every setting."
    )

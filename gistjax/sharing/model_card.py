"""The page that goes with an exported compressor: what it is for, what it was trained on, how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gistjax.config import CompressionConfig
from gistjax.weights.registry import KNOWN

MARK = "library_name: gistjax"
"""In the head of every card."""

SECTIONS = """\
---
{header}
---

# {title}

Compresses a text of up to {context_tokens} tokens into {slots} that {base} reads in its place, to answer questions about
it. Made with gistjax; architecture `{architecture}`.

## Use

```python
import gistjax

reader = gistjax.load("FOLDER_OF_THIS_PAGE")
print(reader.compress(text).ask(question).text)
```

The base is not included: the weights must be {base}, in {dtype} (SHA-256 of all of them `{base_sha256}`).

## How good

{scores}

## Trained on

{data}

## Limits

It always answers, also where the text does not say. Names and numbers may come out misspelt, and mistakes look like
answers. What it was not trained on (longer texts, other languages, other kinds of question) was not measured. Licences
of the base and of the data apply.
"""


def model_card(
    config: CompressionConfig, stored: Mapping[str, Any], metrics: Mapping[str, Any]
) -> str:
    """Markdown with the hub's header.

    Args:
        stored: the run's `config.json`.
        metrics: the run's `metrics.json`; empty where there is none.
    """
    known = KNOWN.get(config.model.name)
    base = known.repo if known and known.repo else config.model.name
    header = [MARK, "tags: [context-compression]"]
    if "/" in base:
        header.insert(0, f"base_model: {base}")
    slots = f"{config.target_length} slots"
    if config.ratios:
        slots = f"a slot for each {config.ratios[0]:g} to {config.ratios[-1]:g} tokens, as asked ({config.ratio:g} by default)"
    elif config.ratio:
        slots = f"a slot for each {config.ratio:g} tokens"
    return SECTIONS.format(
        header="\n".join(header),
        title=f"A context compressor for {base}",
        context_tokens=config.data.context_tokens,
        slots=slots,
        base=base,
        architecture=config.architecture,
        dtype=config.model.dtype,
        base_sha256=stored["base_sha256"],
        scores=_scores(metrics),
        data=_data(config, stored),
    )


def _scores(metrics: Mapping[str, Any]) -> str:
    if "final_f1" not in metrics:
        return "Not measured."
    rows = [
        (
            "this compressor",
            metrics["final_f1"],
            metrics.get("final_f1_interval"),
            metrics["final_em"],
        )
    ]
    if metrics.get("shuffled_f1") is not None:
        rows.append(("the same, with another text's slots", metrics["shuffled_f1"], None, None))
    if metrics.get("baseline_f1") is not None:
        interval, em = metrics.get("baseline_f1_interval"), metrics["baseline_em"]
        rows.append(("the untuned base with the whole text", metrics["baseline_f1"], interval, em))
    lines = ["| | F1 | EM |", "| --- | --- | --- |"]
    for name, f1, interval, em in rows:
        between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(f"| {name} | {f1:.3f}{between} | {'' if em is None else f'{em:.3f}'} |")
    effective = metrics.get("effective_compression_ratio")
    ratio = f" at {effective:.2f} tokens a slot" if effective else ""
    lines.append(
        f"\nOn {metrics['n_examples']} validation questions{ratio}; 95 % intervals; seed {metrics['seed']}."
    )
    return "\n".join(lines)


def _data(config: CompressionConfig, stored: Mapping[str, Any]) -> str:
    name = config.data.path.rstrip("/").rpartition("/")[2] or config.data.name
    start = f", from an earlier stage (`{config.init_from}`)" if config.init_from else ""
    losses = ", ".join(
        f"{name} {weight:g}" for name, weight in config.loss_weights.items() if weight
    )
    packages = ", ".join(f"{k} {v}" for k, v in stored.get("packages", {}).items())
    runs = stored.get("mean_of")
    seed = f"the mean of {len(runs)} runs' parameters" if runs else f"seed {config.seed}"
    return (
        f"Questions of `{name}`, losses {losses}, {seed}{start}; on {stored.get('device', 'an unnamed device')} "
        f"with {packages}. `config.json` has every setting."
    )

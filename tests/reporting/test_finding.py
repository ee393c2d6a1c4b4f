"""The finding in words, on rows by hand."""

import pytest

from gistjax.reporting.finding import sentences


def row(run, f1, ratio, architecture="gist", **changes):
    found = {
        "run": run,
        "architecture": architecture,
        "control": architecture != "gist",
        "f1": f1,
        "f1_interval": [f1 - 0.05, f1 + 0.05],
        "nominal_ratio": ratio,
        "effective_ratio": ratio,
    }
    return {**found, **changes}


def test_the_best_of_the_lowest_ratios_and_those_its_interval_holds():
    rows = [row(f"r{ratio}", 1 / ratio, float(ratio)) for ratio in (32, 16, 8, 4, 2)]
    rows += [
        row("tied", 0.45, 2.0),
        row("on the edge", 0.44, 2.04, f1_interval=None),
        row("better control", 0.9, 2.0, "mean_pool"),
        row("kept", 0.3, None, effective_ratio=4.0, retained=0.5),
    ]
    assert sentences(rows) == (
        "Best compressors: at 2 tokens a slot, run r2 (F1 0.500; within its interval: 1 more); "
        "at 4 tokens a slot, run kept (F1 0.300, 50 % of the full context's; within its interval: "
        "1 more); at 8 tokens a slot, run r8 (F1 0.125); at 16 tokens a slot, run r16 "
        "(F1 0.062)."
    )


def test_a_single_compressor_is_told_in_the_singular():
    assert sentences([row("r4", 0.25, 4.0)]).startswith("Best compressor: at 4 tokens a slot, run ")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["full context", "closed book"],
            "The whole context, with the decoder tuned to it, gives 0.100, no context at all "
            "0.200.",
        ),
        (["closed book"], "No context at all 0.100."),
        ([], ""),
    ],
)
def test_the_controls(names, says):
    rows = [row(name, 0.1 * i, None, name) for i, name in enumerate(names, 1)]
    assert sentences([{**r, "effective_ratio": None} for r in rows]) == says

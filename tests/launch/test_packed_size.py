"""What packed entries hold, measured on a small base."""

import numpy as np
import pytest

from gistjax.config import SPREADS, SelectConfig
from launch import packed_size
from tests.helpers.tiny import PREFIX, TINY, tiny_model


@pytest.mark.slow
def test_every_spread_holds_what_is_kept_and_little_more(rng, monkeypatch):
    monkeypatch.setattr(packed_size, "TOKENS", (40, 64))
    monkeypatch.setattr(packed_size, "RATIOS", (2.0, 8.0))
    reader = packed_size.Reader(tiny_model("select", select=SelectConfig("knorm")), PREFIX)
    reader.measure_profile([rng.integers(0, 61, 64) for _ in range(3)])
    found = list(packed_size.cells(reader, rng.integers(0, 61, 64)))
    assert [cell["spread"] for cell in found] == 4 * list(SPREADS)
    heads = TINY.n_layers * TINY.n_kv_heads
    for cell in found:
        slots = -(-cell["tokens"] // int(cell["ratio"]))
        assert cell["kept_bytes"] == heads * slots * 2 * TINY.head_dim * 2
        tables = 2 * 4 * heads / cell["kept_bytes"]
        assert 1 <= cell["held"] - tables <= 1.1 and cell["window"] >= 1
    rows = packed_size.table(found).splitlines()
    assert len(rows) == 2 + 4 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert np.mean([cell["rows"] for cell in found if cell["spread"] == "all"]) > 1

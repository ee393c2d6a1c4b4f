"""The chart of F1 against bytes, from what evaluations print."""

import json
import math
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.errors import DataError
from launch import byte_chart
from launch.byte_chart import Cell, front, read_cells


def write(folder, form, name, size, f1):
    file = folder / form / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    metrics = {
        "bytes_per_context_token": size,
        "final_f1": f1,
        "final_f1_interval": [f1 - 0.04, f1 + 0.04],
    }
    file.write_text(f"all rows are usable\n{json.dumps(metrics)}\n")


points = st.tuples(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.sampled_from([0.1, 0.2, 0.3, 0.4]))


@given(st.lists(points, min_size=1, max_size=12))
def test_on_the_front_is_what_no_other_beats_and_everything_else_is_beaten(drawn):
    cells = [Cell("a", str(i), size, f1, (f1, f1)) for i, (size, f1) in enumerate(drawn)]
    kept = {(cell.bytes, cell.f1) for cell in front(cells)}
    assert kept == {
        (size, f1)
        for size, f1 in drawn
        if not any(s <= size and f >= f1 and (s, f) != (size, f1) for s, f in drawn)
    }


def test_it_draws_each_cell_where_it_was_measured_and_prints_the_front(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("vl_convert")
    measured = {
        ("entries", "8 in 4 bits"): (843, 0.79),
        ("entries", "8 in 16 bits"): (2939, 0.81),
        ("entries", "4 in 2 bits"): (938, 0.6),
        ("slots", "16"): (90, 0.4),
    }
    for (form, name), cell in measured.items():
        write(tmp_path, form, name, *cell)
    out = tmp_path / "bytes.svg"
    monkeypatch.setattr(sys, "argv", ["byte_chart", str(tmp_path), "--output", str(out)])
    byte_chart.main()
    assert capsys.readouterr().out == byte_chart.COLUMNS + (
        "| slots | 16 | 90 | 0.400 [0.360, 0.440] |\n"
        "| entries | 8 in 4 bits | 843 | 0.790 [0.750, 0.830] |\n"
        "| entries | 8 in 16 bits | 2,939 | 0.810 [0.770, 0.850] |\n"
    )
    marks = {
        label.split(":")[0]: element
        for element in ElementTree.parse(out).iter()
        if " bytes" in (label := element.get("aria-label", "")) and "F1 0." in label
    }
    assert marks.keys() == {f"{form}, {name}" for form, name in measured}

    def place(cell):
        x, y = marks[cell].get("transform").removeprefix("translate(").rstrip(")").split(",")
        return float(x), float(y)

    (x0, y0), (x1, y1) = place("slots, 16"), place("entries, 8 in 16 bits")
    for (form, name), (size, f1) in measured.items():
        x, y = place(f"{form}, {name}")
        share = math.log(size / 90) / math.log(2939 / 90)
        assert abs(x - (x0 + share * (x1 - x0))) < 0.01
        assert abs(y - (y0 + (f1 - 0.4) / 0.41 * (y1 - y0))) < 0.01


@pytest.mark.parametrize("text", ["", "stopped", "{}", '{"final_f1": 1}', "[]"])
def test_what_is_no_evaluation_is_refused_by_name(tmp_path, text):
    with pytest.raises(DataError, match="has no evaluations"):
        read_cells(tmp_path)
    write(tmp_path, "entries", "good", 10, 0.5)
    (tmp_path / "entries" / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad\.json is not what"):
        read_cells(tmp_path)


def test_no_bytes_have_no_place_on_the_axis(tmp_path):
    write(tmp_path, "closed book", "none", 0, 0.1)
    with pytest.raises(DataError, match="no logarithm"):
        read_cells(tmp_path)

"""The comparison of runs, on predictions with known scores."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from gistjax.compare import compare, control, define_flags, read_predictions, table
from gistjax.config import CompressionConfig, DataConfig
from gistjax.errors import ConfigError, DataError
from gistjax.runtime.cli import parse

ROOT = Path(__file__).parents[1]


def write_run(folder: Path, f1: list[float], em: list[float], order: list[int] | None = None):
    """A run directory whose questions 2i and 2i + 1 stand on context i."""
    rows = [
        {"id": f"q{i}", "context_id": i // 2, "f1": f1[i], "em": em[i], "question": "?"}
        for i in order or range(len(f1))
    ]
    folder.mkdir()
    (folder / "predictions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    of = write_run(tmp_path / "of", [0.5, 0.5, 0.25, 0.75], [0, 0, 0, 1])
    full = write_run(tmp_path / "full", [1, 1, 0.5, 0.5], [1, 1, 0, 0], order=[3, 0, 2, 1])
    return of, full, write_run(tmp_path / "zero", [0.0] * 4, [0.0] * 4)


def test_rows_are_matched_by_their_ids(runs):
    of, full, zero = runs
    found = compare(of, [full, zero], samples=500, seed=0)
    assert (found["of"], found["f1"], found["em"], found["n_examples"]) == (str(of), 0.5, 0.25, 4)
    # By context, F1 differs by -0.5 and 0, EM by -1 and 0.5; a resample has one, or their mean.
    assert found["with"][str(full)] == {
        "f1": 0.75,
        "f1_difference": -0.25,
        "f1_difference_interval": [-0.5, 0.0],
        "em": 0.5,
        "em_difference": -0.25,
        "em_difference_interval": [-1.0, 0.5],
        "f1_retained": pytest.approx(2 / 3),
        "f1_retained_interval": [0.5, 1.0],  # 0.5 and 1 by context
    }
    assert found["with"][str(zero)]["f1_retained"] is None
    assert found["with"][str(zero)]["f1_retained_interval"] is None
    assert found["with"][str(zero)]["f1_difference_interval"] == [0.5, 0.5]


def test_areas_are_compared_where_every_answer_has_a_score(tmp_path):
    def rows(scores, em, **more):
        return json.dumps([
            {"id": f"q{i}", "context_id": i, "f1": em[i], "em": em[i], "score": scores[i], **more}
            for i in range(3)
        ])  # fmt: skip

    of, other = (write_run(tmp_path / name, [0.0] * 3, [0.0] * 3) for name in ("of", "other"))
    (of / "predictions.json").write_text(rows([0.9, 0.5, 0.1], [1, 0, 1]))
    (other / "predictions.json").write_text(rows([0.1, 0.5, 0.9], [1, 0, 0]))
    found = compare(of, [other], samples=200, seed=0)
    one = found["with"][str(other)]
    assert one["own_accuracy_area"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert one["accuracy_area"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    low, high = one["accuracy_area_difference_interval"]
    assert one["accuracy_area_difference"] == pytest.approx(11 / 18)
    assert low <= one["accuracy_area_difference"] <= high
    assert "Accuracy over all coverages: 0.722, " in table(found)
    (other / "predictions.json").write_text(rows([0.1] * 3, [0] * 3, withheld="Ada"))
    assert "accuracy_area" not in compare(of, [other], 10, 0)["with"][str(other)]
    (other / "predictions.json").write_text(rows([0.1, 1.5, 0.9], [1, 0, 0]))
    with pytest.raises(DataError, match="q1 has a score that is not in 0..1"):
        compare(of, [other], 10, 0)


def test_a_closed_book_has_nothing_to_retain_and_both_controls_make_a_scale(runs):
    of, full, closed = runs
    rows = [{"id": f"q{i}", "context_id": i // 2, "f1": 0.25, "em": 0} for i in range(4)]
    (closed / "predictions.json").write_text(json.dumps(rows))
    for run, architecture in ((full, "none"), (closed, "closed_book")):
        config = CompressionConfig(architecture=architecture).to_json()
        (run / "config.json").write_text(json.dumps({"config": config}))
    found = compare(of, [full, closed], samples=500, seed=0)
    against = found["with"][str(closed)]
    assert against["f1_retained"] is against["f1_retained_interval"] is None
    assert against["f1_difference"] == 0.25
    assert found["normalised_f1"] == pytest.approx(0.5)
    low, high = found["normalised_f1_interval"]
    assert low == pytest.approx(1 / 3) and high == pytest.approx(1)  # by context


def test_selected_tokens_are_no_full_context(runs):
    for run, changes in (
        (runs[1], {"architecture": "none", "data": DataConfig(select="first")}),
        (runs[2], {"architecture": "closed_book"}),
    ):
        config = CompressionConfig(**changes).to_json()
        (run / "config.json").write_text(json.dumps({"config": config}))
    assert (control(runs[0]), control(runs[1]), control(runs[2])) == ("", "", "closed book")
    assert "normalised_f1" not in compare(runs[0], list(runs[1:]), 10, 0)


def test_kept_entries_trained_with_all_of_them_are_a_full_context(tmp_path):
    def kind(**changes):
        config = CompressionConfig(**{"architecture": "select", "ratio": 1.0, **changes})
        (tmp_path / "config.json").write_text(json.dumps({"config": config.to_json()}))
        return control(tmp_path)

    assert kind() == kind(ratios=(1.0,)) == kind(architecture="none", ratio=8.0) == "full context"
    assert kind(ratio=8.0) == kind(ratio=0.0) == kind(ratio=8.0, ratios=(1.0,)) == ""
    assert kind(ratios=(1.0, 8.0)) == kind(architecture="gist") == ""


def test_the_table_shows_every_run_with_its_differences(runs):
    of, full, zero = runs
    header, ours, first, second, _, note = table(compare(of, [full, zero], 500, 0)).splitlines()
    assert header.split() == ["F1", "EM", "F1", "difference", "EM", "difference", "of", "its", "F1"]
    assert ours.split() == [str(of), "0.500", "0.250"]
    assert "-0.250 [-0.500, +0.000]" in first and first.endswith("66.7 % [50.0, 100.0]")
    assert "+0.500 [+0.500, +0.500]" in second and "%" not in second
    assert note.startswith("4 questions")


def test_the_order_of_rows_does_not_matter(tmp_path, rng):
    f1, em = rng.random((2, 20)).tolist()
    of = write_run(tmp_path / "of", f1, em)
    other = rng.random(20).tolist()
    runs = [
        write_run(tmp_path / name, other, other, order)
        for name, order in (("sorted", None), ("shuffled", rng.permutation(20).tolist()))
    ]
    by_order = list(compare(of, runs, 200, 0)["with"].values())
    assert by_order[0] == by_order[1]
    assert by_order[0]["f1_difference"] == pytest.approx(np.mean(f1) - np.mean(other))


def test_another_set_of_questions_is_refused(runs, tmp_path):
    fewer = write_run(tmp_path / "fewer", [1.0] * 3, [1.0] * 3)
    for pair in ((runs[0], fewer), (fewer, runs[0])):
        with pytest.raises(DataError, match=r"predictions\.json differ in 1 questions.*'q3'.*seed"):
            compare(pair[0], [pair[1]], 10, 0)


@pytest.mark.parametrize("change", [{"question": "Who?"}, {"answers": ["b", "c"]}])
def test_other_questions_or_answers_under_the_same_ids_are_refused(runs, change):
    rows = json.loads((runs[0] / "predictions.json").read_text())
    rows = [{**row, "answers": ["b"]} for row in rows]
    for run in runs[:2]:
        (run / "predictions.json").write_text(json.dumps(rows))
    compare(runs[0], [runs[1], runs[2]], 10, 0)  # the third names no answers
    rows[2] |= change
    (runs[1] / "predictions.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="differ in 1 questions, such as 'q2'"):
        compare(runs[0], [runs[1]], 10, 0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[{",
        "{}",
        "[]",
        "3",
        "[3]",
        '{"id": "q0"}',
        '[{"id": "q0", "f1": 1, "em": 1}]',
        '[{"id": "q0", "context_id": 0, "f1": "1", "em": 1}]',
        '[{"id": ["q0"], "context_id": 0, "f1": 1, "em": 1}]',
        json.dumps([{"id": "q0", "context_id": 0, "f1": 1, "em": 1}] * 2),
        '[{"id": "q0", "context_id": 0, "f1": NaN, "em": 1}]',
        '[{"id": "q0", "context_id": 0, "f1": 1, "em": 100}]',
        b"\xff",
    ],
)
def test_a_file_that_cannot_be_used_is_named(content, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "predictions.json").write_bytes(data)
    with pytest.raises(DataError, match=r"predictions\.json cannot be read .*finished run"):
        read_predictions(tmp_path)


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "gistjax.compare", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_the_command_prints_one_json_line(runs):
    of, full, zero = runs
    done = command(
        "--of",
        of,
        "--with",
        full,
        f"--with={zero}",
        "--config.seed=3",
        "--config.evaluation.bootstrap_samples=1",
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout) == compare(of, [full, zero], samples=1, seed=3)


def test_runs_without_their_flags_are_told_of_them():
    values = flags.FlagValues()
    define_flags(values)
    with pytest.raises(ConfigError, match="'runs/a'.* a path stands after --of or --with"):
        parse(["compare", "runs/a", "runs/b"], lambda argv: CompressionConfig(), values)


def test_mistakes_exit_with_2_and_no_traceback(runs):
    for words, says in (
        (["--of", runs[0]], "which runs"),
        (["--with", runs[0]], "which runs"),
        (["--of", runs[0], "--with", runs[0].parent / "nowhere"], "nowhere/predictions.json"),
    ):
        done = command(*words)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and says in done.stderr
        assert "Traceback" not in done.stderr

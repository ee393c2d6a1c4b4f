import csv
import io
import json

import pytest

from gistjax.config import CompressionConfig, DataConfig, OptimizerConfig
from gistjax.errors import DataError
from gistjax.reporting.runs import find_runs
from gistjax.reporting.tables import cell, same_questions, table, to_csv, to_markdown, varied
from tests.helpers.made_runs import put, write_run


def test_compressors_stand_before_controls_and_the_untuned_base_is_last(sweep):
    columns, rows = table(find_runs([sweep]))
    assert [row["run"] for row in rows[:2]] == ["M32_conv", "M64_conv"]
    assert [row["architecture"] for row in rows[-3:]] == [
        "closed book",
        "full context",
        "full context, untuned",
    ]
    assert rows[-1]["f1"] == 0.5
    by_run = {row["run"]: row for row in rows}
    assert by_run["M64_mean_pool"]["retained"] == pytest.approx(2 / 3)
    assert by_run["M64_gist"]["slots"] == 64 and by_run["full_context"]["slots"] is None
    assert by_run["M64_gist"]["compress_ms"] == 1.0
    assert rows[-3]["compress_ms"] is rows[-2]["compress_ms"] is None
    keys = [column.key for column in columns]
    assert "shuffled_f1" not in keys, "empty columns are left out"


def test_every_value_of_a_row_is_its_own(tmp_path):
    config = CompressionConfig(architecture="gist", target_length=16, seed=7)
    write_run(tmp_path, "run", config, 2, shuffled_f1=0.05)
    write_run(tmp_path, "whole", CompressionConfig(architecture="none", seed=7), 3)
    columns, (row, *_) = table(find_runs([tmp_path]))
    shown = {column.title: cell(column, row) for column in columns}
    assert shown == {
        "run": "run",
        "F1": "0.667",
        "F1 95 %": "[0.567, 0.767]",
        "architecture": "gist",
        "M": "16",
        "effective ratio": "31.2",
        "of full context": "67%",
        "compress ms": "1.00",
        "answer ms": "2.00",
        "EM": "0.333",
        "EM 95 %": "[0.283, 0.403]",
        "nominal ratio": "32",
        "F1, wrong slots": "0.050",
        "compressor parameters": "10,000",
        "trained parameters": "12,345",
        "questions": "3",
        "steps": "20",
        "seed": "7",
    }
    markdown = to_markdown(columns, [row]).splitlines()[2].split(" | ")
    assert markdown[9] == "0.333" and "[0.283, 0.403]" not in markdown, "EM 95 % is not for papers"
    [line] = csv.DictReader(io.StringIO(to_csv(columns, [row])))
    numbers = [float(line[key]) for key in ("f1_low", "f1_high", "em", "em_low", "em_high")]
    assert numbers == pytest.approx([2 / 3 - 0.1, 2 / 3 + 0.1, 1 / 3, 1 / 3 - 0.05, 1 / 3 + 0.07])


def test_the_untuned_base_has_its_own_scores(sweep):
    row = table(find_runs([sweep]))[1][-1]
    assert (row["run"], row["f1"], row["f1_interval"], row["em"]) == (
        "untuned",
        0.5,
        [0.4, 0.6],
        0.4,
    )


def test_sizes_are_sorted_as_numbers(tmp_path):
    for slots in (128, 64, 8, 32):
        write_run(tmp_path, f"M{slots}", CompressionConfig(target_length=slots), 1)
    names = [row["run"] for row in table(find_runs([tmp_path]))[1]]
    assert names == ["M8", "M32", "M64", "M128", "untuned"]


def test_what_a_sweep_varies_is_a_column(tmp_path):
    for name, weight in (("a", 0.5), ("b", 1.0)):
        weights = {"teacher_forcing": weight, "generation": 0.0, "contrastive": 0.2}
        config = CompressionConfig(loss_weights=weights, init_from=name, log_every=len(name))
        write_run(tmp_path, name, config, 1)
    results = find_runs([tmp_path])
    assert varied(results) == ["loss_weights.teacher_forcing"]
    columns, rows = table(results)
    assert [row["loss_weights.teacher_forcing"] for row in rows[:2]] == [0.5, 1.0]
    assert "teacher forcing" in [column.title for column in columns]


def test_runs_on_other_questions_are_not_compared(sweep):
    results = find_runs([sweep])
    assert same_questions(results)
    rows = json.loads((sweep / "full_context" / "predictions.json").read_text())
    put(
        sweep / "full_context" / "predictions.json",
        [{**row, "id": "x" + row["id"]} for row in rows],
    )
    results = find_runs([sweep])
    assert not same_questions(results)
    assert all(row.get("retained") is None for row in table(results)[1])


@pytest.mark.parametrize("change", [{"question": "Other?"}, {"answers": ["other"]}])
def test_questions_are_the_same_with_text_and_golds(sweep, change):
    rows = json.loads((sweep / "full_context" / "predictions.json").read_text())
    put(sweep / "full_context" / "predictions.json", [*rows[:2], {**rows[2], **change}])
    assert not same_questions(find_runs([sweep]))


def test_runs_on_other_contexts_are_not_compared(tmp_path):
    filled, whole = (DataConfig(context=context) for context in ("filled", "paragraph"))
    write_run(tmp_path, "filled", CompressionConfig(architecture="none", data=filled), 2)
    write_run(tmp_path, "whole", CompressionConfig(architecture="none", data=whole), 3)
    write_run(tmp_path, "slots", CompressionConfig(data=whole), 1)
    retained = {row["run"]: row.get("retained") for row in table(find_runs([tmp_path]))[1]}
    assert retained["slots"] == pytest.approx(1 / 3)
    assert retained["filled"] is None and retained["whole"] is None


def test_markdown_is_a_table(sweep):
    lines = to_markdown(*table(find_runs([sweep]))).splitlines()
    assert len(lines) == 2 + 11 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| M32_conv | 0.000 | [-0.100, 0.100] | conv | 32 | 15.6 |")


def test_a_name_breaks_no_table(tmp_path):
    write_run(tmp_path, "a|b\nc,d", CompressionConfig(), 1)
    columns, rows = table(find_runs([tmp_path]))
    lines = to_markdown(columns, rows).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| a\\|b c,d | 0.333 |")
    assert next(csv.DictReader(io.StringIO(to_csv(columns, rows))))["run"] == "a|b\nc,d"


def test_csv_has_everything_in_full_precision(sweep):
    rows = list(csv.DictReader(io.StringIO(to_csv(*table(find_runs([sweep]))))))
    assert len(rows) == 11
    gist = next(row for row in rows if row["run"] == "M64_gist")
    assert float(gist["f1"]) == 1 / 3 and float(gist["f1_high"]) == pytest.approx(1 / 3 + 0.1)
    assert gist["trainable_parameters"] == "12345"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.json", "{", "metrics.json cannot be read"),
        ("predictions.json", "{}", "predictions.json does not hold a list"),
        ("config.json", "{}", "config.json is not that of a run"),
    ],
)
def test_damaged_runs_are_named(sweep, file, content, says):
    (sweep / "M32_gist" / file).write_text(content)
    with pytest.raises(DataError, match=rf"M32_gist/{says}"):
        find_runs([sweep])


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("metrics", lambda v: {**v, "final_f1": None}, "damaged final_f1"),
        ("metrics", lambda v: {**v, "final_f1": float("nan")}, "damaged final_f1"),
        ("metrics", lambda v: {**v, "final_em": "0.5"}, "damaged final_em"),
        ("metrics", lambda v: {**v, "n_examples": True}, "damaged n_examples"),
        ("metrics", lambda v: {**v, "final_f1_interval": [0.1]}, "damaged final_f1_interval"),
        ("metrics", lambda v: {**v, "wall_time_per_sample_s": 3}, "damaged wall_time_per_sample_s"),
        ("metrics", lambda v: {**v, "by_type": [1]}, "damaged by_type"),
        ("metrics", lambda v: {**v, "by_type": {"date": {"n": 1}}}, "damaged by_type"),
        ("predictions", lambda v: [v[0], 3], "damaged row 1"),
        ("predictions", lambda v: [{**v[0], "f1": None}], "damaged row 0"),
        ("predictions", lambda v: [{k: x for k, x in v[0].items() if k != "id"}], "damaged row 0"),
        ("predictions", lambda v: [{**v[0], "answers": None}], "damaged row 0"),
        ("predictions", lambda v: [{**v[0], "score": "0.5"}], "damaged row 0"),
        ("predictions", lambda v: [{**v[0], "score": float("nan")}], "damaged row 0"),
        ("predictions", lambda v: [{**v[0], "task": ["nq"]}], "damaged row 0"),
        ("slot_attention", lambda v: [{**v[0], "words": ["a"]}], "damaged context 0"),
        ("slot_attention", lambda v: [{**v[0], "weights": [[1], [1, 2]]}], "damaged context 0"),
        ("slot_attention", lambda v: [v[0], 3], "damaged context 1"),
    ],
)
def test_a_damaged_field_is_named(sweep, file, change, says):
    path = sweep / "M32_gist" / f"{file}.json"
    put(path, change(json.loads(path.read_text())))
    with pytest.raises(DataError, match=rf"M32_gist/{file}.json has a {says}: make that run again"):
        find_runs([sweep])


def test_no_run_and_two_of_one_name(tmp_path):
    with pytest.raises(DataError, match="no run in .*--runs takes"):
        find_runs([tmp_path])
    for folder in ("a", "b"):
        write_run(tmp_path / folder, "same", CompressionConfig(), 1)
    with pytest.raises(DataError, match="two runs are called same"):
        find_runs([tmp_path / "a", tmp_path / "b"])


def test_samples_stand_in_for_predictions_that_are_not_there(sweep):
    (sweep / "M32_gist" / "predictions.json").rename(sweep / "M32_gist" / "sample_predictions.json")
    run = next(result for result in find_runs([sweep]) if result.name == "M32_gist")
    assert len(run.predictions) == 3


def test_a_selection_of_tokens_is_no_full_context(tmp_path):
    data = DataConfig(select="first")
    write_run(tmp_path, "first", CompressionConfig(architecture="none", data=data), 2)
    write_run(tmp_path, "M64", CompressionConfig(), 1)
    rows = table(find_runs([tmp_path]))[1]
    assert [row["architecture"] for row in rows] == [
        "gist",
        "first tokens",
        "full context, untuned",
    ]
    assert all(row.get("retained") is None for row in rows)


def test_kept_entries_trained_with_all_of_them_are_the_full_context(tmp_path):
    kept = CompressionConfig(architecture="select", ratio=8.0, ratios=(1.0, 8.0))
    write_run(tmp_path, "kept", kept, 2)
    write_run(tmp_path, "all", kept.replace(ratio=1.0, ratios=(1.0,)), 3)
    columns, rows = table(find_runs([tmp_path]))
    assert [row["architecture"] for row in rows] == [
        "select",
        "full context",
        "full context, untuned",
    ]
    assert rows[0]["retained"] == pytest.approx(2 / 3)
    assert (rows[1]["control"], rows[1]["compresses"], rows[1]["compress_ms"]) == (True, False, 1.0)
    assert "ratios" not in [column.key for column in columns], "a control is no part of the sweep"


def test_a_sweep_of_more_settings_than_columns_shows_the_first(tmp_path):
    for name, n in (("a", 1), ("b", 2)):
        changes = {"epochs": n, "max_steps": n, "ratio": n, "batch_size": n, "accumulation": n}
        optimizer = OptimizerConfig(compressor_lr=n, lora_lr=n, weight_decay=n)
        config = CompressionConfig(optimizer=optimizer, spike_factor=n, **changes)
        write_run(tmp_path, name, config, 1)
    assert len(varied(find_runs([tmp_path]))) == 8


def test_unfinished_runs_have_a_name_and_a_curve(sweep):
    (sweep / "M32_gist" / "metrics.json").unlink()
    with (sweep / "M32_gist" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # half written
    result = next(result for result in find_runs([sweep]) if result.name == "M32_gist")
    assert not result.scored and len(result.curve) == 20
    assert "M32_gist" not in [row["run"] for row in table(find_runs([sweep]))[1]]

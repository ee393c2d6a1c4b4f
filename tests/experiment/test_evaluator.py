from gistjax.experiment import evaluator
from gistjax.experiment.run_dir import RunDir


def test_metrics_which_mark_a_run_as_finished_are_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(evaluator, "write_json", lambda path, *_, **__: written.append(path.name))
    result = evaluator.EvalResult({"final_f1": 0.5}, [{"f1": 0.5}], [{"slot": 0}])
    result.write(RunDir(tmp_path), 3, 1)
    assert written[-1] == "metrics.json" and len(written) == 4

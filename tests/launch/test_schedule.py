import json
import multiprocessing
from pathlib import Path

import pytest

from gistjax.errors import ConfigError
from gistjax.sweep import Run
from launch.board import cells, clock, progress
from launch.schedule import (
    BLOCKED,
    FAILED,
    FINISHED,
    LOSSES,
    WAITING,
    Ended,
    Job,
    ready,
    sole_sweep,
)


@pytest.fixture
def job(tmp_path):
    return new_job(tmp_path, "a")


def new_job(folder, name, *after):
    (folder / name).mkdir()
    return Job(Run(name, "configs/seed/ablation.py", (), folder / name, after))


def finish(job):
    (job.run.workdir / "metrics.json").write_text('{"final_f1": 0.5}')


def save(job, step):
    (job.run.workdir / "checkpoint" / str(step)).mkdir(parents=True)


def test_a_run_that_succeeds_is_finished(job):
    job.submit()
    finish(job)
    job.end(Ended(0))
    assert job.state == FINISHED and not list(ready({"a": job}))


def test_success_without_results_is_a_failure(job):
    job.submit()
    job.end(Ended(0, "the tail"))
    assert job.state == WAITING and job.failures == 1 and job.tail == "the tail"


def test_two_failures_in_a_row_set_a_run_aside(job):
    job.end(Ended(1))
    assert job.state == WAITING
    job.end(Ended(-9))
    assert job.state == FAILED and job.why == "exit code -9"


def test_a_run_that_gets_further_is_tried_again(job):
    for step in range(1, 6):
        save(job, step)
        job.end(Ended(1))
        assert job.state == WAITING
    job.end(Ended(1))
    assert job.state == FAILED


def test_half_written_checkpoints_do_not_count(job):
    (job.run.workdir / "checkpoint" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    job.end(Ended(1))
    job.end(Ended(1))
    assert job.state == FAILED


def test_a_mistake_of_the_users_is_not_tried_again(job):
    job.end(Ended(2))
    assert job.state == FAILED


def test_a_run_that_was_asked_to_stop_has_not_failed(job):
    for _ in range(3):
        job.end(Ended(75))
    assert job.state == WAITING and job.failures == 0


def test_lost_workers_are_not_the_runs_failures_but_have_an_end(job):
    for _ in range(LOSSES - 1):
        job.end(Ended(None))
    assert job.state == WAITING and job.failures == 0
    job.end(Ended(None))
    assert job.state == FAILED


def test_a_worker_lost_after_the_results_were_written_costs_nothing(job):
    finish(job)
    job.end(Ended(None))
    assert list(ready({"a": job})) == [] and job.state == FINISHED


def test_a_stage_waits_for_the_one_that_it_starts_from(tmp_path):
    jobs = {"a": new_job(tmp_path, "a"), "b": new_job(tmp_path, "b", "a")}
    assert [job.run.name for job in ready(jobs)] == ["a"]
    finish(jobs["a"])
    jobs["a"].end(Ended(0))
    assert [job.run.name for job in ready(jobs)] == ["b"]


def test_stages_behind_a_failed_one_are_blocked_with_the_cause(tmp_path):
    jobs = {
        name: new_job(tmp_path, name, *after)
        for name, after in (("a", ()), ("b", ("a",)), ("c", ("b",)))
    }
    jobs["a"].end(Ended(2))
    assert not list(ready(jobs))
    assert [job.state for job in jobs.values()] == [FAILED, BLOCKED, BLOCKED]
    assert jobs["b"].why == "it needs a, which failed"


def test_a_stage_whose_first_is_not_in_the_sweep_starts(tmp_path):
    jobs = {"b": new_job(tmp_path, "b", "a")}
    assert [job.run.name for job in ready(jobs)] == ["b"]


def _hold(folder, held, release):
    with sole_sweep(Path(folder)):
        held.set()
        release.wait(60)


@pytest.mark.slow
def test_two_sweeps_in_one_folder_are_refused_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    assert held.wait(60)
    with (
        pytest.raises(ConfigError, match=rf"process {other.pid} on \S+\): wait.*--out"),
        sole_sweep(tmp_path),
    ):
        pass
    other.kill()
    other.join()
    with sole_sweep(tmp_path):
        pass


def test_the_table_reads_run_directories_that_are_being_written(job):
    assert progress(job.run.workdir) == {}
    job.submit()
    assert cells(job) == ("a", "submitted", "", "", "", "", "")
    rows = [
        {"step": 10, "total_steps": 100, "loss": 2.5, "step_s": 40.0},
        {"step": 20, "total_steps": 100, "loss": 1.5, "step_s": 45.0},
        {"step": 20, "f1": 0.25},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (job.run.workdir / "metrics.jsonl").write_text(lines + '{"step": 3')  # a line half written
    job.started.write_text('{"host": "node1", "devices": "GPU 2"}')
    assert cells(job) == ("a", "running", "20/100", "1:00:00", "1.500", "0.250", "node1 GPU 2")
    job.submit()
    assert cells(job)[1] == "submitted (2)", "the file of the attempt before is no sign of work"
    finish(job)
    job.end(Ended(0))
    assert cells(job)[1:] == ("finished (2)", "20/100", "", "1.500", "0.500", "")


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3_725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_a_file_is_no_folder_for_a_sweep(tmp_path):
    (tmp_path / "out").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot be a sweep's folder: File exists"),
        sole_sweep(tmp_path / "out"),
    ):
        pass

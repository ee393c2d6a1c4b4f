"""A load test of a server in this process, on pages of a tiny file in SQuAD's form."""

import json
import threading
import time

import pytest
from absl import flags

import gistjax
from gistjax.errors import ConfigError, DataError
from gistjax.runtime import cli
from gistjax.serving.server import Listening, Server, bind
from launch import load, load_store
from launch.asked_file import Question, read_asked
from tests.helpers.runs import SELECTED, write_run

WORDS = ("mill", "pump", "harbour", "wheel")


def paragraph(word):
    context = f"The {word} was built by Anneke Dursel in the year of the flood."
    gold = {"text": "Anneke Dursel", "answer_start": context.index("Anneke")}
    none = {"question": "Without an answer?", "answers": []}
    apart = {"question": "Xylophones?", "answers": [gold]}
    return {
        "context": context,
        "qas": [{"question": f"Who built the {word}?", "answers": [gold]}, none, apart],
    }


@pytest.fixture(scope="module")
def call():
    """Runs a program in this process; returns what it prints."""

    def called(main, define_flags, *words):
        values, printed = flags.FlagValues(), []
        define_flags(values)
        values(["program", *words])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "print_result", printed.append)
            main(values)
        return printed[0]

    return called


@pytest.fixture(scope="module")
def filled(tmp_path_factory, call):
    """Folder of a store, its run, the file of what is asked, and what filling it printed."""
    folder = tmp_path_factory.mktemp("load")
    articles = [{"paragraphs": [paragraph(word) for word in WORDS]}]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    run = write_run(folder / "run", SELECTED)
    words = [f"--run={run}", f"--data={folder}/squad.json", f"--store={folder}/store"]
    words += [f"--asked={folder}/asked.json", "--page_tokens=60"]

    def fill(pages):
        def main(values):
            load_store.main(SELECTED, values)

        return call(main, load_store.define_flags, *words, f"--pages={pages}")

    return folder, fill


@pytest.fixture(scope="module")
def url(filled):
    """Address of a server on the store."""
    folder, fill = filled
    fill(2)
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    store = gistjax.Store(folder / "store", gistjax.load(folder / "run"))
    server = Server(store, Listening("127.0.0.1", port))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.worker.stop()
    thread.join(20)


def test_a_question_is_on_the_page_that_has_its_answer(filled):
    folder, fill = filled
    found = fill(2)
    pages, questions = read_asked(folder / "asked.json")
    assert found["pages"] == len(pages) == 2 and found["questions"] == len(questions) > 0
    assert found["bytes"] > 0 and found["tokens"] > 0
    assert found["left_out"] == len(questions)  # one in two has no word of its page
    for question in questions:
        word = question.text.removeprefix("Who built the ").removesuffix("?")
        assert f"The {word} was built by Anneke Dursel" in pages[question.page]
        assert question.golds == ("Anneke Dursel",)
    with pytest.raises(DataError, match="set --pages to as many or fewer"):
        fill(50)


def test_every_request_is_counted_by_what_came_of_it(filled, url, call):
    folder, _ = filled
    words = [f"--asked={folder}/asked.json", f"--url={url}/", "--clients=4", "--requests=21"]
    words += [f"--since={time.time() - 100}"]
    found = call(load.main, load.define_flags, *words, "--warm_up=3")
    assert (found["requests"], found["errors"]) == (21, {})
    assert found["device"].endswith("x cpu") and 100 < found["first_answer_s"] < 200
    latency = found["latency_s"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert found["questions_per_s"] == pytest.approx(21 / found["seconds"], rel=0.01)
    assert 0 <= found["f1"] <= 1 and found["tokens_an_answer"] > 0


def test_what_fails_is_told_by_its_status_and_scores_nothing(filled, url):
    folder, _ = filled
    _, (one, *_) = read_asked(folder / "asked.json")
    nowhere = Question(one.text, "no such page", one.golds)
    replies = load.run(load.Load(url, [one, nowhere], False, clients=2, requests=6), 1)
    found = load.summary(replies)
    assert (found["requests"], found["errors"]) == (6, {"400": 3})
    everywhere = load.Load(url, [nowhere], True, clients=2, requests=3)
    assert load.summary(load.run(everywhere, 1))["errors"] == {}
    silent = load.Load("http://127.0.0.1:9", [one], False, clients=1, requests=2)
    found = load.summary(load.run(silent, 1))
    assert (found["errors"], found["f1"]) == ({"ClientConnectorError": 2}, None)
    with pytest.raises(ConfigError, match="ClientConnectorError.*start the server"):
        load.asyncio.run(load.await_answer(silent, 0.0))


def test_time_ends_a_load_and_processes_share_it(filled):
    _, questions = read_asked(filled[0] / "asked.json")
    whole = load.Load("", questions * 2, False, clients=5, requests=11, seconds=0.0)
    assert list(load.asked(whole)) == []
    assert len(list(load.asked(whole._replace(seconds=60.0)))) == 11
    parts = whole.parts(2)
    assert [part.clients for part in parts] == [3, 2]
    assert [part.requests for part in parts] == [6, 5]
    assert sum(len(part.questions) for part in parts) == len(whole.questions)

"""Questions to a document: one, a list, and what stays in memory."""

import threading

import pytest

import gistjax
from gistjax.errors import DataError
from gistjax.inference.document import KEPT_STATES, QUESTION_TOKENS
from gistjax.inference.recent import Recent


@pytest.mark.slow
def test_a_list_of_questions_gets_a_list_of_answers(engine, examples):
    document = engine.compress(examples[0].context)
    asked = [example.question for example in examples]
    answers = document.ask(asked)
    assert [answer.text for answer in answers] == [document.ask(one).text for one in asked]
    assert all(isinstance(answer, gistjax.Answer) for answer in document.ask(tuple(asked[:1])))
    assert document.ask([]) == []
    with pytest.raises(DataError, match="question must be one text .* not int"):
        document.ask(["Who?", 1])


def test_an_answer_tells_its_cost(engine, examples):
    answer = engine.compress(examples[0].context).ask("Who wrote it?")
    assert 1 <= answer.tokens <= engine.config.evaluation.max_answer_tokens
    assert answer.seconds_per_token == answer.seconds / answer.tokens > 0


@pytest.mark.slow
def test_few_decode_states_are_kept(engine, examples):
    """One for each length of question would be four."""
    document = engine.compress(examples[0].context)
    lengths = [n for n in QUESTION_TOKENS[:3] for _ in range(2)]
    first = document.ask("Who wrote it?").text
    for n in lengths:
        document.ask("why " * (n // 4 - 12))
        assert len(document._states) <= KEPT_STATES
    assert document.ask("Who wrote it?").text == first


def test_values_that_were_used_last_are_kept():
    made = []
    recent = Recent(2)

    def get(key):
        return recent.get(key, lambda: made.append(key) or key)

    assert [get(key) for key in "abacab"] == list("abacab")
    assert made == list("abcb") and len(recent) == 2


def test_threads_make_a_value_once():
    made, recent, start = [], Recent(2), threading.Barrier(4)

    def work():
        start.wait()
        recent.get("a", lambda: made.append(1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]

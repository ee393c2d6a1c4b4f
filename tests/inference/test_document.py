"""Questions to a document: one, a list, and what stays in memory."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

import gistjax
from gistjax.compress.decoding import Written
from gistjax.errors import ConfigError, DataError
from gistjax.experiment.confidence import Calibration
from gistjax.inference.document import KEPT_STATES, QUESTION_TOKENS
from gistjax.inference.recent import Recent


def written(ids):
    """What a program says of one row."""
    return Written(np.array([ids]), np.array([-0.7]))


@pytest.mark.slow
def test_a_list_of_questions_gets_a_list_of_answers(engine, examples):
    document = engine.compress(examples[0].context)
    asked = [example.question for example in examples]
    answers = document.ask(asked)
    assert [answer.text for answer in answers] == [document.ask(one).text for one in asked]
    assert all(isinstance(answer, gistjax.Answer) for answer in document.ask(tuple(asked[:1])))
    assert document.ask([]) == []
    with pytest.raises(DataError, match="question must be a text .* or a list of texts, not int"):
        document.ask(["Who?", 1])


def test_an_answer_tells_its_cost(engine, examples):
    answer = engine.compress(examples[0].context).ask("Who wrote it?")
    assert 1 <= answer.tokens <= engine.config.evaluation.max_answer_tokens
    assert answer.seconds_per_token == answer.seconds / answer.tokens > 0


def test_an_answer_ends_before_its_end_token_and_costs_are_counted(engine, monkeypatch):
    document, prompt = engine.compress("Ada wrote it."), engine.pretrained.prompt
    ids = prompt.encode_answer("Ada")[:-1].tolist()
    given = [*ids, prompt.end_id, prompt.end_id]
    monkeypatch.setattr(engine.programs, "prefill", lambda context, room: (room, 0.25))
    monkeypatch.setattr(engine.programs, "answer", lambda state, ids, size: (written(given), 0.5))
    before = document.seconds
    answer = document.ask("Who wrote it?")
    assert (answer.text, answer.tokens, answer.seconds) == ("Ada", len(ids) + 1, 0.5)
    assert answer.score == pytest.approx(0.4966, abs=1e-4) and not answer.calibrated
    assert answer.written == "Ada" and not answer.abstained
    assert answer.positions == document.slots == 2 and document.tokens == 13
    assert answer.seconds_per_token == 0.5 / (len(ids) + 1)
    document.ask("why " * 40)
    assert document.seconds == before + 0.5, "the slots were read for two lengths of questions"
    given = ids
    assert document.ask("Who wrote it?").tokens == len(ids), "cut off by the most tokens"


def test_below_the_threshold_an_answer_is_withheld_and_stays_to_be_read(engine, monkeypatch):
    document, prompt = engine.compress("Ada wrote it."), engine.pretrained.prompt
    given = [*prompt.encode_answer("Not in the text.").tolist()]
    monkeypatch.setattr(engine.programs, "answer", lambda state, ids, size: (written(given), 0.5))
    monkeypatch.setattr(engine, "calibration", Calibration(slope=2.0, intercept=1.0))
    chance = 1 / (1 + np.exp(0.4))
    for threshold, text in ((None, "Not in the text."), (chance - 1e-6, "Not in the text."),
                            (chance + 1e-6, ""), (0, "Not in the text."), (1, "")):  # fmt: skip
        for answer in (document.ask("Who?", threshold), *document.ask(["Who?"], threshold)):
            assert (answer.text, answer.written) == (text, "Not in the text.")
            assert answer.abstained == (not text)
            assert answer.score == pytest.approx(chance) and answer.calibrated
    monkeypatch.setattr(engine, "abstention", "not in the text")
    answer = document.ask("Who?")
    assert answer.abstained and answer.written == "Not in the text.", "in the words of its task"
    for wrong in (-0.1, 1.1, float("nan"), "0.5", True, [0.5]):
        with pytest.raises(ConfigError, match="give a chance of being right from 0"):
            document.ask([], wrong)


def test_a_threshold_takes_a_calibration(engine):
    with pytest.raises(ConfigError, match="no calibration .*gistjax.calibrate"):
        engine.compress("Ada wrote it.").ask("Who?", 0.5)


def test_a_question_takes_the_positions_that_the_context_leaves(engine):
    document = engine.compress("Ada wrote it.")
    for left in (64, 100):
        taken = np.array([engine.max_tokens + 64 - left], np.float32)
        full = dataclasses.replace(
            document, context=dataclasses.replace(document.context, length_B=taken)
        )
        assert full.question_size(left) == 64 * (1 + (left > 64))
        with pytest.raises(DataError, match=f"{left + 1} tokens, .* room for {left} behind"):
            full.question_size(left + 1)


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


def test_values_stay_within_a_size_and_may_grow_while_they_are_used():
    recent = Recent(10, len)
    first = recent.get("first", lambda: [0] * 4)
    recent.get("second", lambda: [0] * 6)
    assert recent.get("first", list) is first and len(recent) == 2
    first.append(0)
    recent.get("third", lambda: [0])  # 5 and 6 are too many
    assert recent.values() == [first, [0]]
    whole = recent.get("whole", lambda: [*recent.get("part", lambda: [0] * 3), *[0] * 9])
    assert recent.values() == [whole]  # alone it is too large, and stays


@pytest.mark.slow
def test_a_document_tells_what_it_takes_in_memory(engine, examples):
    document = engine.compress(examples[0].context)
    assert document.held_bytes == document.resident_bytes > 0
    document.ask("Who wrote it?")
    (state,) = document._states.values()
    read = sum(x.nbytes for x in jax.tree.leaves(state))
    assert document.held_bytes - document.resident_bytes == read > 0


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

"""Questions on several documents at once: the answers of one at a time."""

import gc
import threading
import weakref

import numpy as np
import pytest

import gistjax
from gistjax.compress.decoding import Written
from gistjax.errors import DataError
from gistjax.inference import asking
from gistjax.inference.asking import BATCHES, rows_of
from tests.helpers.asked import answer_ids
from tests.helpers.runs import KNORM, write_run

TEXTS = [
    "The mill was built in 1783 by Anneke Dursel. It burned down twice. " * 3,
    "Ostrel is a port. Its harbour was dredged in 1902.",
    "The pump is cleaned every spring, and its filter is changed in autumn. " * 6,
]
ASKED = [
    (0, "Who built the mill?"),
    (1, "When was the harbour dredged?"),
    (2, "When is the filter changed? " * 12),  # padded further
    (0, "How often did it burn down?"),
    (2, "What is cleaned every spring?"),
]


def both(engine, documents):
    """Answers of all questions together, and of one after another."""
    asked = [(documents[number], question) for number, question in ASKED]
    together = asking.answer_ids(engine, asked)
    return together, [answer_ids(document, question) for document, question in asked]


def same(together, alone):
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [answer.log_probability for answer in together] == pytest.approx(
        [answer.log_probability for answer in alone], abs=1e-4
    )


@pytest.mark.parametrize("bits", [None, 4])
def test_entries_of_several_documents_are_asked_together(selecting, bits):
    documents = selecting.compress_many(TEXTS, bits=bits)
    together, alone = both(selecting, documents)
    same(together, alone)
    scores = [answer.log_probability for answer in alone]
    assert np.abs(np.subtract.outer(scores, scores))[np.triu_indices(len(scores), 1)].min() > 1e-3
    assert len(selecting.pool) == len(TEXTS)
    answers = selecting.ask([(documents[1], ASKED[1][1]), (documents[0], ASKED[0][1])])
    assert [answer.positions for answer in answers] == [documents[1].slots, documents[0].slots]


def test_documents_of_every_kind_share_a_batch(selecting, tmp_path):
    plain, other, coded = (
        selecting.compress(TEXTS[i], bits=b) for i, b in ((0, None), (1, 8), (2, 3))
    )
    coded.save(tmp_path / "coded")
    kinds = [plain, other, selecting.open(tmp_path / "coded"), selecting.join([plain, coded])]
    asked = [(document, "What is it?") for document in kinds]
    same(asking.answer_ids(selecting, asked), [answer_ids(*one) for one in asked])


def test_slots_of_several_documents_are_asked_together(engine, monkeypatch):
    documents = engine.compress_many(TEXTS)
    same(*both(engine, documents))
    monkeypatch.setattr(asking, "POOL_BYTES", 1)  # no room for a second cache
    assert asking._room(documents[0], 64) == 1
    same(*both(engine, documents))


def test_a_batch_is_more_than_half_full():
    assert [rows_of(n) for n in (1, 2, 3, 5, 8, 9, 32, 33, 500)] == [1, 1, 4, 4, 4, 16, 16, 64, 64]


def test_many_questions_go_in_few_shapes(selecting, monkeypatch):
    document, sizes, answer = selecting.compress(TEXTS[0]), [], selecting.programs.answer

    def noted(state, ids, size):
        sizes.append(len(ids))
        written, _ = answer(state, ids, size)
        return written, 1.0

    monkeypatch.setattr(selecting.programs, "answer", noted)
    alone = answer_ids(document, ASKED[0][1])
    for number in (3, BATCHES[-1] + 1):
        asked = [(document, ASKED[0][1])] * number
        together = asking.answer_ids(selecting, asked)
        same(together, [alone] * number)
    assert sizes == [1, 4, BATCHES[-1], 1]
    assert sum(answer.seconds for answer in together) == pytest.approx(2)


def test_each_question_gets_the_answer_of_its_row(selecting, monkeypatch):
    """Whatever order rows have in their batches."""
    documents, prompt = selecting.compress_many(TEXTS), selecting.pretrained.prompt

    def told(state, ids, size):
        lengths = np.array([[len(own)] for own in ids])
        return Written(lengths, np.zeros(len(ids))), 0.0

    monkeypatch.setattr(selecting.programs, "answer", told)
    asked = [(documents[i % 3], "why " * (1 + 5 * i % 23)) for i in range(23)]
    answers = asking.answer_ids(selecting, asked)
    expected = [[len(prompt.encode_question(question))] for _, question in asked]
    assert [answer.ids for answer in answers] == expected
    assert len({one for (one,) in expected}) == 23


def test_threads_ask_documents_that_are_new_together(selecting):
    documents = selecting.compress_many(TEXTS)
    alone = [answer_ids(document, "What is it?") for document in documents]
    found = {}

    def ask(number):
        for _ in range(5):
            fresh = [selecting.join([document]) for document in documents]
            asked = [(document, "What is it?") for document in fresh]
            found.setdefault(number, []).append(asking.answer_ids(selecting, asked))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers in (one for of in found.values() for one in of):
        same(answers, alone)
    assert sum(map(len, found.values())) == 20


def test_what_cannot_be_asked_is_refused(selecting, engine):
    document = selecting.compress(TEXTS[0])
    for wrong, message in (
        ([(document, "Who?"), (engine.compress(TEXTS[0]), "Who?")], "of another compressor"),
        ([(document, "Who?"), (document, "why " * 600)], "shorten it"),
        ((document, "Who?"), "must be a pair"),
        ([("text", "Who?")], "must be a pair"),
        ([(document, "Who?", 1)], "must be a pair"),
    ):
        with pytest.raises(DataError, match=message):
            selecting.ask(wrong)
    for wrong in (None, 3, "Who?"):
        with pytest.raises(DataError, match="takes a list of pairs"):
            selecting.ask(wrong)
    for wrong in (None, "text"):
        with pytest.raises(DataError, match="takes a list of texts"):
            selecting.compress_many(wrong)
    assert len(selecting.compress_many(text for text in TEXTS)) == len(TEXTS)
    assert selecting.ask([]) == [] == selecting.ask(iter([]))
    assert len(selecting.ask((document, "Who?") for _ in range(2))) == 2


def test_an_engine_is_gone_with_its_last_name(tmp_path):
    engine = gistjax.load(write_run(tmp_path / "run", KNORM))
    engine.ask([(document, "Who?") for document in engine.compress_many(TEXTS)])
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(engine)
        del engine
        assert gone() is None
    finally:
        gc.enable()

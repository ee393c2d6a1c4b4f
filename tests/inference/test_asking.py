"""Questions on several documents at once: the answers of one at a time."""

import pytest

from gistjax.errors import DataError
from gistjax.inference.asking import BATCHES

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
    together = engine.asking.answer_ids(asked)
    return together, [document.answer_ids(question) for document, question in asked]


def same(together, alone):
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [answer.log_probability for answer in together] == pytest.approx(
        [answer.log_probability for answer in alone], abs=1e-4
    )


@pytest.mark.parametrize("bits", [None, 4])
def test_entries_of_several_documents_are_asked_together(selecting, bits):
    documents = selecting.compress_many(TEXTS, bits=bits)
    same(*both(selecting, documents))
    assert len(selecting.asking.pool) == len(TEXTS)
    answers = selecting.ask([(documents[1], ASKED[1][1]), (documents[0], ASKED[0][1])])
    assert [answer.positions for answer in answers] == [documents[1].slots, documents[0].slots]


def test_slots_of_several_documents_are_asked_together(engine):
    same(*both(engine, engine.compress_many(TEXTS)))


def test_many_questions_go_in_few_shapes(selecting, monkeypatch):
    document, sizes, answer = selecting.compress(TEXTS[0]), [], selecting.programs.answer

    def noted(state, ids, size):
        sizes.append(len(ids))
        return answer(state, ids, size)

    monkeypatch.setattr(selecting.programs, "answer", noted)
    alone = document.answer_ids(ASKED[0][1])
    for number in (3, BATCHES[-1] + 1):
        asked = [(document, ASKED[0][1])] * number
        same(selecting.asking.answer_ids(asked), [alone] * number)
    assert sizes == [1, 4, BATCHES[-1], 1]


def test_documents_of_another_engine_and_long_questions_are_refused(selecting):
    document = selecting.compress(TEXTS[0])
    whole = selecting.full_context().compress(TEXTS[0])
    with pytest.raises(DataError, match="of another engine"):
        selecting.ask([(document, "Who?"), (whole, "Who?")])
    with pytest.raises(DataError, match="shorten it"):
        selecting.ask([(document, "Who?"), (document, "why " * 600)])

"""The questions that a context is refined on."""

from gistjax.compress import refiner
from gistjax.compress.refiner import ABOUT, QUESTIONS, Refiner
from gistjax.experiment.base import find_prompt
from gistjax.runtime.sharding import make_mesh
from tests.helpers.runs import SELECTED

TEXT = (
    "The old mill of Harrow was built in 1783 by Anneke Dursel, who had come from Utrecht. "
    "In March 1812 her brothers sold the building to the town for 300 pounds."
)


def questions_of(text):
    prompt = find_prompt(SELECTED)[1]
    asks = Refiner(SELECTED, prompt, make_mesh(SELECTED.mesh), None)
    rows = asks.questions(7, prompt.encode_context(text))
    most = refiner.QUESTION_TOKENS
    assert all(row.context_id == 7 and len(row.question_ids) <= most for row in rows)
    return [prompt.decode(row.question_ids) for row in rows]


def test_questions_are_sentences_of_the_text_the_same_each_time(monkeypatch):
    monkeypatch.setattr(refiner, "QUESTION_TOKENS", 256)  # of bytes
    asked = questions_of(TEXT)
    assert asked == questions_of(TEXT)
    assert 3 <= len(asked) == len(set(asked)) <= QUESTIONS
    words = set(TEXT.replace(".", "").replace(",", "").split())
    for question in asked:
        assert " what" in question and "?" in question
        assert len(words & set(question.replace(",", "").split())) >= 4


def test_a_text_without_a_short_sentence_is_asked_one_question():
    assert len(questions_of(TEXT)) == 1
    [asked] = questions_of("x y")
    assert ABOUT in asked

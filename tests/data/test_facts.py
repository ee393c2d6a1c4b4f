import numpy as np

from gistjax.config import DataConfig
from gistjax.data import facts
from gistjax.data.dataset import load_dataset


def test_every_fact_is_told_once_and_asked_for():
    rng = np.random.default_rng(0)
    for _ in range(50):
        context, questions = facts.paragraph(rng)
        assert len(questions) == facts.FACTS == context.count(".")
        assert len({question for question, _ in questions}) == facts.FACTS
        name = next(name for name in facts.NAMES if name in context)
        assert all(name in question for question, _ in questions)
        assert all(f" {answer}." in context for _, answer in questions)


def test_the_same_rows_in_every_call_and_others_in_each_split():
    first, again = (list(facts.rows("validation")) for _ in range(2))
    assert first == again and len(first) == facts.PARAGRAPHS["validation"] * facts.FACTS
    contexts = {split: {row["context"] for row in facts.rows(split)} for split in facts.PARAGRAPHS}
    assert not contexts["train"] & contexts["validation"]


def test_all_rows_are_usable():
    data = DataConfig(path="facts", train_examples=-1, validation_examples=-1)
    squad = load_dataset(data, seed=0)
    assert len(squad.train) == 30_000 and len(squad.validation) == 1_000
    assert not squad.report.counts


def test_no_answer_can_be_guessed_often():
    assert len(facts.KINDS) == 12
    for kind in facts.KINDS:
        assert len(set(kind.values)) == len(kind.values) == 20

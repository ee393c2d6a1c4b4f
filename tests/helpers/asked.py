"""Answers as tokens."""

from gistjax.inference import asking


def answer_ids(document, question):
    """What a document's engine writes on one question."""
    (answer,) = asking.answer_ids(document.engine, [(document, question)])
    return answer

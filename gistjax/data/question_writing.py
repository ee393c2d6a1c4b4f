"""The task of writing a question to an answer: that of `data.squad` the other way round."""

from __future__ import annotations

import dataclasses

from gistjax.data import squad
from gistjax.data.example import Example

ASK = "Which question is answered by: {answer}"


def swap(example: Example) -> Example:
    """Return an example that asks for the question, given its answer."""
    question = ASK.format(answer=example.looked_up)
    return dataclasses.replace(example, question=question, answers=(example.question,))


TASK = dataclasses.replace(squad.TASK, transform=swap, unanswerable=False)

"""Made-up facts to look up: `--config.data.path=facts`, generated, not stored.

A paragraph tells ten things about four people, in short sentences of few words; each can be asked for, and nothing but the
paragraph knows the answer. It is the smallest task on which compression can succeed or fail, for a base small enough to
learn it (`tiny-facts` of `weights.registry`, `configs/quickstart.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PARAGRAPHS = {"train": 3_000, "validation": 100}
PEOPLE, FACTS = 4, 10  # of a paragraph

NAMES = (
    "Alba", "Boris", "Carla", "Diego", "Edda", "Felix", "Gina", "Hugo", "Ines", "Joris",
    "Kaya", "Lukas", "Mara", "Nils", "Olga", "Pavel", "Rosa", "Simon", "Tessa", "Viktor",
)  # fmt: skip


@dataclass(frozen=True)
class Attribute:
    """What can be told of a person, and asked for."""

    sentences: tuple[str, str]
    question: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        ("{name} lives in {value}.", "{name} has a house in {value}."),
        "Where does {name} live?",
        ("Arden", "Brisk", "Corvo", "Delm", "Esker", "Fallow", "Garth", "Harrow", "Isola", "Jarrow", "Kestrel",
         "Lorne", "Mornay", "Nettle", "Orvan", "Padstow", "Quarry", "Riven", "Sorrel", "Tamsin"),
    ),
    Attribute(
        ("{name} works as a {value}.", "{name} earns a living as a {value}."),
        "What is the work of {name}?",
        ("baker", "carpenter", "ship carpenter", "doctor", "tree doctor", "driver", "crane driver", "fisher",
         "gardener", "miller", "painter", "sign painter", "pilot", "river pilot", "potter", "smith", "tailor",
         "teacher", "music teacher", "weaver"),
    ),
    Attribute(
        ("{name} keeps a {value}.", "{name} owns a {value}."),
        "Which animal does {name} keep?",
        ("cat", "grey cat", "dog", "sheep dog", "horse", "goat", "white goat", "goose", "hen", "rabbit", "parrot",
         "donkey", "pig", "black pig", "sheep", "tortoise", "raven", "duck", "pony", "mule"),
    ),
    Attribute(
        ("{name} plays the {value}.", "{name} practises the {value}."),
        "Which instrument does {name} play?",
        ("banjo", "bassoon", "cello", "clarinet", "bass clarinet", "drum", "kettle drum", "fiddle", "flute",
         "bass flute", "guitar", "harp", "mouth harp", "horn", "lute", "oboe", "organ", "piano", "trumpet", "viola"),
    ),
    Attribute(
        ("{name} likes to eat {value}.", "{name} is fond of {value}."),
        "What does {name} like to eat?",
        ("beans", "black beans", "bread", "rye bread", "cheese", "goat cheese", "cherries", "dumplings", "eggs",
         "figs", "honey", "lentils", "mushrooms", "noodles", "olives", "green olives", "pears", "plums", "rice",
         "soup"),
    ),
    Attribute(
        ("{name} has a door painted {value}.", "{name} wanted the door to be {value}."),
        "What colour is the door of {name}?",
        ("amber", "black", "blue", "dark blue", "light blue", "brown", "crimson", "gold", "green", "dark green",
         "light green", "grey", "ivory", "orange", "pink", "purple", "red", "dark red", "white", "yellow"),
    ),
)  # fmt: skip


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Flat rows of a split, as `data.squad` reads them; the same in every call."""
    rng = np.random.default_rng([2023, list(PARAGRAPHS).index(split)])
    for number in range(PARAGRAPHS[split]):
        context, questions = paragraph(rng, FACTS)
        for i, (question, answer) in enumerate(questions):
            yield {
                "id": f"{split}-{number}-{i}",
                "title": f"Register, page {number + 1}",
                "context": context,
                "question": question,
                "answers": {"text": [answer]},
            }


def paragraph(
    rng: np.random.Generator, n: int, kinds: int = len(ATTRIBUTES)
) -> tuple[str, list[tuple[str, str]]]:
    """A text of n facts of so many kinds, and a question and its answer for each; no person has an attribute twice."""
    names, sentences, questions = rng.choice(NAMES, PEOPLE, replace=False), [], []
    attributes = rng.permutation(len(ATTRIBUTES))[:kinds]
    for place in rng.choice(PEOPLE * kinds, n, replace=False):
        name, attribute = names[place % PEOPLE], ATTRIBUTES[attributes[place // PEOPLE]]
        value = str(rng.choice(attribute.values))
        sentences.append(attribute.sentences[rng.integers(2)].format(name=name, value=value))
        questions.append((attribute.question.format(name=name), value))
    return " ".join(sentences), questions

"""Made-up facts to look up: `--config.data.path=facts`, generated, not stored.

A paragraph tells ten things of one person in short sentences; each can be asked for, and nothing but the paragraph knows
the answer. It is about the smallest task on which compression can succeed or fail, for a base small enough to learn it in
minutes (`tiny-facts` of `weights.registry`, `configs/quickstart.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PARAGRAPHS = {"train": 3_000, "validation": 100}
FACTS = 10
"""Of a paragraph, among the kinds that there are."""

NAMES = (
    "Alba", "Boris", "Carla", "Diego", "Edda", "Felix", "Gina", "Hugo", "Ines", "Joris",
    "Kaya", "Lukas", "Mara", "Nils", "Olga", "Pavel", "Rosa", "Simon", "Tessa", "Viktor",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One thing that can be told of a person, and asked for."""

    sentences: tuple[str, str]
    question: str
    values: tuple[str, ...]


def _kind(first: str, second: str, question: str, values: str) -> Kind:
    return Kind((first, second), question, tuple(values.split(", ")))


KINDS = (
    _kind(
        "{name} lives in {value}.", "{name} has a house in {value}.", "Where does {name} live?",
        "Arden, Brisk, Corvo, Delm, Esker, Fallow, Garth, Harrow, Isola, Jarrow, Kestrel, Lorne, Mornay, Nettle, Orvan, "
        "Padstow, Quarry, Riven, Sorrel, Tamsin",
    ),
    _kind(
        "{name} works as a {value}.", "{name} earns a living as a {value}.", "What is the work of {name}?",
        "baker, carpenter, ship carpenter, doctor, tree doctor, driver, crane driver, fisher, gardener, miller, painter, "
        "sign painter, pilot, river pilot, potter, smith, tailor, teacher, music teacher, weaver",
    ),
    _kind(
        "{name} keeps a {value}.", "{name} owns a {value}.", "Which animal does {name} keep?",
        "cat, grey cat, dog, sheep dog, horse, goat, white goat, goose, hen, rabbit, parrot, donkey, pig, black pig, "
        "sheep, tortoise, raven, duck, pony, mule",
    ),
    _kind(
        "{name} plays the {value}.", "{name} practises the {value}.", "Which instrument does {name} play?",
        "banjo, bassoon, cello, clarinet, bass clarinet, drum, kettle drum, fiddle, flute, bass flute, guitar, harp, "
        "mouth harp, horn, lute, oboe, organ, piano, trumpet, viola",
    ),
    _kind(
        "{name} likes to eat {value}.", "{name} is fond of {value}.", "What does {name} like to eat?",
        "beans, black beans, bread, rye bread, cheese, goat cheese, cherries, dumplings, eggs, figs, honey, lentils, "
        "mushrooms, noodles, olives, green olives, pears, plums, rice, soup",
    ),
    _kind(
        "The door of {name} is {value}.", "{name} has a door painted {value}.", "What colour is the door of {name}?",
        "amber, black, blue, dark blue, light blue, brown, crimson, gold, green, dark green, light green, grey, ivory, "
        "orange, pink, purple, red, dark red, white, yellow",
    ),
    _kind(
        "{name} drinks {value}.", "{name} always asks for {value}.", "What does {name} drink?",
        "tea, green tea, mint tea, coffee, black coffee, cider, cocoa, milk, goat milk, lemonade, juice, pear juice, "
        "water, wine, red wine, white wine, beer, broth, rum, sherry",
    ),
    _kind(
        "{name} planted a {value}.", "{name} sits under a {value}.", "Which tree did {name} plant?",
        "ash, beech, birch, silver birch, cedar, elm, fir, hazel, larch, linden, maple, oak, cork oak, pine, poplar, "
        "rowan, spruce, sycamore, willow, yew",
    ),
    _kind(
        "{name} travels by {value}.", "{name} goes to town by {value}.", "How does {name} travel?",
        "barge, bicycle, bus, night bus, cab, canoe, carriage, cart, coach, ferry, night ferry, lorry, moped, "
        "rowing boat, steam boat, scooter, sledge, tractor, tram, van",
    ),
    _kind(
        "{name} was born in {value}.", "The birthday of {name} is in {value}.", "When was {name} born?",
        "January, February, March, April, May, June, July, August, September, October, November, December, early March, "
        "late March, early June, late June, early October, late October, early April, late August",
    ),
    _kind(
        "{name} collects {value}.", "{name} has boxes full of {value}.", "What does {name} collect?",
        "badges, bells, books, bottles, buttons, coins, old coins, clocks, dolls, feathers, fossils, keys, lamps, maps, "
        "sea maps, masks, shells, sea shells, stamps, spoons",
    ),
    _kind(
        "{name} is good at {value}.", "{name} spends weekends on {value}.", "What is {name} good at?",
        "archery, bowling, chess, climbing, ice climbing, cycling, dancing, tap dancing, diving, fencing, hiking, "
        "juggling, knitting, rowing, running, sailing, skating, ice skating, swimming, wrestling",
    ),
)  # fmt: skip


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Flat rows of a split, as `data.squad` reads them; the same in every call."""
    rng = np.random.default_rng([2023, list(PARAGRAPHS).index(split)])
    for number in range(PARAGRAPHS[split]):
        context, questions = paragraph(rng)
        for i, (question, answer) in enumerate(questions):
            yield {
                "id": f"{split}-{number}-{i}",
                "title": f"Register, page {number + 1}",
                "context": context,
                "question": question,
                "answers": {"text": [answer]},
            }


def paragraph(rng: np.random.Generator) -> tuple[str, list[tuple[str, str]]]:
    """A text, and a question and its answer for each of its facts."""
    name, sentences, questions = NAMES[rng.integers(len(NAMES))], [], []
    for index in rng.permutation(len(KINDS))[:FACTS]:
        kind = KINDS[index]
        value = kind.values[rng.integers(len(kind.values))]
        sentences.append(kind.sentences[rng.integers(2)].format(name=name, value=value))
        questions.append((kind.question.format(name=name), value))
    return " ".join(sentences), questions

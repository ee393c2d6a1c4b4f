"""Made-up facts to look up: `--config.data.path=facts`, generated, not stored.

A paragraph tells ten things about one person in short sentences. Each can be asked for, and only
the paragraph has the answer. It is about the smallest task on which compression can succeed or
fail, for a base small enough to learn it in minutes (`tiny-facts` of `weights.registry`,
`configs/quickstart.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PARAGRAPHS = {"train": 3_000, "validation": 100}
FACTS = 10  # of a paragraph, out of the kinds below

NAMES = tuple(
    [
        "Alba",
        "Boris",
        "Carla",
        "Diego",
        "Edda",
        "Felix",
        "Gina",
        "Hugo",
        "Ines",
        "Joris",
        "Kaya",
        "Lukas",
        "Mara",
        "Nils",
        "Olga",
        "Pavel",
        "Rosa",
        "Simon",
        "Tessa",
        "Viktor",
    ]
)


@dataclass(frozen=True)
class Kind:
    """One thing that can be told about a person, and asked for."""

    sentences: tuple[str, str]
    question: str
    values: tuple[str, ...]


_KINDS = """
{name} lives in {value}.
{name} has a house in {value}.
Where does {name} live?
    Arden, Brisk, Corvo, Delm, Esker, Fallow, Garth, Harrow, Isola, Jarrow, Kestrel, Lorne,
    Mornay, Nettle, Orvan, Padstow, Quarry, Riven, Sorrel, Tamsin

{name} works as a {value}.
{name} earns a living as a {value}.
What is the work of {name}?
    baker, carpenter, ship carpenter, doctor, tree doctor, driver, crane driver, fisher,
    gardener, miller, painter, sign painter, pilot, river pilot, potter, smith, tailor, teacher,
    music teacher, weaver

{name} keeps a {value}.
{name} owns a {value}.
Which animal does {name} keep?
    cat, grey cat, dog, sheep dog, horse, goat, white goat, goose, hen, rabbit, parrot, donkey,
    pig, black pig, sheep, tortoise, raven, duck, pony, mule

{name} plays the {value}.
{name} practises the {value}.
Which instrument does {name} play?
    banjo, bassoon, cello, clarinet, bass clarinet, drum, kettle drum, fiddle, flute, bass
    flute, guitar, harp, mouth harp, horn, lute, oboe, organ, piano, trumpet, viola

{name} likes to eat {value}.
{name} is fond of {value}.
What does {name} like to eat?
    beans, black beans, bread, rye bread, cheese, goat cheese, cherries, dumplings, eggs, figs,
    honey, lentils, mushrooms, noodles, olives, green olives, pears, plums, rice, soup

The door of {name} is {value}.
{name} has a door painted {value}.
What colour is the door of {name}?
    amber, black, blue, dark blue, light blue, brown, crimson, gold, green, dark green, light
    green, grey, ivory, orange, pink, purple, red, dark red, white, yellow

{name} drinks {value}.
{name} always asks for {value}.
What does {name} drink?
    tea, green tea, mint tea, coffee, black coffee, cider, cocoa, milk, goat milk, lemonade,
    juice, pear juice, water, wine, red wine, white wine, beer, broth, rum, sherry

{name} planted a {value}.
{name} sits under a {value}.
Which tree did {name} plant?
    ash, beech, birch, silver birch, cedar, elm, fir, hazel, larch, linden, maple, oak, cork
    oak, pine, poplar, rowan, spruce, sycamore, willow, yew

{name} travels by {value}.
{name} goes to town by {value}.
How does {name} travel?
    barge, bicycle, bus, night bus, cab, canoe, carriage, cart, coach, ferry, night ferry,
    lorry, moped, rowing boat, steam boat, scooter, sledge, tractor, tram, van

{name} was born in {value}.
The birthday of {name} is in {value}.
When was {name} born?
    January, February, March, April, May, June, July, August, September, October, November,
    December, early March, late March, early June, late June, early October, late October, early
    April, late August

{name} collects {value}.
{name} has boxes full of {value}.
What does {name} collect?
    badges, bells, books, bottles, buttons, coins, old coins, clocks, dolls, feathers, fossils,
    keys, lamps, maps, sea maps, masks, shells, sea shells, stamps, spoons

{name} is good at {value}.
{name} spends weekends on {value}.
What is {name} good at?
    archery, bowling, chess, climbing, ice climbing, cycling, dancing, tap dancing, diving,
    fencing, hiking, juggling, knitting, rowing, running, sailing, skating, ice skating,
    swimming, wrestling
"""


def _parse(block: str) -> Kind:
    """Read two sentences, a question, and values that continue over the lines that are left."""
    first, second, question, *values = map(str.strip, block.strip().splitlines())
    return Kind((first, second), question, tuple(" ".join(values).split(", ")))


KINDS = tuple(map(_parse, _KINDS.strip().split("\n\n")))


def rows(split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, the same in every call."""
    rng = np.random.default_rng([2023, list(PARAGRAPHS).index(split)])
    for number in range(PARAGRAPHS[split]):
        context, questions = paragraph(rng)
        for i, (question, answer) in enumerate(questions):
            yield {
                "id": f"{split}-{number}-{i}",
                "title": f"Register, page {number + 1}",
                "context": context,
                "question": question,
                "answers": [answer],
            }


def paragraph(rng: np.random.Generator) -> tuple[str, list[tuple[str, str]]]:
    """Return a text, and a question and its answer for each of its facts."""
    name, sentences, questions = NAMES[rng.integers(len(NAMES))], [], []
    for index in rng.permutation(len(KINDS))[:FACTS]:
        kind = KINDS[index]
        value = kind.values[rng.integers(len(kind.values))]
        sentences.append(kind.sentences[rng.integers(2)].format(name=name, value=value))
        questions.append((kind.question.format(name=name), value))
    return " ".join(sentences), questions

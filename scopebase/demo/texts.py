"""Five small datasets: three written by rule from a seed, two cut from the Python that runs this.

Training and indexed texts never overlap: every fifth piece is kept for the index.
"""

from __future__ import annotations

import inspect
import random
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

NAMES = [
    "Anna",
    "Ben",
    "Chloe",
    "Daniel",
    "Ella",
    "Finn",
    "Grace",
    "Hugo",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
    "Olive",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Will",
]
THINGS = [
    "apples",
    "books",
    "cards",
    "coins",
    "cookies",
    "eggs",
    "flowers",
    "marbles",
    "pencils",
    "shells",
    "stamps",
    "stickers",
    "toys",
]
PLACES = ["park", "garden", "river", "school", "farm", "market", "forest", "beach", "kitchen", "library"]
ANIMALS = ["dog", "cat", "bird", "rabbit", "horse", "frog", "bear", "fox", "duck", "mouse"]
FEELINGS = ["happy", "sad", "tired", "proud", "scared", "excited", "angry", "lonely"]
ADJECTIVES = ["little", "big", "old", "red", "soft", "brave", "clever", "quiet", "funny", "shiny"]


def word_problem(rng: random.Random) -> str:
    """A grade-school problem with its answer, like GSM8K's."""
    name, other = rng.sample(NAMES, 2)
    things, a, b = rng.choice(THINGS), rng.randint(3, 60), rng.randint(2, 30)
    place = rng.choice(PLACES)
    text, answer = rng.choice(
        (
            (f"{name} has {a + b} {things}. {name} gives {b} {things} to {other}. How many are left?", a),
            (f"{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have in total?", a + b),
            (f"A box holds {b} {things}. {name} buys {a} boxes at the {place}. How many {things} is that?", a * b),
            (f"{name} finds {a} {things} every day for {b} days. How many {things} does {name} find?", a * b),
        )
    )
    return f"Question: {text}\nAnswer: {answer}"


def equation(rng: random.Random) -> str:
    """A bare calculation, like the drier half of MATH."""
    a, b, x = rng.randint(2, 12), rng.randint(1, 60), rng.randint(-9, 20)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Problem:\nSolve for x: {a}x + {b} = {a * x + b}\n\nSolution:\nx = {x}"
    if kind == 1:
        return f"Problem:\nCompute ({a} + {b}) * {a}.\n\nSolution:\n{(a + b) * a}"
    if kind == 2:
        sequence = ", ".join(str(b + i * a) for i in range(5))
        return f"Problem:\nWhat comes next: {sequence}?\n\nSolution:\n{b + 5 * a}"
    return f"Problem:\nIf f(x) = x^2 + {b}, find f({a}).\n\nSolution:\nf({a}) = {a * a + b}"


def story(rng: random.Random) -> str:
    """A children's story of a few sentences."""
    name, friend = rng.sample(NAMES, 2)
    animal, place, adjective = rng.choice(ANIMALS), rng.choice(PLACES), rng.choice(ADJECTIVES)
    opening = rng.choice(("Once upon a time there was", "Long ago there lived", "In a small town there was"))
    middle = rng.choice(
        (
            f"One day {name} went to the {place} and saw a {adjective} {animal}. The {animal} was {rng.choice(FEELINGS)}.",
            f'"Do you want to play?" asked {friend}. "Yes," said {name}, and they ran to the {place}.',
            f"The {animal} was lost and wanted to go home. {name} took it by the paw and they walked to the {place}.",
        )
    )
    ending = rng.choice(
        (
            f"{name} was very {rng.choice(FEELINGS)}, but {friend} helped. They lived happily ever after.",
            f'"Thank you," said the {animal}. {name} smiled and they became best friends.',
            "At night they all went home and had a warm supper. The end.",
        )
    )
    return f"{opening} a {adjective} {rng.choice(('girl', 'boy'))} named {name}. {middle} {ending}"


def python_code() -> list[str]:
    """Functions of the standard library."""
    pieces = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = file.read_text(encoding="utf-8", errors="ignore")
        pieces += [piece.strip() for piece in re.split(r"\n(?=(?:def|class) )", source)[1:] if 200 < len(piece) < 1500]
    return pieces


def manual() -> list[str]:
    """Paragraphs of the Python manual that `help()` shows, and docstrings of the standard library."""
    try:
        from pydoc_data.topics import topics

        texts = [paragraph for text in topics.values() for paragraph in text.split("\n\n")]
    except ImportError:  # some distributions leave it out
        texts = []
    texts += [
        inspect.cleandoc(match)
        for piece in python_code()
        for match in re.findall(r'"""(.{80,900}?)"""', piece, re.DOTALL)
    ]
    tidy = [re.sub(r"\s+", " ", text).strip() for text in texts]
    return [text for text in dict.fromkeys(tidy) if 120 < len(text) < 900 and text.count("*") < 8]


def datasets(seed: int = 0, n: int = 1500) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> (texts to train on, texts to index)."""
    rng = random.Random(seed)
    written: dict[str, Callable[[random.Random], str]] = {
        "word_problems": word_problem,
        "equations": equation,
        "stories": story,
    }
    found = {name: list(dict.fromkeys(make(rng) for _ in range(n))) for name, make in written.items()}
    found |= {"python_code": _shuffled(python_code(), rng)[:n], "manual": _shuffled(manual(), rng)[:n]}
    return {name: ([t for i, t in enumerate(texts) if i % 5], texts[::5]) for name, texts in found.items()}


def _shuffled(texts: list[str], rng: random.Random) -> list[str]:
    return rng.sample(texts, len(texts))

"""Questions about a scene, each with the only right answer.

Every asker draws from its own random stream, so the wording of a question does not depend on which
other types are asked. The texts are those that the shipped models were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gprune.tinyvlm.boxes import format_box
from gprune.tinyvlm.contents import COLORS, LETTERS, SHAPES, SIDES, Contents

QUESTION_TYPES = (
    "text",
    "count",
    "background_pattern",
    "background_color",
    "color",
    "shape",
    "exist",
    "relation",
    "object",
    "box",
    "bigger",
    "same_color",
)
# Least distance of two centres, in scene units, for one to be clearly left of or above the other.
RELATION_MARGIN = 10
# Least ratio of two radii for one object to be clearly bigger than the other.
SIZE_MARGIN = 1.25


@dataclass(frozen=True)
class Question:
    """A question of one of ``QUESTION_TYPES`` (or ``easy_vqa``) with its only right answer.

    Attributes:
        kind: its type.
        question: its text.
        answer: the answer.
        mentions: the words that refer to objects of the scene, in order, each with the indices of
            those objects: a color refers to all objects of that color, the last word of a name to
            the objects of that name. Empty if the question names no object that is present.
    """

    kind: str
    question: str
    answer: str
    mentions: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), compare=False)


def find_mentions(contents: Contents, *names: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns `Question.mentions` for the names in a question.

    Args:
        contents: of the scene.
        names: a color and a shape, or either alone; ``object`` may replace the shape.
    """

    def matching(words: list[str]) -> tuple[int, ...]:
        return tuple(
            index
            for index, item in enumerate(contents.objects)
            if {item.color, item.shape, "object"}.issuperset(words)
        )

    split_names = [name.split() for name in names]
    return tuple(
        (words[i], matching(words[: i + 1])) for words in split_names for i in range(len(words))
    )


def article(name: str) -> str:
    """Returns the indefinite article of ``name``."""
    return "an" if name[0] in "aeiou" else "a"


def _unique_indices(values: Sequence[str]) -> list[int]:
    """Returns the indices of the values that occur once."""
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _ask_text(scene: Contents, rng: np.random.Generator) -> Question | None:
    if len(scene.texts) != 1:
        return None
    signs = scene.texts[0].signs
    if signs[0] in LETTERS:
        return Question("text", "what letters are written in the image?", signs)
    return Question("text", "what number is written in the image?", signs)


def _ask_count(scene: Contents, rng: np.random.Generator) -> Question | None:
    return Question("count", "how many shapes are there?", str(len(scene.objects)))


def _ask_pattern(scene: Contents, rng: np.random.Generator) -> Question | None:
    half = int(rng.integers(2))
    side = SIDES[scene.layout][half]
    text = f"what pattern is the background at the {side}?"
    return Question("background_pattern", text, scene.patterns[half])


def _ask_tint(scene: Contents, rng: np.random.Generator) -> Question | None:
    half = int(rng.integers(2))
    side = SIDES[scene.layout][half]
    text = f"what color is the background at the {side}?"
    return Question("background_color", text, scene.tints[half])


def _ask_color(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.shape for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    mentions = find_mentions(scene, item.shape)
    return Question("color", f"what color is the {item.shape}?", item.color, mentions)


def _ask_shape(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.color for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    name = f"{item.color} object"
    return Question("shape", f"what shape is the {name}?", item.shape, find_mentions(scene, name))


def _ask_exist(scene: Contents, rng: np.random.Generator) -> Question | None:
    present = {item.name for item in scene.objects}
    if not present:
        return None
    if rng.random() < 0.5:
        name = str(rng.choice(sorted(present)))
        text = f"is there {article(name)} {name}?"
        return Question("exist", text, "yes", find_mentions(scene, name))
    # Half of the absent names recombine a colour and a shape of the scene, so that the answer needs
    # binding them; spotting each is not enough.
    recombined = {
        f"{first.color} {second.shape}" for first in scene.objects for second in scene.objects
    } - present
    if recombined and rng.random() < 0.5:
        name = str(rng.choice(sorted(recombined)))
    else:
        every = {f"{color} {shape}" for color in COLORS for shape in SHAPES}
        name = str(rng.choice(sorted(every - present)))
    return Question("exist", f"is there {article(name)} {name}?", "no")


def _ask_relation(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.name for item in scene.objects])
    axis = str(rng.choice(["x", "y"]))
    pairs = [
        (first, second)
        for first in unique
        for second in unique
        if getattr(scene.objects[first], axis) + RELATION_MARGIN
        <= getattr(scene.objects[second], axis)
    ]
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    smaller, larger = ("left of", "right of") if axis == "x" else ("above", "below")
    true_word, false_word = smaller, larger
    if rng.random() < 0.5:
        first, second, true_word, false_word = second, first, larger, smaller
    answer, word = ("yes", true_word) if rng.random() < 0.5 else ("no", false_word)
    subject, reference = scene.objects[first].name, scene.objects[second].name
    text = f"is the {subject} {word} the {reference}?"
    return Question("relation", text, answer, find_mentions(scene, subject, reference))


def _ask_object(scene: Contents, rng: np.random.Generator) -> Question | None:
    if len(scene.objects) != 1:
        return None
    name, mentions = scene.objects[0].name, find_mentions(scene, "object")
    return Question("object", "what object is there?", name, mentions)


def _ask_box(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.name for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    text = f"where is the {item.name}?"
    return Question("box", text, format_box(item.box), find_mentions(scene, item.name))


def _ask_bigger(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.name for item in scene.objects])
    pairs = [
        (first, second)
        for first in unique
        for second in unique
        if scene.objects[first].radius >= SIZE_MARGIN * scene.objects[second].radius
    ]
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    answer = "yes"
    if rng.random() < 0.5:
        first, second, answer = second, first, "no"
    subject, reference = scene.objects[first].name, scene.objects[second].name
    text = f"is the {subject} bigger than the {reference}?"
    return Question("bigger", text, answer, find_mentions(scene, subject, reference))


def _ask_same_color(scene: Contents, rng: np.random.Generator) -> Question | None:
    unique = _unique_indices([item.shape for item in scene.objects])
    colors = [item.color for item in scene.objects]
    pairs = [(first, second) for first in unique for second in unique if first != second]
    same = [pair for pair in pairs if colors[pair[0]] == colors[pair[1]]]
    different = [pair for pair in pairs if colors[pair[0]] != colors[pair[1]]]
    # Most scenes have no pair of one colour. Asking only where both answers are possible keeps the
    # answers balanced.
    if not same or not different:
        return None
    answer, candidates = ("yes", same) if rng.random() < 0.5 else ("no", different)
    first, second = candidates[int(rng.integers(len(candidates)))]
    first_shape, second_shape = scene.objects[first].shape, scene.objects[second].shape
    text = f"are the {first_shape} and the {second_shape} the same color?"
    return Question("same_color", text, answer, find_mentions(scene, first_shape, second_shape))


# By type: makes a question about a scene, or returns None if the scene has nothing to ask about.
ASKERS: dict[str, Callable[[Contents, np.random.Generator], Question | None]] = {
    "text": _ask_text,
    "count": _ask_count,
    "background_pattern": _ask_pattern,
    "background_color": _ask_tint,
    "color": _ask_color,
    "shape": _ask_shape,
    "exist": _ask_exist,
    "relation": _ask_relation,
    "object": _ask_object,
    "box": _ask_box,
    "bigger": _ask_bigger,
    "same_color": _ask_same_color,
}

"""Generated scenes with questions whose answers are known.

A scene is a small picture: two background halves, each with a pattern and a tint of its own,
non-overlapping coloured shapes, and sometimes a three-digit number. Foreground share, number of
objects and amount of text vary widely, so that what a pruner should keep varies too.

Everything follows from ``(split, seed, index)``: the same triple gives the same pixels and the same
questions on every machine, training can resume anywhere, and the splits never share a stream.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Where things lie is told in units of a 112th of the picture's side, whatever its size in pixels.
SIDE = 112
# Patches a side of the shipped models, and how many pixels a patch has in every model.
GRID = 16
PATCH_SIZE = 8
IMAGE_SIZE = GRID * PATCH_SIZE
# Shapes and digits are drawn at twice the size and averaged down, which is what antialiasing is.
SUPERSAMPLE = 2

SPLITS = ("train", "validation", "test")

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 40),
    "green": (20, 150, 60),
    "blue": (30, 60, 215),
    "yellow": (235, 200, 0),
    "teal": (0, 150, 160),
    "gray": (115, 115, 120),
    "brown": (125, 70, 25),
    "black": (15, 15, 15),
    "purple": (140, 40, 170),
    "orange": (245, 125, 10),
}
TINTS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "pink": (255, 200, 215),
    "sky": (190, 222, 252),
    "mint": (195, 242, 210),
    "cream": (252, 240, 190),
    "lavender": (218, 200, 248),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag")
SIDES = {"columns": ("left", "right"), "rows": ("top", "bottom")}
DIGITS = tuple("0123456789")
# Without vowels no row of letters is a word of the questions.
LETTERS = tuple("bcdfghklmnprtvxz")
INK = (25, 25, 45)

# matplotlib, a dependency of the core, carries these fonts: no system font is needed.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneralBol.ttf",
)

# Dense labels of a patch: what it shows and in which colour. Background patches carry their own
# pattern and tint: one class "background" would make their features nearly identical, and that
# alone could decide a ranking of pruning methods.
KINDS = SHAPES + DIGITS + PATTERNS + LETTERS
HUES = (*COLORS, "ink", *TINTS)
# What a patch marks: which sign of its text it shows, or the centre of an object.
MARKS = ("none", "first", "second", "third", "centre")

# Boxes are told as left, top, right and bottom edges, each in one of so many equal steps.
EDGES = ("left", "top", "right", "bottom")
BINS = 32

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


@dataclass(frozen=True)
class Object:
    """A coloured shape: centre (x, y) and radius in units of the picture."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What the drawn shape fills: left, top, right and bottom, in units."""
        across, up, down = EXTENTS.get(self.shape, (1.0, 1.0, 1.0))
        x, y, r = self.x, self.y, self.radius
        return x - across * r, y - up * r, x + across * r, y + down * r


@dataclass(frozen=True)
class Text:
    """Three digits or letters, their box (left, top, right, bottom) and left edges, in units."""

    signs: str
    font: str
    size: int
    box: tuple[float, float, float, float]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """A question of one of ``QUESTION_TYPES`` (or ``easy_vqa``) with its only right answer.

    Attributes:
        kind: its type.
        question: what is asked.
        answer: the answer.
        about: the words that point at objects of the scene, in order, each with the numbers of
            those objects: a color with all that have it, the end of a name with its bearers. Empty
            where the question names nothing that is there.
    """

    kind: str
    question: str
    answer: str
    about: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Scene:
    """What is in a picture; ``draw`` makes the pixels, ``ask`` the questions."""

    split: str
    seed: int
    index: int
    layout: str  # "columns": left and right halves; "rows": top and bottom halves
    border: int  # where the halves meet, in units
    patterns: tuple[str, str]
    tints: tuple[str, str]
    phases: tuple[float, float]
    objects: tuple[Object, ...]
    texts: tuple[Text, ...]

    def draw(self, grid: int = GRID) -> Image.Image:
        """The RGB picture for a model with ``grid`` patches of ``PATCH_SIZE`` pixels a side."""
        canvas = Image.fromarray(self._background())
        size = SIDE * SUPERSAMPLE
        canvas = canvas.resize((size, size), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(canvas)
        for item in self.objects:
            draw_shape(pen, item, COLORS[item.color], SUPERSAMPLE)
        for text in self.texts:
            font = load_font(text.font, text.size * SUPERSAMPLE)
            left, top = text.box[0] * SUPERSAMPLE, text.box[1] * SUPERSAMPLE
            pen.text((left, top), text.signs.upper(), font=font, fill=INK, anchor="lt")
        return canvas.resize((grid * PATCH_SIZE, grid * PATCH_SIZE), Image.Resampling.BOX)

    def patch_labels(self, grid: int = GRID) -> tuple[np.ndarray, np.ndarray]:
        """Dense labels of the patches: indices into ``KINDS`` and ``HUES``, both [grid, grid]."""
        pixels, scale = grid * PATCH_SIZE, grid * PATCH_SIZE / SIDE
        kinds = np.zeros((pixels, pixels), dtype=np.uint8)
        hues = np.zeros_like(kinds)
        for half, region in enumerate(self._halves(scale)):
            kinds[region] = KINDS.index(self.patterns[half])
            hues[region] = HUES.index(self.tints[half])
        kind_image, hue_image = Image.fromarray(kinds), Image.fromarray(hues)
        kind_pen, hue_pen = ImageDraw.Draw(kind_image), ImageDraw.Draw(hue_image)
        for item in self.objects:
            draw_shape(kind_pen, item, KINDS.index(item.shape), scale)
            draw_shape(hue_pen, item, HUES.index(item.color), scale)
        for text in self.texts:
            for sign, area in zip(text.signs, sign_areas(text, scale), strict=True):
                kind_pen.rectangle(area, fill=KINDS.index(sign))
                hue_pen.rectangle(area, fill=HUES.index("ink"))
        weight_kind = np.where([kind in PATTERNS for kind in KINDS], 1, 2)
        weight_hue = np.where([hue in TINTS for hue in HUES], 1, 2)
        return (
            heaviest_label(np.asarray(kind_image), weight_kind),
            heaviest_label(np.asarray(hue_image), weight_hue),
        )

    def patch_marks(self, grid: int = GRID) -> np.ndarray:
        """Indices into ``MARKS``, [grid, grid]: the order of signs and the centres of objects."""
        scale = grid * PATCH_SIZE / SIDE
        marks = Image.fromarray(np.zeros((grid * PATCH_SIZE,) * 2, dtype=np.uint8))
        pen = ImageDraw.Draw(marks)
        for text in self.texts:
            for place, area in enumerate(sign_areas(text, scale), 1):
                pen.rectangle(area, fill=place)
        result = heaviest_label(np.asarray(marks), np.array([1, 2, 2, 2, 2]))
        for item in self.objects:
            row, column = (int(place * scale) // PATCH_SIZE for place in (item.y, item.x))
            result[row, column] = MARKS.index("centre")
        return result

    def patch_owners(self, grid: int = GRID) -> np.ndarray:
        """Which object a patch shows, -1 where it shows none: [grid, grid].

        Where two objects share a patch, it belongs to the later one, as its other labels do.
        """
        scale = grid * PATCH_SIZE / SIDE
        owners = Image.fromarray(np.zeros((grid * PATCH_SIZE,) * 2, dtype=np.uint8))
        pen = ImageDraw.Draw(owners)
        for number, item in enumerate(self.objects, 1):
            draw_shape(pen, item, number, scale)
        weight = np.full(len(self.objects) + 1, 2)
        weight[0] = 1
        return heaviest_label(np.asarray(owners), weight) - 1

    def edges_of(self, owners: np.ndarray) -> np.ndarray:
        """The box of the object that a patch shows, in ``BINS``: [grid, grid, 4], -1 elsewhere.

        Args:
            owners: what `patch_owners` gives, [grid, grid].
        """
        boxes = np.array([[-1] * 4, *(binned(item.box) for item in self.objects)])
        return boxes[1 + owners]

    def foreground(self, grid: int = GRID) -> np.ndarray:
        """True where a patch shows an object or a sign rather than background: [grid, grid]."""
        background = [index for index, kind in enumerate(KINDS) if kind in PATTERNS]
        return ~np.isin(self.patch_labels(grid)[0], background)

    def ask(self, kinds: Sequence[str] = QUESTION_TYPES, times: int = 1) -> list[Question]:
        """Up to ``times`` different questions of each kind, as far as this scene can answer them.

        Which kinds are asked, and how often, does not change how another question is worded.
        """
        asked: dict[str, Question] = {}
        for kind in kinds:
            rng = stream(self.split, self.seed, self.index, 1 + QUESTION_TYPES.index(kind))
            for _ in range(times):
                question = ASKERS[kind](self, rng)
                if question is not None:
                    asked.setdefault(question.question, question)
        return list(asked.values())

    def pointing(self, *names: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The words of names with the numbers of the objects they point at.

        Args:
            names: a color and a shape, either alone, or with ``object`` in place of the shape.
        """

        def bearing(words: list[str]) -> tuple[int, ...]:
            return tuple(
                number
                for number, item in enumerate(self.objects)
                if {item.color, item.shape, "object"}.issuperset(words)
            )

        named = [name.split() for name in names]
        return tuple(
            (words[i], bearing(words[: i + 1])) for words in named for i in range(len(words))
        )

    def _halves(self, scale: float = 1) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        whole = slice(0, None)
        border = round(self.border * scale)
        first, second = slice(0, border), slice(border, None)
        if self.layout == "columns":
            return (whole, first), (whole, second)
        return (first, whole), (second, whole)

    def _background(self) -> np.ndarray:
        pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
        for half, region in enumerate(self._halves()):
            tint = np.array(TINTS[self.tints[half]])
            ink = (tint * 0.72).astype(np.uint8)
            mask = pattern_mask(self.patterns[half], self.phases[half])
            pixels[region] = np.where(mask[..., None], ink, tint.astype(np.uint8))[region]
        return pixels


def make_scene(split: str, seed: int, index: int, crowded: bool = False) -> Scene:
    """The scene of ``(split, seed, index)``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: of the stream of scenes.
        index: which scene of it.
        crowded: several texts and many small objects, which give a dense per-patch objective more
            to learn from each picture.

    Raises:
        ValueError: ``split`` is none of the three.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = stream(split, seed, index, 0)
    layout = str(rng.choice(list(SIDES)))
    border = int(rng.integers(SIDE * 3 // 8, SIDE * 5 // 8 + 1))
    first, second = rng.choice(PATTERNS, 2)
    patterns = (str(first), str(second))
    first, second = rng.choice(list(TINTS), 2, replace=False)
    tints = (str(first), str(second))
    phases = (float(rng.random()), float(rng.random()))
    taken: list[tuple[float, float, float, float]] = []
    numbers = int(rng.integers(2, 6)) if crowded else int(rng.random() < 0.75)
    texts = [text for _ in range(numbers) if (text := _place_text(rng, taken)) is not None]
    wanted = int(rng.integers(5, 11)) if crowded else int(rng.integers(1, 10))
    scale = float(rng.uniform(0.6, 1.0) if crowded else rng.uniform(0.7, 1.6))
    # Often few colors, so that objects share them.
    colors = [str(name) for name in rng.permutation(list(COLORS))[: int(rng.integers(2, 11))]]
    objects = []
    for _ in range(wanted):
        item = _place_object(rng, taken, scale, colors)
        if item is not None:
            objects.append(item)
    return Scene(
        split=split,
        seed=seed,
        index=index,
        layout=layout,
        border=border,
        patterns=patterns,
        tints=tints,
        phases=phases,
        objects=tuple(objects),
        texts=tuple(texts),
    )


def stream(split: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random stream of one purpose of one scene."""
    return np.random.default_rng([SPLITS.index(split), seed, index, purpose])


def _free_spot(
    rng: np.random.Generator,
    taken: list[tuple[float, float, float, float]],
    width: float,
    height: float,
) -> tuple[float, float] | None:
    """Top left corner of a box that meets no other, found by trying; None when there is no room."""
    gap = 2
    for _ in range(30):
        left = float(rng.uniform(1, SIDE - width - 1))
        top = float(rng.uniform(1, SIDE - height - 1))
        box = (left, top, left + width, top + height)
        if all(
            box[2] + gap <= other[0]
            or other[2] + gap <= box[0]
            or box[3] + gap <= other[1]
            or other[3] + gap <= box[1]
            for other in taken
        ):
            taken.append(box)
            return left, top
    return None


def _place_object(
    rng: np.random.Generator,
    taken: list[tuple[float, float, float, float]],
    scale: float,
    colors: Sequence[str],
) -> Object | None:
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(colors))
    radius = float(rng.uniform(7, 15)) * scale
    spot = _free_spot(rng, taken, 2 * radius, 2 * radius)
    if spot is None:
        return None
    return Object(shape, color, spot[0] + radius, spot[1] + radius, radius)


def _place_text(
    rng: np.random.Generator, taken: list[tuple[float, float, float, float]]
) -> Text | None:
    kind = (DIGITS, LETTERS)[int(rng.integers(2))]
    written = "".join(kind[int(place)] for place in rng.integers(0, len(kind), 3))
    name, size = str(rng.choice(FONTS)), int(rng.integers(19, 29))
    font = load_font(name, size * SUPERSAMPLE)
    left, top, right, bottom = font.getbbox(written.upper(), anchor="lt")
    width, height = (right - left) / SUPERSAMPLE, (bottom - top) / SUPERSAMPLE
    spot = _free_spot(rng, taken, width, height)
    if spot is None:
        return None
    edges = tuple(
        spot[0] + font.getlength(written[:i].upper()) / SUPERSAMPLE for i in range(len(written))
    )
    return Text(written, name, size, (*spot, spot[0] + width, spot[1] + height), edges)


@functools.lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib carries, at ``size`` pixels."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The basic layout engine: the other depends on libraries that a machine may lack.
    return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)


def pattern_mask(pattern: str, phase: float) -> np.ndarray:
    """True where a pattern puts ink, [SIDE, SIDE]; ``phase`` in [0, 1) shifts it."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    shift = int(phase * 12)
    if pattern == "plain":
        return np.zeros((SIDE, SIDE), dtype=bool)
    if pattern == "stripes":
        return (x + shift) % 8 < 3
    if pattern == "dots":
        return ((x + shift) % 8 - 3.5) ** 2 + ((y + shift) % 8 - 3.5) ** 2 < 5
    if pattern == "checks":
        return ((x + shift) // 6 + (y + shift) // 6) % 2 == 0
    if pattern == "zigzag":
        return (y + shift + np.abs(x % 12 - 6)) % 9 < 3
    raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")


def draw_shape(
    pen: ImageDraw.ImageDraw, item: Object, fill: tuple[int, int, int] | int, scale: float
) -> None:
    """Draws ``item`` on a canvas ``scale`` times the picture's size."""
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    box = (x - r, y - r, x + r, y + r)
    if item.shape == "circle":
        pen.ellipse(box, fill=fill)
    elif item.shape == "ring":
        # A band, not a disc with a hole painted over it: the background shows through.
        pen.ellipse(box, outline=fill, width=max(1, round(r * 0.42)))
    elif item.shape == "rectangle":
        pen.rectangle((x - r, y - 0.72 * r, x + r, y + 0.72 * r), fill=fill)
    elif item.shape == "cross":
        pen.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=fill)
        pen.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=fill)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in OUTLINES[item.shape]], fill=fill)


def _star() -> list[tuple[float, float]]:
    return [
        (
            (1 if i % 2 == 0 else 0.42) * math.sin(math.pi * i / 5),
            -(1 if i % 2 == 0 else 0.42) * math.cos(math.pi * i / 5),
        )
        for i in range(10)
    ]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


# Corner points in units of the radius, y downwards.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "star": _star(),
    "heart": _heart(),
}


# How far a shape reaches to either side, up and down, in units of its radius, where it is not 1.
EXTENTS = {
    "rectangle": (1.0, 0.72, 0.72),
    **{
        shape: (
            max(abs(dx) for dx, _ in corners),
            -min(dy for _, dy in corners),
            max(dy for _, dy in corners),
        )
        for shape, corners in OUTLINES.items()
    },
}


def sign_areas(text: Text, scale: float) -> list[tuple[float, float, float, float]]:
    """The box of each sign in pixels: a glyph's strokes are thin, so its whole box stands for it.

    Args:
        text: what is written where.
        scale: pixels a unit.
    """
    _, top, right, bottom = (place * scale for place in text.box)
    starts = [edge * scale for edge in text.edges]
    ends = (*starts[1:], right)
    return [
        (start, top, max(start, end - 1), bottom - 1)
        for start, end in zip(starts, ends, strict=True)
    ]


def heaviest_label(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The label with the most weighted pixels of each patch: [grid, grid], ties to the lowest."""
    grid = len(labels) // PATCH_SIZE
    patches = labels.reshape(grid, PATCH_SIZE, grid, PATCH_SIZE).swapaxes(1, 2)
    flat = patches.reshape(grid * grid, PATCH_SIZE * PATCH_SIZE).astype(np.int64)
    counts = np.zeros((grid * grid, len(weight)), dtype=np.int64)
    np.add.at(counts, (np.arange(grid * grid)[:, None], flat), 1)
    return (counts * weight).argmax(1).reshape(grid, grid)


def _ask_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.texts) != 1:
        return None
    written = scene.texts[0].signs
    if written[0] in LETTERS:
        return Question("text", "what letters are written in the image?", written)
    return Question("text", "what number is written in the image?", written)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    return Question("count", "how many shapes are there?", str(len(scene.objects)))


def _ask_pattern(scene: Scene, rng: np.random.Generator) -> Question | None:
    half = int(rng.integers(2))
    side = SIDES[scene.layout][half]
    text = f"what pattern is the background at the {side}?"
    return Question("background_pattern", text, scene.patterns[half])


def _ask_tint(scene: Scene, rng: np.random.Generator) -> Question | None:
    half = int(rng.integers(2))
    side = SIDES[scene.layout][half]
    text = f"what color is the background at the {side}?"
    return Question("background_color", text, scene.tints[half])


def _only(values: Sequence[str]) -> list[int]:
    """Positions of the values that occur once."""
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.shape for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    return Question(
        "color", f"what color is the {item.shape}?", item.color, scene.pointing(item.shape)
    )


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.color for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    name = f"{item.color} object"
    return Question("shape", f"what shape is the {name}?", item.shape, scene.pointing(name))


def article(name: str) -> str:
    """The indefinite article that goes before ``name``."""
    return "an" if name[0] in "aeiou" else "a"


def _ask_exist(scene: Scene, rng: np.random.Generator) -> Question | None:
    present = {item.name for item in scene.objects}
    if not present:
        return None
    if rng.random() < 0.5:
        name = str(rng.choice(sorted(present)))
        text = f"is there {article(name)} {name}?"
        return Question("exist", text, "yes", scene.pointing(name))
    # Half of the absent ones recombine what is there: colour and shape must be bound, not spotted.
    mixed = {
        f"{one.color} {other.shape}" for one in scene.objects for other in scene.objects
    } - present
    if mixed and rng.random() < 0.5:
        name = str(rng.choice(sorted(mixed)))
    else:
        every = {f"{color} {shape}" for color in COLORS for shape in SHAPES}
        name = str(rng.choice(sorted(every - present)))
    return Question("exist", f"is there {article(name)} {name}?", "no")


# How far apart two centres must be, in pixels, for one to be plainly left of or above the other.
RELATION_MARGIN = 10


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.name for item in scene.objects])
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
    one, other = scene.objects[first].name, scene.objects[second].name
    text = f"is the {one} {word} the {other}?"
    return Question("relation", text, answer, scene.pointing(one, other))


def _ask_object(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.objects) != 1:
        return None
    return Question(
        "object", "what object is there?", scene.objects[0].name, scene.pointing("object")
    )


def binned(box: tuple[float, float, float, float]) -> list[int]:
    """The step of ``BINS`` in which each edge of a box in units lies."""
    return [min(BINS - 1, max(0, int(edge * BINS / SIDE))) for edge in box]


def box_words(box: tuple[float, float, float, float]) -> str:
    """A box as the model tells it: ``left3 top10 right7 bottom14``."""
    return " ".join(f"{edge}{step}" for edge, step in zip(EDGES, binned(box), strict=True))


def box_of(words: str) -> tuple[float, float, float, float] | None:
    """The box in units that `box_words` tells, the middle of each step; None where it is none."""
    pattern = " ".join(rf"{edge}(\d{{1,2}})" for edge in EDGES)
    found = re.fullmatch(pattern, words.strip())
    if found is None:
        return None
    left, top, right, bottom = ((int(step) + 0.5) * SIDE / BINS for step in found.groups())
    return left, top, right, bottom


def overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 where one is empty."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0.0, right - left) * max(0.0, bottom - top)

    starts = map(max, one[:2], other[:2])
    ends = map(min, one[2:], other[2:])
    shared = area(*starts, *ends)
    return shared / (area(*one) + area(*other) - shared) if shared else 0.0


# How much of the union of two boxes they must share for the one to be found, as detection has it.
SHARED = 0.5


def box_is_found(told: str, true: str) -> bool:
    """Whether the box told in words is the true one, as detection counts it."""
    one, other = box_of(told), box_of(true)
    return one is not None and other is not None and overlap(one, other) >= SHARED


def _ask_box(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.name for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    text = f"where is the {item.name}?"
    return Question("box", text, box_words(item.box), scene.pointing(item.name))


# How many times as large a radius must be for one object to be plainly bigger than another.
SIZE_MARGIN = 1.25


def _ask_bigger(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.name for item in scene.objects])
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
    one, other = scene.objects[first].name, scene.objects[second].name
    text = f"is the {one} bigger than the {other}?"
    return Question("bigger", text, answer, scene.pointing(one, other))


def _ask_same_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.shape for item in scene.objects])
    colors = [item.color for item in scene.objects]
    pairs = [(first, second) for first in unique for second in unique if first != second]
    alike = [pair for pair in pairs if colors[pair[0]] == colors[pair[1]]]
    apart = [pair for pair in pairs if colors[pair[0]] != colors[pair[1]]]
    # Most scenes have no pair of one colour: those that lack either answer are not asked about.
    if not alike or not apart:
        return None
    answer, among = ("yes", alike) if rng.random() < 0.5 else ("no", apart)
    first, second = among[int(rng.integers(len(among)))]
    one, other = scene.objects[first].shape, scene.objects[second].shape
    text = f"are the {one} and the {other} the same color?"
    return Question("same_color", text, answer, scene.pointing(one, other))


ASKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
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

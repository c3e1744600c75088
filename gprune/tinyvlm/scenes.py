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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 112
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
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
KINDS = SHAPES + DIGITS + PATTERNS
HUES = (*COLORS, "ink", *TINTS)
# What a patch marks: which digit of its number it shows, or the centre of an object.
MARKS = ("none", "first", "second", "third", "centre")

QUESTION_TYPES = (
    "text",
    "count",
    "background_pattern",
    "background_color",
    "color",
    "shape",
    "exist",
    "relation",
)


@dataclass(frozen=True)
class Object:
    """A coloured shape: centre (x, y) and radius in pixels of the finished picture."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Text:
    """A number, its box (left, top, right, bottom) and the left edge of each digit, in pixels."""

    digits: str
    font: str
    size: int
    box: tuple[float, float, float, float]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """A question of one of ``QUESTION_TYPES`` (or ``easy_vqa``) with its only right answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """What is in a picture; ``draw`` makes the pixels, ``ask`` the questions."""

    split: str
    seed: int
    index: int
    layout: str  # "columns": left and right halves; "rows": top and bottom halves
    border: int  # where the halves meet, in pixels
    patterns: tuple[str, str]
    tints: tuple[str, str]
    phases: tuple[float, float]
    objects: tuple[Object, ...]
    texts: tuple[Text, ...]

    def draw(self) -> Image.Image:
        """The RGB picture, ``IMAGE_SIZE`` pixels a side."""
        canvas = Image.fromarray(self._background())
        size = IMAGE_SIZE * SUPERSAMPLE
        canvas = canvas.resize((size, size), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(canvas)
        for item in self.objects:
            draw_shape(pen, item, COLORS[item.color], SUPERSAMPLE)
        for text in self.texts:
            font = load_font(text.font, text.size * SUPERSAMPLE)
            left, top = text.box[0] * SUPERSAMPLE, text.box[1] * SUPERSAMPLE
            pen.text((left, top), text.digits, font=font, fill=INK, anchor="lt")
        return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)

    def patch_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Dense labels of the patches: indices into ``KINDS`` and ``HUES``, both [GRID, GRID]."""
        kinds = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
        hues = np.zeros_like(kinds)
        for half, region in enumerate(self._halves()):
            kinds[region] = KINDS.index(self.patterns[half])
            hues[region] = HUES.index(self.tints[half])
        kind_image, hue_image = Image.fromarray(kinds), Image.fromarray(hues)
        kind_pen, hue_pen = ImageDraw.Draw(kind_image), ImageDraw.Draw(hue_image)
        for item in self.objects:
            draw_shape(kind_pen, item, KINDS.index(item.shape), 1)
            draw_shape(hue_pen, item, HUES.index(item.color), 1)
        for text in self.texts:
            for digit, area in zip(text.digits, digit_areas(text), strict=True):
                kind_pen.rectangle(area, fill=KINDS.index(digit))
                hue_pen.rectangle(area, fill=HUES.index("ink"))
        weight_kind = np.where(np.arange(len(KINDS)) < len(KINDS) - len(PATTERNS), 2, 1)
        weight_hue = np.where(np.arange(len(HUES)) < len(HUES) - len(TINTS), 2, 1)
        return (
            heaviest_label(np.asarray(kind_image), weight_kind),
            heaviest_label(np.asarray(hue_image), weight_hue),
        )

    def patch_marks(self) -> np.ndarray:
        """Indices into ``MARKS``, [GRID, GRID]: the order of digits and the centres of objects."""
        marks = Image.fromarray(np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8))
        pen = ImageDraw.Draw(marks)
        for text in self.texts:
            for place, area in enumerate(digit_areas(text), 1):
                pen.rectangle(area, fill=place)
        result = heaviest_label(np.asarray(marks), np.array([1, 2, 2, 2, 2]))
        for item in self.objects:
            result[int(item.y) // PATCH_SIZE, int(item.x) // PATCH_SIZE] = MARKS.index("centre")
        return result

    def foreground(self) -> np.ndarray:
        """True where a patch shows an object or a digit rather than background: [GRID, GRID]."""
        return self.patch_labels()[0] < len(KINDS) - len(PATTERNS)

    def ask(self, kinds: Sequence[str] = QUESTION_TYPES) -> list[Question]:
        """At most one question of each kind asked for, those that this scene can answer."""
        # A stream of its own: which kinds are asked must not change how another is worded.
        questions = (
            ASKERS[kind](
                self,
                stream(self.split, self.seed, self.index, 1 + QUESTION_TYPES.index(kind)),
            )
            for kind in kinds
        )
        return [question for question in questions if question is not None]

    def _halves(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        whole = slice(0, IMAGE_SIZE)
        first, second = slice(0, self.border), slice(self.border, IMAGE_SIZE)
        if self.layout == "columns":
            return (whole, first), (whole, second)
        return (first, whole), (second, whole)

    def _background(self) -> np.ndarray:
        pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        for half, region in enumerate(self._halves()):
            tint = np.array(TINTS[self.tints[half]])
            ink = (tint * 0.72).astype(np.uint8)
            mask = pattern_mask(self.patterns[half], self.phases[half])
            pixels[region] = np.where(mask[..., None], ink, tint.astype(np.uint8))[region]
        return pixels


def make_scene(split: str, seed: int, index: int, crowded: bool = False) -> Scene:
    """The scene of ``(split, seed, index)``; ``crowded`` asks for several numbers and
    many small objects, which give a dense per-patch objective more to learn from each picture.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = stream(split, seed, index, 0)
    layout = str(rng.choice(list(SIDES)))
    border = int(rng.integers(IMAGE_SIZE * 3 // 8, IMAGE_SIZE * 5 // 8 + 1))
    first, second = rng.choice(PATTERNS, 2)
    patterns = (str(first), str(second))
    first, second = rng.choice(list(TINTS), 2, replace=False)
    tints = (str(first), str(second))
    phases = (float(rng.random()), float(rng.random()))
    taken: list[tuple[float, float, float, float]] = []
    numbers = int(rng.integers(2, 6)) if crowded else int(rng.random() < 0.75)
    texts = [text for _ in range(numbers) if (text := _place_text(rng, taken)) is not None]
    wanted = int(rng.integers(5, 11)) if crowded else int(rng.integers(1, 8))
    scale = float(rng.uniform(0.6, 1.0) if crowded else rng.uniform(0.7, 1.6))
    objects = []
    for _ in range(wanted):
        item = _place_object(rng, taken, scale)
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
        left = float(rng.uniform(1, IMAGE_SIZE - width - 1))
        top = float(rng.uniform(1, IMAGE_SIZE - height - 1))
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
    rng: np.random.Generator, taken: list[tuple[float, float, float, float]], scale: float
) -> Object | None:
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
    radius = float(rng.uniform(7, 15)) * scale
    spot = _free_spot(rng, taken, 2 * radius, 2 * radius)
    if spot is None:
        return None
    return Object(shape, color, spot[0] + radius, spot[1] + radius, radius)


def _place_text(
    rng: np.random.Generator, taken: list[tuple[float, float, float, float]]
) -> Text | None:
    digits = "".join(str(digit) for digit in rng.integers(0, 10, 3))
    name, size = str(rng.choice(FONTS)), int(rng.integers(19, 29))
    font = load_font(name, size * SUPERSAMPLE)
    left, top, right, bottom = font.getbbox(digits, anchor="lt")
    width, height = (right - left) / SUPERSAMPLE, (bottom - top) / SUPERSAMPLE
    spot = _free_spot(rng, taken, width, height)
    if spot is None:
        return None
    edges = tuple(spot[0] + font.getlength(digits[:i]) / SUPERSAMPLE for i in range(len(digits)))
    return Text(digits, name, size, (*spot, spot[0] + width, spot[1] + height), edges)


@functools.lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib carries, at ``size`` pixels."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The basic layout engine: the other depends on libraries that a machine may lack.
    return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)


def pattern_mask(pattern: str, phase: float) -> np.ndarray:
    """True where a pattern puts ink, [IMAGE_SIZE, IMAGE_SIZE]; ``phase`` in [0, 1) shifts it."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    shift = int(phase * 12)
    if pattern == "plain":
        return np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
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
    pen: ImageDraw.ImageDraw, item: Object, fill: tuple[int, int, int] | int, scale: int
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


def digit_areas(text: Text) -> list[tuple[float, float, float, float]]:
    """The box of each digit: a glyph's strokes are thin, so its whole box stands for it."""
    _, top, right, bottom = text.box
    ends = (*text.edges[1:], right)
    return [
        (start, top, max(start, end - 1), bottom - 1)
        for start, end in zip(text.edges, ends, strict=True)
    ]


def heaviest_label(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The label with the most weighted pixels of each patch: [GRID, GRID], ties to the lowest."""
    patches = labels.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2)
    flat = patches.reshape(GRID * GRID, PATCH_SIZE * PATCH_SIZE).astype(np.int64)
    counts = np.zeros((GRID * GRID, len(weight)), dtype=np.int64)
    np.add.at(counts, (np.arange(GRID * GRID)[:, None], flat), 1)
    return (counts * weight).argmax(1).reshape(GRID, GRID)


def _ask_text(scene: Scene, rng: np.random.Generator) -> Question | None:
    if len(scene.texts) != 1:
        return None
    return Question("text", "what number is written in the image?", scene.texts[0].digits)


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
    return Question("color", f"what color is the {item.shape}?", item.color)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _only([item.color for item in scene.objects])
    if not unique:
        return None
    item = scene.objects[int(rng.choice(unique))]
    return Question("shape", f"what shape is the {item.color} object?", item.shape)


def article(name: str) -> str:
    """The indefinite article that goes before ``name``."""
    return "an" if name[0] in "aeiou" else "a"


def _ask_exist(scene: Scene, rng: np.random.Generator) -> Question | None:
    present = {item.name for item in scene.objects}
    if not present:
        return None
    if rng.random() < 0.5:
        name = str(rng.choice(sorted(present)))
        return Question("exist", f"is there {article(name)} {name}?", "yes")
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
    one, other = scene.objects[first], scene.objects[second]
    smaller, larger = ("left of", "right of") if axis == "x" else ("above", "below")
    true_word, false_word = smaller, larger
    if rng.random() < 0.5:
        one, other, true_word, false_word = other, one, larger, smaller
    if rng.random() < 0.5:
        return Question("relation", f"is the {one.name} {true_word} the {other.name}?", "yes")
    return Question("relation", f"is the {one.name} {false_word} the {other.name}?", "no")


ASKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "text": _ask_text,
    "count": _ask_count,
    "background_pattern": _ask_pattern,
    "background_color": _ask_tint,
    "color": _ask_color,
    "shape": _ask_shape,
    "exist": _ask_exist,
    "relation": _ask_relation,
}

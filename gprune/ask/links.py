"""What is compared, and the link that restores it; the scenes that a link can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from gprune.errors import plain_message
from gprune.pruners import RECOMMENDED, make

MOST_METHODS = 4
LONGEST_QUESTION = 500
# Held-out scenes with something to count, to read and to name.
SCENES = (4, 12, 3, 16, 1, 8)
SCENE_COUNT = 10_000


@dataclass(frozen=True)
class ComparisonSettings:
    """The inputs of a comparison that a link restores; uploaded images are not among them.

    Attributes:
        question: at most `LONGEST_QUESTION` characters.
        methods: one to `MOST_METHODS` names of `gprune.methods()`.
        keep: share of the visual tokens, in (0, 1].
        scene: index of a held-out scene of the tiny model's, or None for an uploaded image.

    Raises:
        ValueError: a value is out of range.
    """

    question: str = "what number is written in the image?"
    methods: tuple[str, ...] = ("gprune", RECOMMENDED, "weighted_cover", "random")
    keep: float = 0.25
    scene: int | None = SCENES[0]

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("question is empty; ask something about the picture")
        if len(self.question) > LONGEST_QUESTION:
            raise ValueError(
                f"question has {len(self.question)} characters; the limit is {LONGEST_QUESTION}"
            )
        if not 1 <= len(self.methods) <= MOST_METHODS:
            raise ValueError(
                f"{len(self.methods)} methods are chosen; choose 1 to {MOST_METHODS} of them"
            )
        if not 0 < self.keep <= 1:
            raise ValueError(
                f"keep={self.keep:g} is no share of the tokens; take a number above 0, up to 1"
            )
        for method in self.methods:
            make(method, self.keep)
        if self.scene is not None and not 0 <= self.scene < SCENE_COUNT:
            raise ValueError(
                f"scene={self.scene} does not exist; the scenes are 0 to {SCENE_COUNT - 1}"
            )

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> tuple[ComparisonSettings, list[str]]:
        """Reads settings from the query of a link, each field for itself.

        Args:
            query: text by name; names that are no fields are ignored.

        Returns:
            The settings, in which absent and bad fields have their defaults, and a sentence for
            each bad field that begins with its name.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name, read in READERS.items():
            if name not in query:
                continue
            try:
                value = read(query[name])
                cls(**{name: value})
            except ValueError as error:
                problems.append(f"{name}: {plain_message(error)}")
            else:
                values[name] = value
        return cls(**values), problems

    def to_query(self) -> str:
        """Returns the query of a link that restores these settings."""
        scene = "" if self.scene is None else self.scene
        return urlencode(
            {
                "question": self.question,
                "methods": ",".join(self.methods),
                "keep": f"{self.keep:g}",
                "scene": scene,
            }
        )


def read_methods(text: str) -> tuple[str, ...]:
    """Returns the names of a list with commas."""
    return tuple(name.strip() for name in text.split(","))


def read_keep(text: str) -> float:
    """Returns a number.

    Raises:
        ValueError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number; write 0.25 for a quarter of the tokens") from None


def read_scene(text: str) -> int | None:
    """Returns the number of a scene, None for an empty text.

    Raises:
        ValueError: the text is no whole number.
    """
    try:
        return int(text) if text else None
    except ValueError:
        raise ValueError(
            f"{text!r} is no whole number; the scenes are 0 to {SCENE_COUNT - 1}"
        ) from None


# By field of `ComparisonSettings`: turns its text in a link into its value.
READERS: dict[str, Callable[[str], Any]] = {
    "question": str,
    "methods": read_methods,
    "keep": read_keep,
    "scene": read_scene,
}


def scene_picture(index: int) -> Image.Image:
    """Draws a held-out scene for the tiny model."""
    from gprune.tinyvlm import make_scene

    return make_scene("test", 0, index).draw()


def scene_answers(index: int) -> dict[str, str]:
    """Returns the questions about a held-out scene with their right answers."""
    from gprune.tinyvlm import make_scene

    return {item.question: item.answer for item in make_scene("test", 0, index).ask()}

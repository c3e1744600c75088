"""Several methods on one question about one picture: what the web page shows, without the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from PIL import Image

import gprune
from gprune import SimilarityGraph, VisualTokens, viz
from gprune.ask.answers import answer, first_tokens, scores_features, shown_to
from gprune.costs import PrefillTimes, Saving, prefill_times
from gprune.graph import check_threshold

MOST_METHODS = 4
LONGEST_QUESTION = 500
# Pixels of a drawn picture's longer side: more would travel to the browser for nothing.
MOST_SHOWN = 1024
# Held-out scenes with something to count, to read, to name.
SCENES = (4, 12, 3, 16, 1, 8)
# The edges of the graph that a click shows, whatever the method: G-Prune's.
THRESHOLD, TEMPERATURE = 0.5, 0.03


@dataclass(frozen=True)
class Settings:
    """What a link restores. An uploaded picture is no part of it: it stays where it is.

    Attributes:
        question: at most `LONGEST_QUESTION` characters.
        methods: one to `MOST_METHODS` names of `gprune.methods()`.
        keep: share of the visual tokens, in (0, 1].
        scene: index of a held-out scene of the tiny model's, or None for an uploaded picture.

    Raises:
        ValueError: one of them is out of range.
    """

    question: str = "what number is written in the image?"
    methods: tuple[str, ...] = ("gprune", "graph_cover", "random")
    keep: float = 0.25
    scene: int | None = SCENES[0]

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("question is empty; ask something about the picture")
        if len(self.question) > LONGEST_QUESTION:
            raise ValueError(
                f"question has {len(self.question)} characters; at most {LONGEST_QUESTION} are "
                "taken here"
            )
        if not 1 <= len(self.methods) <= MOST_METHODS:
            raise ValueError(
                f"methods={list(self.methods)} are {len(self.methods)}; choose 1 to {MOST_METHODS}"
            )
        for method in self.methods:
            gprune.make(method, self.keep)
        if self.scene is not None and not 0 <= self.scene < 10_000:
            raise ValueError(f"scene={self.scene} must lie in [0, 10000)")

    @classmethod
    def of_link(cls, query: Mapping[str, str]) -> Settings:
        """The settings that a link's query holds, defaults for what it leaves out.

        Raises:
            ValueError: a value is out of range or no number.
        """
        values: dict[str, Any] = {}
        if "question" in query:
            values["question"] = query["question"]
        if "methods" in query:
            values["methods"] = tuple(query["methods"].split(","))
        try:
            if "keep" in query:
                values["keep"] = float(query["keep"])
            if "scene" in query:
                values["scene"] = int(query["scene"]) if query["scene"] else None
        except ValueError as error:
            raise ValueError(f"the link cannot be read: {error}") from None
        return cls(**values)

    def link(self) -> str:
        """The query of a link that restores these settings."""
        scene = "" if self.scene is None else self.scene
        return urlencode(
            {
                "question": self.question,
                "methods": ",".join(self.methods),
                "keep": f"{self.keep:g}",
                "scene": scene,
            }
        )


@dataclass(frozen=True, eq=False)
class Column:
    """What one method did.

    Attributes:
        method: its name.
        refusal: why it could not be used with this model, or None.
        text: the answer with pruning.
        kept: indices of the kept tokens of the first group.
        overlay: the kept tokens over the picture; None where they form no raster.
        scores: the score map; None for methods that choose a set without scoring tokens.
        saving: tokens, multiply-adds and cache.
        times: of the prefill, None where they were not asked for.
    """

    method: str
    refusal: str | None = None
    text: str = ""
    kept: tuple[int, ...] = ()
    overlay: Image.Image | None = None
    scores: Image.Image | None = None
    saving: Saving | None = None
    times: PrefillTimes | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """One question answered by several methods.

    Attributes:
        settings: what was asked for.
        full: the answer without pruning.
        expected: the right answer, where the scene knows it.
        shown: what the model sees of the first group.
        tokens: the first group.
        columns: one a method.
    """

    settings: Settings
    full: str
    expected: str | None
    shown: Image.Image
    tokens: VisualTokens
    columns: list[Column] = field(default_factory=list)

    def token_at(self, x: float, y: float) -> int:
        """The token under a point of the enlarged picture, in pixels.

        Raises:
            ValueError: the tokens form no raster, or the point lies outside.
        """
        grid = self.tokens.grid
        if grid is None:
            raise ValueError(
                "this model's visual tokens form no raster, so none lies under a point"
            )
        width, height = viz.enlarged(self.shown).size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point ({x}, {y}) lies outside the picture of {width} x {height}")
        return int(y * grid[0] / height) * grid[1] + int(x * grid[1] / width)

    def graph(self, token: int | None, threshold: float) -> tuple[Image.Image, str]:
        """The graph around a token over the picture, and what there is to say about it.

        ``token`` None takes the best-connected one.

        Raises:
            ValueError: ``threshold`` is no cosine, or there is no such token.
        """
        check_threshold(threshold)
        grid = self.tokens.grid
        if grid is None:
            raise ValueError("this model's visual tokens form no raster to draw a graph on")
        graph = SimilarityGraph.build(self.tokens.features, threshold, TEMPERATURE)
        if token is None:
            token = int(graph.degree.argmax())
        drawn = viz.graph_picture(self.shown, graph, token, grid)
        row, column = divmod(token, grid[1])
        keepers = [one.method for one in self.columns if token in one.kept]
        edges = int(graph.degree[token]) - 1  # without its loop
        words = (
            f"**Token {token}** (row {row}, column {column}) resembles **{edges}** of the other "
            f"{len(self.tokens) - 1} tokens with a cosine of at least {threshold:g}; the lines go "
            f"to the strongest {min(24, edges)}. "
            f"Kept by: **{', '.join(keepers) or 'no method here'}**."
        )
        return drawn, words


class Asker:
    """A model with its processor that answers one question at a time.

    Pruning changes a model's call for everyone who uses it, so two requests must not overlap. The
    page's queue sees to that; the lock here holds for every other way in.

    Attributes:
        model, processor: of a supported family.
        name: how the page calls the model.
        tiny: whether it is the shipped model, which knows few words.
        max_new_tokens: longest answer.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        tiny: bool = False,
        max_new_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.tiny = tiny
        self.max_new_tokens = max_new_tokens
        self._turn = threading.Lock()

    def compare(
        self, settings: Settings, picture: Image.Image | None, timed: bool = True
    ) -> Iterator[Comparison]:
        """Answers without pruning and by every method; yields after each method.

        Args:
            settings: the question, the methods and the budget.
            picture: an uploaded one; None takes the scene of ``settings``.
            timed: whether to time the prefill too, which takes eight more of them a method.

        Raises:
            ValueError: there is no picture, or the tiny model does not know a word of the question.
        """
        expected = None
        if picture is None:
            if settings.scene is None:
                raise ValueError("there is no picture; upload one or take an example")
            picture = scene_picture(settings.scene)
            expected = scene_answers(settings.scene).get(settings.question)
        if self.tiny:
            from gprune.tinyvlm.vocabulary import require_known

            require_known(self.processor.tokenizer, settings.question)
        comparison: Comparison | None = None
        for method in settings.methods:
            with self._turn:
                comparison = self._ask(comparison, method, settings, picture, expected, timed)
            yield comparison

    def _ask(
        self,
        before: Comparison | None,
        method: str,
        settings: Settings,
        picture: Image.Image,
        expected: str | None,
        timed: bool,
    ) -> Comparison:
        """``before`` with one more method's column; the first brings the unpruned answer."""
        if before is None:
            # Keeping everything is bit-identical to no pruning, and tells what the model sees too.
            everything = gprune.make("uniform_grid", 1.0)
            outcome = answer(
                *(self.model, self.processor, everything, [picture], settings.question),
                *(self.max_new_tokens, False),
            )
            shown = shown_to(self.processor, outcome, picture).copy()
            shown.thumbnail((MOST_SHOWN, MOST_SHOWN))
            tokens = first_tokens(self.model, outcome)
            before = Comparison(settings, outcome.answer_pruned, expected, shown, tokens)
        try:
            column = self._column(method, settings, picture, before, timed)
        except (ValueError, gprune.UnsupportedModelError) as error:
            # A method can need a signal that this model does not give.
            column = Column(method, refusal=" ".join(str(error).split()))
        return replace(before, columns=[*before.columns, column])

    def _column(
        self, method: str, settings: Settings, picture: Image.Image, page: Comparison, timed: bool
    ) -> Column:
        pruner = gprune.make(method, settings.keep)
        outcome = answer(
            *(self.model, self.processor, pruner, [picture], settings.question),
            *(self.max_new_tokens, False),
        )
        kept = tuple(outcome.pruned.kept[0][0].indices.tolist())
        overlay = scores = None
        grid = page.tokens.grid
        if grid is not None:
            overlay = viz.overlay(page.shown, kept, grid)
            if scores_features(pruner):
                scores = viz.score_map(page.shown, pruner.score(page.tokens), grid)
        times = prefill_times(self.model, outcome.inputs, pruner, repeats=3) if timed else None
        return Column(
            method, None, outcome.answer_pruned, kept, overlay, scores, outcome.saving, times
        )


def scene_picture(index: int) -> Image.Image:
    """A held-out scene as the tiny model takes it."""
    from gprune.tinyvlm import make_scene

    return make_scene("test", 0, index).draw()


def scene_answers(index: int) -> dict[str, str]:
    """What a held-out scene can be asked, with the right answers."""
    from gprune.tinyvlm import make_scene

    return {item.question: item.answer for item in make_scene("test", 0, index).ask()}

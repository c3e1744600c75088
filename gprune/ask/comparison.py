"""Compares several methods on one question about one image: the contents of the web page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from PIL import Image

from gprune import __version__, viz
from gprune.ask.answers import Outcome, answer
from gprune.ask.links import ComparisonSettings, scene_answers, scene_picture
from gprune.ask.pictures import first_group, has_feature_scores, model_view
from gprune.ask.progress import Progress, Watch, watched
from gprune.costs import PrefillTimes, Saving, prefill_times
from gprune.errors import UnsupportedModelError, plain_message
from gprune.graph import SimilarityGraph, check_threshold
from gprune.pruners import Pruner, make
from gprune.tokens import VisualTokens

# Longer side in pixels of an image on the page: more would only cost transfer time.
MOST_SHOWN = 1024
# The graph that a click draws is always built with G-Prune's defaults.
THRESHOLD, TEMPERATURE = 0.5, 0.03
# Neighbours of a token that are drawn.
MOST_NEIGHBOURS = 24
# Timed prefills of each method.
REPEATS = 3


@dataclass(frozen=True, eq=False)
class MethodResult:
    """The answer of one method, what it kept and what that saves.

    Attributes:
        method: its name.
        refusal: why it cannot be used with this model, or None.
        answer: the answer with pruning.
        kept: indices of the kept tokens of the first group.
        overlay: the kept tokens over the image; None where they form no raster.
        scores: the score map; None for methods that choose a set without scoring tokens.
        saving: tokens, multiply-adds and KV cache.
        times: prefill times, or None if they were not requested.
    """

    method: str
    refusal: str | None = None
    answer: str = ""
    kept: tuple[int, ...] = ()
    overlay: Image.Image | None = None
    scores: Image.Image | None = None
    saving: Saving | None = None
    times: PrefillTimes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pictures, for JSON."""
        return {
            "method": self.method,
            "refusal": self.refusal,
            "answer": None if self.refusal else self.answer,
            "kept": list(self.kept),
            "saving": None if self.saving is None else asdict(self.saving),
            "prefill": None if self.times is None else asdict(self.times),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """One question answered by several methods.

    Attributes:
        settings: the inputs.
        answer_full: the answer without pruning.
        expected: the right answer, or None where it is unknown.
        view: the part of the image that the first group's tokens show.
        tokens: the first group.
        results: one for each method so far.
        model: the model's name.
    """

    settings: ComparisonSettings
    answer_full: str
    expected: str | None
    view: Image.Image
    tokens: VisualTokens
    results: list[MethodResult] = field(default_factory=list)
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pictures, for JSON; None stands for what is unknown."""
        return {
            "gprune": __version__,
            "model": self.model,
            **{name: getattr(self.settings, name) for name in ("question", "keep", "scene")},
            "right_answer": self.expected,
            "answer": self.answer_full,
            "tokens": len(self.tokens),
            "grid": self.tokens.grid,
            "methods": [one.to_dict() for one in self.results],
        }

    def token_at(self, x: float, y: float) -> int:
        """Returns the index of the token under a point of the enlarged image, in pixels.

        Raises:
            ValueError: the tokens form no raster, or the point lies outside the image.
        """
        grid = self.tokens.grid
        if grid is None:
            raise ValueError("this model's visual tokens form no raster, so no token has a place")
        width, height = viz.enlarged(self.view).size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point ({x}, {y}) lies outside the picture of {width} x {height}")
        return int(y * grid[0] / height) * grid[1] + int(x * grid[1] / width)

    def graph(self, token: int | None, threshold: float) -> tuple[Image.Image, str]:
        """Draws the similarity graph around a token and describes it in Markdown.

        Args:
            token: its index; None takes the token with most edges.
            threshold: least cosine similarity of an edge.

        Raises:
            ValueError: ``threshold`` is not a cosine, there is no such token, or the tokens form
                no raster.
        """
        check_threshold(threshold)
        grid = self.tokens.grid
        if grid is None:
            raise ValueError("this model's visual tokens form no raster to draw a graph on")
        graph = SimilarityGraph.build(self.tokens.features, threshold, TEMPERATURE)
        if token is None:
            token = int(graph.degree.argmax())
        drawn = viz.graph_picture(self.view, graph, token, grid, MOST_NEIGHBOURS)
        row, column = divmod(token, grid[1])
        keepers = [one.method for one in self.results if token in one.kept]
        edges = int(graph.degree[token]) - 1  # without the edge to itself
        description = (
            f"**Token {token}** (row {row}, column {column}) resembles **{edges}** of the other "
            f"{len(self.tokens) - 1} tokens with a cosine of at least {threshold:g}; the lines go "
            f"to the strongest {min(MOST_NEIGHBOURS, edges)}. "
            f"Kept by: **{', '.join(keepers) or 'no method here'}**."
        )
        return drawn, description


class SharedModel:
    """A model and its processor, shared by threads: it answers one question at a time.

    Pruning installs hooks on the model, which every caller would run, so two requests must not
    overlap. The web page queues its requests; the lock here protects all other callers.

    Attributes:
        model: of a supported family.
        processor: the model's.
        name: the model's name on the page.
        tiny: whether it is the shipped model, which has a small vocabulary.
        max_new_tokens: longest answer; the model's own limit by default.
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
        self._lock = threading.Lock()

    def compare(
        self,
        settings: ComparisonSettings,
        image: Image.Image | None,
        timed: bool = True,
        watch: Watch | None = None,
    ) -> Iterator[Comparison]:
        """Answers without pruning and with every method; yields after each method.

        Args:
            settings: the question, the methods and the budget.
            image: an uploaded one; None takes the scene of ``settings``.
            timed: whether to time the prefill too, which runs it eight more times for each method.
            watch: is told how far the model is, before each of its layers. What it raises ends the
                comparison, such as `Cancelled`.

        Raises:
            ValueError: there is no image, or the tiny model does not know a word of the question.
        """
        expected = None
        if image is not None:
            settings = replace(settings, scene=None)
        else:
            image, answers = scene_of(settings)
            expected = answers.get(settings.question)
        self.check_question(settings.question)
        total = len(settings.methods) + 1
        comparison: Comparison | None = None
        for answered, method in enumerate(settings.methods, 1):
            with self._lock:
                if comparison is None:
                    with watched(self.model, Progress(None, 0, total), watch):
                        comparison = self._unpruned(settings, image, expected)
                progress = Progress(method, answered, total)
                result = self._result(comparison, image, timed, progress, watch)
            comparison = replace(comparison, results=[*comparison.results, result])
            yield comparison

    def check_question(self, question: str) -> None:
        """Checks that the model knows every word of a question; only the tiny one may not.

        Raises:
            ValueError: a word is unknown.
        """
        if self.tiny:
            from gprune.tinyvlm.vocabulary import require_known

            require_known(self.processor.tokenizer, question)

    def _answer(self, pruner: Pruner, image: Image.Image, question: str) -> Outcome:
        return answer(
            self.model,
            self.processor,
            pruner,
            [image],
            question,
            self.max_new_tokens,
            compare=False,
        )

    def _unpruned(
        self, settings: ComparisonSettings, image: Image.Image, expected: str | None
    ) -> Comparison:
        """Answers without pruning; the comparison has no results yet."""
        # Keeping everything gives bit-identical answers to no pruning, and the first group with it.
        outcome = self._answer(make("uniform_grid", 1.0), image, settings.question)
        view = model_view(self.processor, outcome, image).copy()
        view.thumbnail((MOST_SHOWN, MOST_SHOWN))
        tokens = first_group(self.model, outcome)
        return Comparison(settings, outcome.answer_pruned, expected, view, tokens, model=self.name)

    def _result(
        self,
        comparison: Comparison,
        image: Image.Image,
        timed: bool,
        progress: Progress,
        watch: Watch | None,
    ) -> MethodResult:
        """Answers with the method of ``progress``, or tells why it cannot be used here."""
        settings, method = comparison.settings, str(progress.method)
        pruner = make(method, settings.keep)
        try:
            with watched(self.model, progress, watch):
                outcome = self._answer(pruner, image, settings.question)
        except (ValueError, UnsupportedModelError) as error:
            # For example a method that needs attention weights which this model does not give.
            return MethodResult(method, refusal=plain_message(error))
        kept = tuple(outcome.pruned.kept[0][0].indices.tolist())
        overlay = scores = None
        grid = comparison.tokens.grid
        if grid is not None:
            overlay = viz.overlay(comparison.view, kept, grid)
            if has_feature_scores(pruner):
                scores = viz.score_map(comparison.view, pruner.score(comparison.tokens), grid)
        times = None
        if timed:
            with watched(self.model, replace(progress, timing=True), watch):
                times = prefill_times(self.model, outcome.inputs, pruner, repeats=REPEATS)
        return MethodResult(
            *(method, None, outcome.answer_pruned, kept),
            *(overlay, scores, outcome.saving, times),
        )


def scene_of(settings: ComparisonSettings) -> tuple[Image.Image, dict[str, str]]:
    """Returns the picture of a scene, and the questions about it with their right answers.

    Raises:
        ValueError: the settings name no scene.
    """
    if settings.scene is None:
        raise ValueError("there is no picture; upload one or take an example")
    return scene_picture(settings.scene), scene_answers(settings.scene)

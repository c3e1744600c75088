"""The functions that the page's events call. What each returns is written into components."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from gprune import viz
from gprune.app.results import results_table
from gprune.ask.comparison import (
    MOST_METHODS,
    SCENES,
    Comparison,
    ComparisonSettings,
    MethodResult,
    SharedModel,
    scene_answers,
    scene_picture,
)
from gprune.ask.prompts import open_image


@dataclass(frozen=True, eq=False)
class AskCallback:
    """The callback of the button.

    Attributes:
        shared: answers the questions.
        most_pixels: larger uploads are refused before they are decoded.
    """

    shared: SharedModel
    most_pixels: int

    def ask(
        self,
        path: str | None,
        scene: int | None,
        question: str | None,
        methods: Sequence[str],
        keep: float,
        timed: bool,
    ) -> Iterator[list[Any]]:
        """Yields the values of `comparison_values` after each method.

        Raises:
            gr.Error: the inputs are out of range or the file is not a usable image.
        """
        try:
            # The slider's 1 is an int, which would be a count.
            settings = ComparisonSettings(question or "", tuple(methods), float(keep), scene)
            image = None
            if scene is None and path is not None:
                image = open_image(Path(path), self.most_pixels)
            for comparison in self.shared.compare(settings, image, timed):
                yield comparison_values(comparison)
        except (ValueError, TypeError) as error:
            # The visitor knows the name of the file, not the temporary folder of the server.
            sentence = str(error).replace(f"{Path(path or '').parent}{os.sep}", "")
            raise gr.Error(sentence, duration=None, print_exception=False) from None


def comparison_values(comparison: Comparison) -> list[Any]:
    """Returns the values of the answers' components, in the order of `page.answer_outputs`."""
    values: list[Any] = [
        comparison,
        None,  # the graph of a new answer starts from its own token with most edges
        results_table(comparison),
        comparison.settings.to_query(),
        gr.Row(visible=True),
        viz.enlarged(comparison.view),
    ]
    for result in comparison.results:
        values += column_values(result)
    hidden = [gr.Column(visible=False), "", None, "", None]
    return values + hidden * (MOST_METHODS - len(comparison.results))


def column_values(result: MethodResult) -> list[Any]:
    """Returns the values of one method's column: column, title, overlay, caption, scores."""
    scored = result.scores is not None
    caption = "score of each token, by rank" if scored else "chooses a set: tokens have no score"
    return [
        gr.Column(visible=result.refusal is None),
        f"**{result.method}** keeps",
        result.overlay,
        caption,
        gr.Image(value=result.scores, visible=scored),
    ]


def restore_link(request: gr.Request) -> list[Any]:
    """Returns the values that a link gives to picture, scene, question, methods and keep.

    A bad link gives the defaults and a warning.
    """
    try:
        settings = ComparisonSettings.from_query(dict(request.query_params))
    except (ValueError, TypeError) as error:
        gr.Warning(f"{error}. The page shows its defaults instead.")
        settings = ComparisonSettings()
    if settings.scene is None:
        controls = [None, None, gr.Dropdown(choices=[], value=settings.question)]
    else:
        controls = scene_values(settings.scene, settings.question)
    return [*controls, list(settings.methods), settings.keep]


def scene_values(scene: int, question: str | None = None) -> list[Any]:
    """Returns a scene's picture, its index and the questions about it."""
    questions = list(scene_answers(scene))
    picture = viz.enlarged(scene_picture(scene))
    return [picture, scene, gr.Dropdown(choices=questions, value=question or questions[0])]


def choose_example(event: gr.SelectData) -> list[Any]:
    """Returns the values of `scene_values` for the example that was clicked."""
    return scene_values(SCENES[event.index])


def forget_scene() -> tuple[None, gr.Dropdown]:
    """Returns no scene and no questions: an uploaded picture replaces the scene."""
    return None, gr.Dropdown(choices=[])


def click_token(
    comparison: Comparison | None, threshold: float, event: gr.SelectData
) -> tuple[Image.Image, str, int]:
    """Returns the graph around the clicked token, its description and the token's index."""
    if comparison is None:
        raise gr.Error("ask a question first", print_exception=False)
    token = comparison.token_at(*event.index)
    return *comparison.graph(token, threshold), token


def draw_graph(
    comparison: Comparison | None, token: int | None, threshold: float
) -> tuple[Image.Image | None, str]:
    """Returns the graph around the token last clicked, or around the one with most edges."""
    if comparison is None or comparison.tokens.grid is None:
        return None, ""
    return comparison.graph(token, threshold)

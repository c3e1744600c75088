"""The functions that the page's events call. What each returns is written into components."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from gprune import viz
from gprune.app import messages
from gprune.app.downloads import comparison_json, comparison_png
from gprune.app.results import method_title, results_table
from gprune.app.running import StoppedRuns, run_comparison
from gprune.ask.comparison import Comparison, MethodResult, SharedModel
from gprune.ask.links import (
    MOST_METHODS,
    SCENES,
    ComparisonSettings,
    scene_answers,
    scene_picture,
)
from gprune.ask.progress import Progress
from gprune.ask.prompts import open_image

# What the tiny model can be asked about a photograph: types of questions that it was trained on,
# take nothing for granted, and got well-formed answers on all photographs that were tried.
OPEN_QUESTIONS = (
    "what object is there?",
    "how many shapes are there?",
    "is there a red circle?",
    "is there a blue rectangle?",
    "is there a green star?",
    "is there a yellow circle?",
)


@dataclass(frozen=True, eq=False)
class Callbacks:
    """The callbacks that need the model or its limits.

    Attributes:
        shared: answers the questions.
        most_pixels: larger uploads are refused before they are decoded.
    """

    shared: SharedModel
    most_pixels: int
    stopped: StoppedRuns = field(default_factory=StoppedRuns)

    def ask(
        self,
        ticket: str,
        path: str | None,
        scene: int | None,
        question: str | None,
        methods: Sequence[str],
        keep: float,
        timed: bool,
    ) -> Iterator[list[Any]]:
        """Yields the values of `idle` or `busy`, then those of `answer_values`.

        Errors become a message, and the old answers are cleared.
        """
        if ticket in self.stopped:
            return  # cancelled while it waited in the queue
        try:
            # The slider's 1 is an int, which would be a count.
            settings = ComparisonSettings(question or "", tuple(methods), float(keep), scene)
            image = None
            if scene is None and path is not None:
                image = open_image(Path(path), self.most_pixels)
            yield from self.answers(ticket, settings, image, timed)
        except Exception as error:
            sentence = messages.error_sentence(error, path)
            yield [*idle(messages.error_html(sentence)), *cleared()]

    def answers(
        self, ticket: str, settings: ComparisonSettings, image: Image.Image | None, timed: bool
    ) -> Iterator[list[Any]]:
        """Yields what `ask` does, without errors, until all have answered or the run is stopped.

        The last values are those of `idle` in any case: a report of progress may reach the browser
        after the values of `cancel`.
        """
        begin = time.monotonic()
        unchanged = [gr.skip()] * len(cleared())
        progress = Progress(None, 0, len(settings.methods) + 1)
        with closing(run_comparison(self.shared, settings, image, timed)) as steps:
            for item in steps:
                if ticket in self.stopped:
                    keep_answers = self.stopped.keeps_answers(ticket)
                    yield [*cancelled(), *unchanged] if keep_answers else new_picture_values()
                    return
                if isinstance(item, Progress):
                    progress, values = item, unchanged
                else:
                    values = answer_values(item)
                yield [*busy(messages.progress_html(progress, time.monotonic() - begin)), *values]
        yield [*idle(), *unchanged]

    def cancel(self, ticket: str) -> list[Any]:
        """Stops a run, and returns the values of `cancelled`."""
        self.stopped.stop(ticket, keep_answers=True)
        return cancelled()

    def restore_link(self, request: gr.Request) -> list[Any]:
        """Returns what a link says: picture, scene, question, methods, keep, and a message.

        A bad field gets its default, and the message names it.
        """
        query = dict(request.query_params)
        settings, problems = ComparisonSettings.from_query(query)
        if settings.scene is None:
            controls = [None, None, self.question_value(settings.question, OPEN_QUESTIONS)]
        else:
            # Without a question in the link, one about this scene.
            question = settings.question if "question" in query else None
            controls = self.scene_values(settings.scene, question)
        message = messages.link_html(problems)
        return [*controls, list(settings.methods), settings.keep, message]

    def choose_example(self, ticket: str, question: str | None, event: gr.SelectData) -> list[Any]:
        """Stops a run, and returns the values of an example and of `new_picture_values`.

        The question becomes one about the example, unless it is the visitor's own.
        """
        self.stopped.stop(ticket, keep_answers=False)
        scene = SCENES[event.index]
        own = not self.shared.tiny and question not in example_questions()
        values = self.scene_values(scene, question if own else None)
        return [*values, "", *new_picture_values()]

    def take_upload(self, ticket: str, question: str | None, path: str | None) -> list[Any]:
        """Stops a run, and returns the values of an uploaded picture and `new_picture_values`.

        A file that cannot be used is removed again, and a message says why.
        """
        self.stopped.stop(ticket, keep_answers=False)
        # The path itself, not an update: Gradio would build the component anew for this visitor,
        # and decode the next upload itself, without the limits of `open_image`.
        value = path
        note = messages.note_html(messages.DRAWN_SCENES_ONLY) if self.shared.tiny else ""
        try:
            if path is not None:
                open_image(Path(path), self.most_pixels)
        except ValueError as error:
            value, note = None, messages.error_html(messages.error_sentence(error, path))
        if self.shared.tiny and question not in OPEN_QUESTIONS:
            question = OPEN_QUESTIONS[0]
        controls = [value, None, self.question_value(question, OPEN_QUESTIONS)]
        return [*controls, note, *new_picture_values()]

    def forget_picture(self, ticket: str) -> list[Any]:
        """Stops a run: the visitor removed the picture. Returns no scene and no answers."""
        self.stopped.stop(ticket, keep_answers=False)
        return [None, "", *new_picture_values()]

    def scene_values(self, scene: int, question: str | None = None) -> list[Any]:
        """Returns a scene's picture, its index and the questions about it."""
        questions = list(scene_answers(scene))
        picture = viz.enlarged(scene_picture(scene))
        return [picture, scene, self.question_value(question or questions[0], questions)]

    def question_value(self, question: str | None, choices: Sequence[str]) -> Any:
        """Returns an update of the question; only the tiny model's has choices."""
        if self.shared.tiny:
            return gr.Dropdown(choices=list(choices), value=question)
        return gr.Textbox(value=question)


def example_questions() -> set[str]:
    """Returns the questions about all examples."""
    return {question for scene in SCENES for question in scene_answers(scene)}


def busy(status: str) -> list[Any]:
    """Returns values while a model answers: the buttons Ask and Cancel, and the status."""
    return [gr.Button(interactive=False), gr.Button(interactive=True), status]


def idle(status: str = "") -> list[Any]:
    """Returns values while no model answers: the buttons Ask and Cancel, and the status."""
    return [gr.Button(interactive=True), gr.Button(interactive=False), status]


def start() -> list[Any]:
    """Returns a new ticket, and the values of `busy` until the model is free for this visitor."""
    return [secrets.token_hex(), *busy(messages.running_html("waiting for the model", 0))]


def cancelled() -> list[Any]:
    """Returns the values of `idle` after a click on Cancel."""
    return idle(messages.note_html("Cancelled. The answers that were there stay."))


def new_picture_values() -> list[Any]:
    """Returns the values of `idle` and `cleared`: old answers are about another picture."""
    return [*idle(), *cleared()]


def cleared() -> list[Any]:
    """Returns values that remove all answers, in the order of `page.answer_outputs`."""
    shut = [gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)]
    row = [gr.Column(visible=False), gr.Row(visible=False)]
    return [None, None, "", "", "", *row, *shut, gr.Radio(visible=False), None, *hidden_columns(0)]


def answer_values(comparison: Comparison) -> list[Any]:
    """Returns the values of the answers' components, in the order of `page.answer_outputs`."""
    values: list[Any] = [
        comparison,
        None,  # the graph of a new answer starts from its own token with most edges
        results_table(comparison),
        comparison.settings.to_query(),
        gr.skip(),  # the link, which the browser writes after the last answer
        gr.Column(visible=True),
        gr.Row(visible=False),
        gr.DownloadButton(interactive=False),
        gr.DownloadButton(interactive=False),
        gr.Radio(visible=any(one.scores is not None for one in comparison.results)),
        viz.enlarged(comparison.view),
    ]
    for result in comparison.results:
        values += column_values(result)
    return values + hidden_columns(len(comparison.results))


def column_values(result: MethodResult) -> list[Any]:
    """Returns the values of one method's column: column, title, overlay, scores."""
    return [
        gr.Column(visible=result.overlay is not None),
        method_title(result),
        result.overlay,
        gr.Image(value=result.scores, visible=result.scores is not None),
    ]


def hidden_columns(used: int) -> list[Any]:
    """Returns the values of the columns after the first ``used``."""
    return [gr.Column(visible=False), "", None, None] * (MOST_METHODS - used)


def finish(comparison: Comparison | None, token: int | None, threshold: float) -> list[Any]:
    """Returns what is drawn after the last answer: graph, its description, row and downloads."""
    if comparison is None:
        return [None, "", gr.Row(visible=False), gr.skip(), gr.skip()]
    files = (
        save_bytes_to_cache(data, name, get_upload_folder())
        for data, name in (
            (comparison_png(comparison), "gprune.png"),
            (comparison_json(comparison), "gprune.json"),
        )
    )
    return [
        *draw_graph(comparison, token, threshold),
        gr.Row(visible=comparison.tokens.grid is not None),
        *(gr.DownloadButton(value=file, interactive=True) for file in files),
    ]


def click_token(
    comparison: Comparison | None, threshold: float, event: gr.SelectData
) -> tuple[Image.Image | None, str, int | None]:
    """Returns the graph around the clicked token, its description and the token's index."""
    if comparison is None or comparison.tokens.grid is None:
        return None, "", None
    # The browser's last pixel can round to the width of the picture.
    size = viz.enlarged(comparison.view).size
    x, y = (min(place, side - 1) for place, side in zip(event.index, size, strict=True))
    token = comparison.token_at(x, y)
    return *comparison.graph(token, threshold), token


def draw_graph(
    comparison: Comparison | None, token: int | None, threshold: float
) -> tuple[Image.Image | None, str]:
    """Returns the graph around the token last clicked, or around the one with most edges."""
    if comparison is None or comparison.tokens.grid is None:
        return None, ""
    return comparison.graph(token, threshold)

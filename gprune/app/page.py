"""The page: its layout connected to its callbacks, with a queue in front of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from gprune.app import callbacks, layout
from gprune.app.callbacks import Callbacks
from gprune.ask.comparison import SharedModel

TITLE = "gprune: what does a model need to see?"
# One request at a time reaches the model, whoever asks; others wait in the queue.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
# The graph needs no model, so it is drawn while another visitor's question is answered.
DRAWING: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 1}
# The status shows progress; Gradio's own would cover the components.
QUIET: dict[str, Any] = {"show_progress": "hidden"}
# Seconds after which a visitor's last comparison is deleted, and an uploaded file with it.
LIFETIME = 3600
# Seconds between two deletions of old files.
CLEANING = 600
LONGEST_QUEUE = 32

# Writes the settings into the address bar and returns the whole link; nothing after an error.
SHOW_LINK = """(query) => {
  if (!query) return "";
  const link = `${location.origin}${location.pathname}?${query}`;
  history.replaceState(null, "", link);
  return link;
}"""


@dataclass(frozen=True, eq=False)
class PageParts:
    """All components, and the state of a visitor.

    Attributes:
        ticket: names the visitor's last run of the model. The browser sends it with each run, so
            unlike a state it is the run's own, even if another one was started since.
        query: that of the link.
        comparison: the last comparison.
        token: the clicked token.
        scene: the chosen scene, None for an uploaded picture.
        inputs: what a visitor sets.
        answers: the answers.
        graph: the graph around the token.
    """

    ticket: gr.Textbox
    query: gr.Textbox
    comparison: gr.State
    token: gr.State
    scene: gr.State
    inputs: layout.Inputs
    answers: layout.Answers
    graph: layout.GraphView

    @property
    def run_outputs(self) -> list[Any]:
        """The components that `callbacks.idle` and `callbacks.busy` fill."""
        return [self.inputs.ask, self.inputs.cancel, self.inputs.status]

    @property
    def answer_outputs(self) -> list[Any]:
        """The components that `callbacks.answer_values` and `callbacks.cleared` fill."""
        shown = self.answers
        state = [self.comparison, self.token, shown.table, self.query, self.inputs.link]
        files = [shown.picture_file, shown.json_file]
        rows = [shown.section, self.graph.row]
        return [*state, *rows, *files, shown.shown, shown.view, *shown.columns]

    @property
    def graph_outputs(self) -> list[Any]:
        """The picture and the description of the graph."""
        return [self.graph.picture, self.graph.description]

    @property
    def graph_inputs(self) -> list[Any]:
        """The inputs of `callbacks.draw_graph` and `callbacks.finish`."""
        return [self.comparison, self.token, self.graph.threshold]


def build(shared: SharedModel, most_pixels: int) -> gr.Blocks:
    """Builds the page with its queue.

    Args:
        shared: answers the questions.
        most_pixels: larger uploads are refused before they are decoded.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEANING, LIFETIME)) as page:
        layout.header(shared)
        parts = PageParts(
            ticket=gr.Textbox(visible=False),
            query=gr.Textbox(visible=False),
            comparison=gr.State(None, time_to_live=LIFETIME),
            token=gr.State(None),
            scene=gr.State(None),
            inputs=layout.inputs(shared),
            answers=layout.answers(),
            graph=layout.graph_view(),
        )
        calls = Callbacks(shared, most_pixels)
        connect_answers(page, parts, calls)
        connect_pictures(parts, calls)
        connect_graph(parts)
    return page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1, api_open=False)


def connect_answers(page: gr.Blocks, parts: PageParts, calls: Callbacks) -> None:
    """Answers when the button is pressed and, with the tiny model, when the page is opened."""
    given, runs = parts.inputs, [parts.ticket, *parts.run_outputs]
    asked = [given.picture, parts.scene, given.question, given.methods, given.keep, given.timed]
    outputs = [*parts.run_outputs, *parts.answer_outputs]

    def answer_on(trigger: Any) -> None:
        """Writes the answers, then the link in the address bar, then graph and downloads."""
        (
            trigger(callbacks.start, None, runs, queue=False, **QUIET)
            .then(calls.ask, [parts.ticket, *asked], outputs, **QUIET, **ONE_AT_A_TIME)
            .success(None, parts.query, given.link, js=SHOW_LINK)
            .then(*finishing(parts), **QUIET, **DRAWING)
        )

    answer_on(given.ask.click)
    given.cancel.click(calls.cancel, parts.ticket, parts.run_outputs, queue=False, **QUIET)
    restored = [given.picture, parts.scene, given.question, given.methods, given.keep]
    loaded = page.load(calls.restore_link, None, [*restored, given.link_message])
    if calls.shared.tiny:
        # A first answer at once; a large model would take too long.
        answer_on(loaded.success)


def finishing(parts: PageParts) -> tuple[Any, ...]:
    """Returns `callbacks.finish` with its inputs and outputs."""
    files = [parts.answers.picture_file, parts.answers.json_file]
    return callbacks.finish, parts.graph_inputs, [*parts.graph_outputs, parts.graph.row, *files]


def connect_pictures(parts: PageParts, calls: Callbacks) -> None:
    """Makes examples and uploads replace each other; the answers before them are cleared."""
    given = parts.inputs
    answers = [given.picture_message, *parts.run_outputs, *parts.answer_outputs]
    chosen = [given.picture, parts.scene, given.question]
    run = [parts.ticket, given.question]
    for event, call, call_inputs, outputs in (
        (given.examples.select, calls.choose_example, run, chosen),
        (given.picture.upload, calls.take_upload, [*run, given.picture], chosen),
        (given.picture.clear, calls.forget_picture, [parts.ticket], [parts.scene]),
    ):
        changed = event(call, call_inputs, [*outputs, *answers], show_progress_on=[given.picture])
        # Removes a graph of the old picture too that was being drawn meanwhile.
        changed.then(*finishing(parts), **QUIET, **DRAWING)


def connect_graph(parts: PageParts) -> None:
    """Redraws the graph on a click into a picture and when the threshold changes."""
    graph = parts.graph
    for clickable in (parts.answers.view, graph.picture, *parts.answers.clickable):
        clickable.select(
            callbacks.click_token,
            [parts.comparison, graph.threshold],
            [*parts.graph_outputs, parts.token],
            **DRAWING,
        )
    graph.threshold.release(
        callbacks.draw_graph, parts.graph_inputs, parts.graph_outputs, **DRAWING
    )

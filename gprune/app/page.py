"""The page: its layout connected to its callbacks, with a queue in front of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from gprune.app import callbacks, layout
from gprune.ask.comparison import SharedModel

TITLE = "gprune: what does a model need to see?"
# One request at a time reaches the model, whoever asks; others wait in the queue.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
# Seconds after which a visitor's last comparison is deleted, and an uploaded file with it.
LIFETIME = 3600
# Seconds between two deletions of old files.
CLEANING = 600
LONGEST_QUEUE = 32

# Writes the settings into the address bar and returns the whole link.
SHOW_LINK = """(query) => {
  const settings = query.includes("?") ? query.split("?")[1] : query;
  const link = `${location.origin}${location.pathname}?${settings}`;
  history.replaceState(null, "", link);
  return link;
}"""


@dataclass(frozen=True, eq=False)
class PageParts:
    """All components, and the state of a visitor: last comparison, clicked token, chosen scene."""

    comparison: gr.State
    token: gr.State
    scene: gr.State
    inputs: layout.Inputs
    table: gr.HTML
    pictures: layout.Pictures
    graph: layout.GraphView
    link: gr.Textbox

    @property
    def answer_outputs(self) -> list[Any]:
        """The components that `callbacks.comparison_values` fills."""
        state = [self.comparison, self.token, self.table, self.link]
        return [*state, self.pictures.row, self.pictures.view, *self.pictures.columns]

    @property
    def graph_outputs(self) -> list[Any]:
        """The picture and the description of the graph."""
        return [self.graph.picture, self.graph.description]


def build(shared: SharedModel, most_pixels: int) -> gr.Blocks:
    """Builds the page with its queue.

    Args:
        shared: answers the questions.
        most_pixels: larger uploads are refused before they are decoded.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEANING, LIFETIME)) as page:
        layout.header(shared.name)
        parts = PageParts(
            comparison=gr.State(None, time_to_live=LIFETIME),
            token=gr.State(None),
            scene=gr.State(None),
            inputs=layout.inputs(shared),
            table=gr.HTML(elem_id="table"),
            pictures=layout.pictures(),
            graph=layout.graph_view(),
            link=layout.link_box(),
        )
        connect_answers(page, parts, shared, most_pixels)
        connect_inputs(parts)
        connect_graph(parts)
    return page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1, api_open=False)


def connect_answers(
    page: gr.Blocks, parts: PageParts, shared: SharedModel, most_pixels: int
) -> None:
    """Answers when the button is pressed and, with the tiny model, when the page is opened."""
    given = parts.inputs
    ask = callbacks.AskCallback(shared, most_pixels).ask

    def answer_on(trigger: Any) -> None:
        """Writes the answers, then the link in the address bar, then the graph."""
        (
            trigger(
                ask,
                [
                    *(given.picture, parts.scene, given.question),
                    *(given.methods, given.keep, given.timed),
                ],
                parts.answer_outputs,
                show_progress_on=[parts.table],
                **ONE_AT_A_TIME,
            )
            .success(None, parts.link, parts.link, js=SHOW_LINK)
            .then(callbacks.draw_graph, graph_inputs(parts), parts.graph_outputs, **ONE_AT_A_TIME)
            .then(lambda: gr.Row(visible=True), None, parts.graph.row)
        )

    answer_on(given.button.click)
    restored = [given.picture, parts.scene, given.question, given.methods, given.keep]
    loaded = page.load(callbacks.restore_link, None, restored)
    if shared.tiny:
        answer_on(loaded.success)  # a first answer at once; a large model would take too long


def connect_inputs(parts: PageParts) -> None:
    """Makes examples and uploads replace each other."""
    given = parts.inputs
    given.examples.select(
        callbacks.choose_example, None, [given.picture, parts.scene, given.question]
    )
    given.picture.upload(callbacks.forget_scene, None, [parts.scene, given.question])
    given.picture.clear(lambda: None, None, parts.scene)


def connect_graph(parts: PageParts) -> None:
    """Redraws the graph on a click into a picture and when the threshold changes."""
    graph = parts.graph
    for clickable in (parts.pictures.view, graph.picture, *parts.pictures.clickable):
        clickable.select(
            callbacks.click_token,
            [parts.comparison, graph.threshold],
            [*parts.graph_outputs, parts.token],
            **ONE_AT_A_TIME,
        )
    graph.threshold.release(
        callbacks.draw_graph, graph_inputs(parts), parts.graph_outputs, **ONE_AT_A_TIME
    )


def graph_inputs(parts: PageParts) -> list[Any]:
    """Returns the inputs of `callbacks.draw_graph`."""
    return [parts.comparison, parts.token, parts.graph.threshold]

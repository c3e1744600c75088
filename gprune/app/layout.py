"""The components of the page, without their events."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from gprune.ask.comparison import (
    MOST_METHODS,
    SCENES,
    THRESHOLD,
    ComparisonSettings,
    SharedModel,
    scene_picture,
)
from gprune.pruners import RECOMMENDED, methods

HEADER = """
<div class="headline"><h1>What does a model need to see?</h1>
<p>A vision-language model reads hundreds of tokens of every image. Ask a question, keep a share of
the tokens, and compare what each method keeps, how the model then answers, and what that saves.</p>
<p class="model">Model: <b>{model}</b></p></div>
"""

GRAPH_TEXT = """
### Why these?
G-Prune connects visual tokens that look alike to the model, propagates information along these
edges, and keeps the tokens with most information per edge. This is the graph around one token: the
thicker a line, the stronger its edge. **Click a patch in any picture** to move it.
"""

# Options of the drawn pictures. A label would cover patches that can be clicked.
DRAWN: dict[str, Any] = {"interactive": False, "format": "png", "buttons": [], "show_label": False}


@dataclass(frozen=True, eq=False)
class Inputs:
    """The components that a visitor sets."""

    picture: gr.Image
    examples: gr.Gallery
    question: gr.Dropdown
    methods: gr.Dropdown
    keep: gr.Slider
    timed: gr.Checkbox
    button: gr.Button


@dataclass(frozen=True, eq=False)
class Pictures:
    """The row of pictures: what the model sees, and a column for each method.

    Attributes:
        row: the row.
        view: what the model sees.
        columns: the components of all columns, five each: column, title, overlay, caption, scores.
        clickable: the pictures of the columns.
    """

    row: gr.Row
    view: gr.Image
    columns: list[Any]
    clickable: list[gr.Image]


@dataclass(frozen=True, eq=False)
class GraphView:
    """The graph around a token: its row, picture, description and threshold."""

    row: gr.Row
    picture: gr.Image
    description: gr.Markdown
    threshold: gr.Slider


def header(name: str) -> gr.HTML:
    """Lays out the headline with the model's name."""
    return gr.HTML(HEADER.format(model=escape(name)))


def inputs(shared: SharedModel) -> Inputs:
    """Lays out everything that a visitor sets: the picture on the left, the rest beside it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            picture = picture_input()
        with gr.Column(scale=3, min_width=340):
            gr.Markdown("Examples that the tiny model was not trained on")
            examples = example_gallery()
            question = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label="Question: choose one or type your own",
                elem_id="question",
            )
            chosen = method_dropdown()
            with gr.Row(equal_height=True):
                keep = gr.Slider(
                    *(0.02, 1.0),
                    value=ComparisonSettings.keep,
                    step=0.01,
                    label="Keep: share of the visual tokens",
                    elem_id="keep",
                    scale=3,
                )
                timed = gr.Checkbox(shared.tiny, label="time the prefill", scale=1)
            button = gr.Button("Ask", variant="primary", elem_id="ask")
    return Inputs(picture, examples, question, chosen, keep, timed, button)


def picture_input() -> gr.Image:
    """Lays out the upload, which gives callbacks the path of the file as it was sent."""
    picture = gr.Image(
        type="filepath",
        format="png",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=[],
        label="Picture: yours, or an example",
        height=330,
        elem_id="picture",
    )
    # Gradio would decode any file; `open_image` decodes it with limits.
    picture.preprocess = lambda sent: None if sent is None else sent.path
    return picture


def example_gallery() -> gr.Gallery:
    """Lays out the example scenes."""
    return gr.Gallery(
        [scene_picture(index) for index in SCENES],
        show_label=False,
        columns=len(SCENES),
        height=112,
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def method_dropdown() -> gr.Dropdown:
    """Lays out the choice of methods."""
    return gr.Dropdown(
        methods(),
        value=list(ComparisonSettings.methods),
        multiselect=True,
        max_choices=MOST_METHODS,
        label=f"Methods, up to {MOST_METHODS}; {RECOMMENDED} is recommended, gprune is the paper's",
        elem_id="methods",
    )


def pictures() -> Pictures:
    """Lays out the row of pictures, hidden until there are answers."""
    columns: list[Any] = []
    clickable: list[gr.Image] = []
    with gr.Row(visible=False, elem_id="pictures", equal_height=False) as row:
        with gr.Column(min_width=180):
            gr.Markdown("what the model sees")
            view = gr.Image(elem_id="shown", **DRAWN)
            gr.Markdown("Click a patch in any picture to see the graph around it.")
        for index in range(MOST_METHODS):
            with gr.Column(visible=False, min_width=180) as column:
                title = gr.Markdown()
                overlay = gr.Image(elem_id=f"overlay-{index}", **DRAWN)
                caption = gr.Markdown()
                scores = gr.Image(elem_id=f"scores-{index}", **DRAWN)
            columns += [column, title, overlay, caption, scores]
            clickable += [overlay, scores]
    return Pictures(row, view, columns, clickable)


def graph_view() -> GraphView:
    """Lays out the graph around a token, hidden until there are answers."""
    with gr.Row(visible=False, elem_id="inside", equal_height=False) as row:
        with gr.Column(scale=2, min_width=280):
            picture = gr.Image(elem_id="graph", **DRAWN)
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(GRAPH_TEXT)
            description = gr.Markdown(elem_id="words")
            threshold = gr.Slider(
                *(0.0, 0.99),
                value=THRESHOLD,
                step=0.01,
                label="Threshold: least cosine similarity of an edge",
                elem_id="threshold",
            )
    return GraphView(row, picture, description, threshold)


def link_box() -> gr.Textbox:
    """Lays out the link that restores the settings."""
    return gr.Textbox(
        label="Link that restores these settings (an uploaded picture is not part of it)",
        interactive=False,
        buttons=["copy"],
        elem_id="link",
    )

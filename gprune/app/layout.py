"""The components of the page, without their events."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from gprune.ask.comparison import THRESHOLD, SharedModel
from gprune.ask.links import MOST_METHODS, SCENES, ComparisonSettings, scene_picture
from gprune.pruners import RECOMMENDED, methods

HEADER = """
<div class="headline"><h1>What does a model need to see?</h1>
<p>A vision-language model reads hundreds of tokens of every image. Ask a question, keep a share of
the tokens, and compare what each method keeps, how the model then answers, and what that saves.</p>
<p class="model">Model: <b>{model}</b>{limits}</p></div>
"""
LIMITS = ", which knows drawn scenes only"

GRAPH_TEXT = """
### Why these?
G-Prune connects visual tokens that look alike to the model, propagates information along these
edges, and keeps the tokens with most information per edge. This is the graph around one token: the
thicker a line, the stronger its edge. **Click a patch in any picture** to move it.
"""

# Options of the drawn pictures. A label would cover patches that can be clicked.
DRAWN: dict[str, Any] = {"interactive": False, "format": "png", "buttons": [], "show_label": False}
# What the pictures show; page.css reads the second.
SHOWN = ("kept tokens", "scores")


@dataclass(frozen=True, eq=False)
class Inputs:
    """The components that a visitor sets, with the messages about them.

    Attributes:
        picture: the upload.
        picture_message: about the upload.
        link_message: about the link that opened the page.
        examples: the example scenes.
        question: choices and free text for the tiny model, free text for others.
        methods: the methods to compare.
        keep: the share of the tokens.
        timed: whether to time the prefill.
        ask: the button that starts.
        cancel: the button that stops.
        link: restores the settings.
        status: progress and errors.
    """

    picture: gr.Image
    picture_message: gr.HTML
    link_message: gr.HTML
    examples: gr.Gallery
    question: gr.Dropdown | gr.Textbox
    methods: gr.Dropdown
    keep: gr.Slider
    timed: gr.Checkbox
    ask: gr.Button
    cancel: gr.Button
    link: gr.Textbox
    status: gr.HTML


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers, hidden until there are some: table, downloads, and a picture for each method.

    Attributes:
        section: all of them.
        table: answers and savings.
        picture_file: downloads the pictures.
        json_file: downloads the numbers.
        shown: what the pictures show, one of `SHOWN`.
        view: what the model sees.
        columns: the components of all columns, four each: column, title, overlay, scores.
        clickable: the pictures of the columns.
    """

    section: gr.Column
    table: gr.HTML
    picture_file: gr.DownloadButton
    json_file: gr.DownloadButton
    shown: gr.Radio
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


def header(shared: SharedModel) -> gr.HTML:
    """Lays out the headline with the model's name."""
    limits = LIMITS if shared.tiny else ""
    return gr.HTML(HEADER.format(model=escape(shared.name), limits=limits), padding=False)


def inputs(shared: SharedModel) -> Inputs:
    """Lays out everything that a visitor sets: the picture on the left, the rest beside it."""
    link_message = gr.HTML(elem_id="link-message", padding=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            picture = picture_input()
            picture_message = gr.HTML(elem_id="picture-message", padding=False)
        with gr.Column(scale=3, min_width=280):
            examples = example_gallery(shared.tiny)
            question = question_input(shared.tiny)
            chosen = method_dropdown()
            with gr.Row(equal_height=True):
                keep = gr.Slider(
                    *(0.02, 1.0),
                    value=ComparisonSettings.keep,
                    step=0.01,
                    label="Keep: share of the visual tokens",
                    elem_id="keep",
                    scale=3,
                    min_width=260,
                )
                timed = gr.Checkbox(shared.tiny, label="time the prefill", scale=1, min_width=100)
            ask, cancel, link = action_row()
            status = gr.HTML(elem_id="status", padding=False)
    return Inputs(
        *(picture, picture_message, link_message, examples, question, chosen, keep, timed),
        *(ask, cancel, link, status),
    )


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


def example_gallery(tiny: bool) -> gr.Gallery:
    """Lays out the example scenes, on which the tiny model was not trained."""
    return gr.Gallery(
        [scene_picture(index) for index in SCENES],
        label="Examples, unseen in training" if tiny else "Examples",
        columns=len(SCENES),
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def question_input(tiny: bool) -> gr.Dropdown | gr.Textbox:
    """Lays out the question: the tiny model's with choices, as its vocabulary is small."""
    if not tiny:
        return gr.Textbox(ComparisonSettings.question, label="Question", elem_id="question")
    return gr.Dropdown(
        [],
        value=None,
        allow_custom_value=True,
        label="Question: choose one or type your own",
        elem_id="question",
    )


def method_dropdown() -> gr.Dropdown:
    """Lays out the choice of methods, the chosen ones first."""
    first = list(ComparisonSettings.methods)
    return gr.Dropdown(
        [*first, *(name for name in methods() if name not in first)],
        value=first,
        multiselect=True,
        max_choices=MOST_METHODS,
        label=f"Methods, up to {MOST_METHODS}; {RECOMMENDED} is recommended, gprune is the paper's",
        elem_id="methods",
    )


def action_row() -> tuple[gr.Button, gr.Button, gr.Textbox]:
    """Lays out the buttons and, beside them, the link that restores the settings."""
    with gr.Row(equal_height=True, elem_id="actions"):
        ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=2, min_width=120)
        cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", scale=1, min_width=90)
        link = gr.Textbox(
            label="Link to these settings (no upload)",
            lines=1,
            max_lines=1,
            interactive=False,
            buttons=["copy"],
            elem_id="link",
            scale=3,
            min_width=240,
        )
    return ask, cancel, link


def answers() -> Answers:
    """Lays out the table, the downloads and the pictures, hidden until there are answers."""
    with gr.Column(visible=False, elem_id="answers") as section:
        table = gr.HTML(elem_id="table", padding=False)
        with gr.Row(elem_id="tools", equal_height=True):
            shown = gr.Radio(
                list(SHOWN),
                value=SHOWN[0],
                label="Show in the pictures (bright scores are high)",
                interactive=True,
                elem_id="show",
            )
            picture_file, json_file = (
                gr.DownloadButton(label, interactive=False, size="sm", elem_id=name, min_width=140)
                for label, name in (
                    ("Download picture", "get-picture"),
                    ("Download JSON", "get-json"),
                )
            )
        view, columns, clickable = pictures()
    return Answers(section, table, picture_file, json_file, shown, view, columns, clickable)


def pictures() -> tuple[gr.Image, list[Any], list[gr.Image]]:
    """Lays out the pictures: what the model sees, and a column for each method.

    Returns:
        `Answers.view`, `Answers.columns` and `Answers.clickable`.
    """
    columns: list[Any] = []
    clickable: list[gr.Image] = []
    with gr.Row(elem_id="pictures", equal_height=False):
        with gr.Column(min_width=150):
            gr.HTML('<p class="title">what the model sees</p>', padding=False)
            view = gr.Image(elem_id="shown", **DRAWN)
        for index in range(MOST_METHODS):
            with gr.Column(visible=False, min_width=150, elem_classes="method") as column:
                title = gr.HTML(padding=False)
                overlay = gr.Image(elem_id=f"overlay-{index}", elem_classes="kept", **DRAWN)
                scores = gr.Image(elem_id=f"scores-{index}", elem_classes="scores", **DRAWN)
            columns += [column, title, overlay, scores]
            clickable += [overlay, scores]
    return view, columns, clickable


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

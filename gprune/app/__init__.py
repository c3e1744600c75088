"""The web page: what pruning does to your own picture, up to four methods side by side.

Needs Gradio, which comes with ``pip install 'gprune[app]'``; nothing else imports this module.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import gprune
from gprune import viz
from gprune.ask.comparison import (
    MOST_METHODS,
    SCENES,
    THRESHOLD,
    Asker,
    Comparison,
    Settings,
    scene_answers,
    scene_picture,
)
from gprune.ask.prompts import open_image

TITLE = "gprune: what does a model need to see?"
# Pictures that the page draws: without labels, which would cover patches that can be clicked.
DRAWN: dict[str, Any] = {"interactive": False, "format": "png", "buttons": [], "show_label": False}


def results_table(page: Comparison) -> str:
    """The comparison as an HTML table; everything a user typed or a model said is escaped."""
    first = next((one.saving for one in page.columns if one.saving is not None), None)
    rows = [
        _row(
            "all tokens",
            f'<span class="answer">{html.escape(page.full)}</span>',
            "" if first is None else _bar(first.visual_tokens, first.visual_tokens),
            *("", "", ""),  # nothing saved
        )
    ]
    for one in page.columns:
        if one.saving is None:
            refusal = f'<td colspan="5" class="refusal">{html.escape(one.refusal or "")}</td>'
            rows.append(f"<tr><th>{html.escape(one.method)}</th>{refusal}</tr>")
            continue
        saved, times = one.saving, one.times
        cache = 1 - saved.kv_bytes_pruned / saved.kv_bytes_full
        rows.append(
            _row(
                one.method,
                _verdict(one.text, page.full),
                _bar(saved.kept_tokens, saved.visual_tokens),
                f"−{saved.flops_saved:.0%}",
                f"−{cache:.0%}",
                "" if times is None else f"{times.full_ms:.1f} → {times.pruned_ms:.1f} ms",
            )
        )
    heads = ("", "answer", "visual tokens", "multiply-adds", "KV cache", "prefill")
    expected = ""
    if page.expected is not None:
        expected = f'<p class="expected">Right answer: <b>{html.escape(page.expected)}</b></p>'
    question = f'<p class="asked">{html.escape(page.settings.question)}</p>'
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<div class="results">{question}{expected}<table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(method: str, *cells: str) -> str:
    return f"<tr><th>{html.escape(method)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _verdict(text: str, full: str) -> str:
    same = text == full
    label = "as with all tokens" if same else "differs"
    return (
        f'<span class="answer {"same" if same else "other"}">{html.escape(text)}</span>'
        f'<span class="verdict">{label}</span>'
    )


def _bar(kept: int, whole: int) -> str:
    return (
        f'<span class="bar"><span style="width:{kept / whole:.1%}"></span></span>'
        f'<span class="count">{kept} of {whole}</span>'
    )


def restored(request: gr.Request) -> list[Any]:
    """Puts a link's settings into the controls."""
    try:
        settings = Settings.of_link(dict(request.query_params))
    except (ValueError, TypeError) as error:
        gr.Warning(f"{error}. The page shows its defaults instead.")
        settings = Settings()
    if settings.scene is None:
        controls = [None, None, gr.Dropdown(choices=[], value=settings.question)]
    else:
        controls = scene_controls(settings.scene, settings.question)
    return [*controls, list(settings.methods), settings.keep]


def scene_controls(scene: int, question: str | None = None) -> list[Any]:
    """A scene's picture, its index and what can be asked about it."""
    questions = list(scene_answers(scene))
    picture = viz.enlarged(scene_picture(scene))
    return [picture, scene, gr.Dropdown(choices=questions, value=question or questions[0])]


def example_chosen(event: gr.SelectData) -> list[Any]:
    """Puts a click on an example into the controls."""
    return scene_controls(SCENES[event.index])


def drawn(comparison: Comparison) -> list[Any]:
    """What the page shows of a comparison, in the order of its components (see `build`)."""
    values: list[Any] = [
        comparison,
        None,  # a new answer starts from its own best-connected token
        results_table(comparison),
        comparison.settings.link(),
        gr.Row(visible=True),
        viz.enlarged(comparison.shown),
    ]
    for column in comparison.columns:
        scored = column.scores is not None
        scores = "score of each token, by rank" if scored else "chooses a set: no score for a token"
        values += [
            gr.Column(visible=column.refusal is None),
            f"**{column.method}** keeps",
            column.overlay,
            scores,
            gr.Image(value=column.scores, visible=scored),
        ]
    empty = [gr.Column(visible=False), "", None, "", None]
    return values + empty * (MOST_METHODS - len(comparison.columns))


def token_clicked(
    comparison: Comparison | None, threshold: float, event: gr.SelectData
) -> tuple[Image.Image, str, int]:
    """The graph around the token under a click on any of the pictures."""
    if comparison is None:
        raise gr.Error("ask a question first", print_exception=False)
    token = comparison.token_at(*event.index)
    return *comparison.graph(token, threshold), token


def graph_drawn(
    comparison: Comparison | None, token: int | None, threshold: float
) -> tuple[Image.Image | None, str]:
    """The graph around the token last clicked, or the best-connected one."""
    if comparison is None or comparison.tokens.grid is None:
        return None, ""
    return comparison.graph(token, threshold)


def input_controls(asker: Asker) -> list[Any]:
    """Lays out what a visitor sets: picture, examples, question, methods, keep, timing, button."""
    start = Settings()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
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
            # Gradio would open the file, whatever is in it; `open_image` does it with limits.
            picture.preprocess = lambda sent: None if sent is None else sent.path
        with gr.Column(scale=3, min_width=340):
            gr.Markdown("Examples that the tiny model never saw")
            examples = gr.Gallery(
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
            question = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label="Question: choose one or type your own",
                elem_id="question",
            )
            methods = gr.Dropdown(
                gprune.methods(),
                value=list(start.methods),
                multiselect=True,
                max_choices=MOST_METHODS,
                label=f"Methods, up to {MOST_METHODS}",
                elem_id="methods",
            )
            with gr.Row(equal_height=True):
                keep = gr.Slider(
                    *(0.02, 1.0),
                    value=start.keep,
                    step=0.01,
                    label="Keep: share of the visual tokens",
                    elem_id="keep",
                    scale=3,
                )
                timed = gr.Checkbox(asker.tiny, label="time the prefill", scale=1)
            button = gr.Button("Ask", variant="primary", elem_id="ask")
    return [picture, examples, question, methods, keep, timed, button]


def picture_columns() -> tuple[Any, Any, list[Any], list[Any]]:
    """Lays out the row of pictures: what the model sees, and a column for each method."""
    columns: list[Any] = []
    pictures: list[Any] = []
    with gr.Row(visible=False, elem_id="pictures", equal_height=False) as row:
        with gr.Column(min_width=180):
            gr.Markdown("what the model sees")
            shown = gr.Image(elem_id="shown", **DRAWN)
            gr.Markdown("Click a patch in any picture to see the graph around it.")
        for place in range(MOST_METHODS):
            with gr.Column(visible=False, min_width=180) as column:
                title = gr.Markdown()
                overlay = gr.Image(elem_id=f"overlay-{place}", **DRAWN)
                caption = gr.Markdown()
                scores = gr.Image(elem_id=f"scores-{place}", **DRAWN)
            columns += [column, title, overlay, caption, scores]
            pictures += [overlay, scores]
    return row, shown, columns, pictures


def graph_controls() -> list[Any]:
    """Lays out the graph: the row, the picture, what is said about it, and its threshold."""
    with gr.Row(visible=False, elem_id="inside", equal_height=False) as row:
        with gr.Column(scale=2, min_width=280):
            graph = gr.Image(elem_id="graph", **DRAWN)
        with gr.Column(scale=3, min_width=280):
            gr.Markdown(GRAPH_TEXT)
            words = gr.Markdown(elem_id="words")
            threshold = gr.Slider(
                *(0.0, 0.99),
                value=THRESHOLD,
                step=0.01,
                label="Threshold: least cosine similarity of an edge",
                elem_id="threshold",
            )
    return [row, graph, words, threshold]


def build(asker: Asker, most_pixels: int) -> gr.Blocks:
    """The page, with its queue.

    Args:
        asker: answers the questions.
        most_pixels: of an uploaded picture; more are refused before they are decoded.
    """

    def ask(
        path: str | None,
        scene: int | None,
        question: str | None,
        methods: Sequence[str],
        keep: float,
        timed: bool,
    ) -> Iterator[list[Any]]:
        """Fills the page, method by method."""
        try:
            # A slider's 1 is a share, not a count.
            settings = Settings(question or "", tuple(methods), float(keep), scene)
            picture = None
            if scene is None and path is not None:
                picture = open_image(Path(path), most_pixels)
            for comparison in asker.compare(settings, picture, timed):
                yield drawn(comparison)
        except (ValueError, TypeError) as error:
            # The visitor knows the file's name, not the folder that it was put into.
            sentence = str(error).replace(f"{Path(path or '').parent}{os.sep}", "")
            raise gr.Error(sentence, duration=None, print_exception=False) from None

    # One request at a time reaches the model, whoever asks; others wait in the queue.
    turn: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(HEADER.format(model=html.escape(asker.name)))
        comparison = gr.State(None, time_to_live=3600)
        token, scene = gr.State(None), gr.State(None)
        picture, examples, question, methods, keep, timed, button = input_controls(asker)
        table = gr.HTML(elem_id="table")
        row, shown, columns, pictures = picture_columns()
        inside, graph, words, threshold = graph_controls()
        link = gr.Textbox(
            label="Link that restores these settings (an uploaded picture stays with you)",
            interactive=False,
            buttons=["copy"],
            elem_id="link",
        )

        def answers_follow(trigger: Any) -> None:
            """On ``trigger``: the answers, the link in the address bar, the graph."""
            (
                trigger(
                    ask,
                    [picture, scene, question, methods, keep, timed],
                    [comparison, token, table, link, row, shown, *columns],
                    show_progress_on=[table],
                    **turn,
                )
                .success(None, link, link, js=SHOW_LINK)
                .then(graph_drawn, [comparison, token, threshold], [graph, words], **turn)
                .then(lambda: gr.Row(visible=True), None, inside)
            )

        answers_follow(button.click)
        loaded = page.load(restored, None, [picture, scene, question, methods, keep])
        if asker.tiny:
            answers_follow(loaded.success)  # something to see at once; a large model would be slow
        examples.select(example_chosen, None, [picture, scene, question])
        picture.upload(lambda: (None, gr.Dropdown(choices=[])), None, [scene, question])
        picture.clear(lambda: None, None, scene)
        for clickable in (shown, graph, *pictures):
            clickable.select(token_clicked, [comparison, threshold], [graph, words, token], **turn)
        threshold.release(graph_drawn, [comparison, token, threshold], [graph, words], **turn)
    return page.queue(max_size=32, default_concurrency_limit=1, api_open=False)


@contextmanager
def temporary_files() -> Iterator[None]:
    """Gives Gradio a folder for uploads that goes when the page goes."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="gprune-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def launch(
    asker: Asker,
    host: str,
    port: int,
    most_megabytes: int,
    most_megapixels: int,
    block: bool = True,
) -> Any:
    """Serves the page until it is interrupted; nothing is sent or loaded from elsewhere.

    Args:
        asker: answers the questions.
        host: address to listen on.
        port: 0 takes a free one.
        most_megabytes: of an upload.
        most_megapixels: of a picture.
        block: whether to wait for an interruption.

    Returns:
        Gradio's blocks, which know their ``local_url``.

    Raises:
        OSError: the port is taken.
    """
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    page = build(asker, most_megapixels * 10**6)
    page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        max_file_size=most_megabytes * 10**6,
        # Every visitor's last comparison is held in memory.
        state_session_capacity=64,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=not block,
        theme=gr.themes.Default(
            primary_hue="amber", neutral_hue="slate", font=fonts, font_mono=["ui-monospace"]
        ),
        css=(Path(__file__).parent / "app.css").read_text(),
    )
    return page


HEADER = """
<div class="headline"><h1>What does a model need to see?</h1>
<p>A vision-language model reads hundreds of tokens of every picture. Ask one question, keep a share
of the tokens, and compare what each method keeps, what the model then says, and what it saves.</p>
<p class="model">Model: <b>{model}</b></p></div>
"""

GRAPH_TEXT = """
### Why these?
G-Prune joins visual tokens that look alike to the model, lets information spread along those edges,
and keeps the tokens that hold the most for their number of edges. Here is that graph around one
token: the thicker a line, the stronger the edge. **Click a patch in any picture** to move it.
"""

# Writes the settings into the address bar and returns the whole link.
SHOW_LINK = """(query) => {
  const settings = query.includes("?") ? query.split("?")[1] : query;
  const link = `${location.origin}${location.pathname}?${settings}`;
  history.replaceState(null, "", link);
  return link;
}"""

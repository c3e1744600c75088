"""Serves the page on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from gprune.app.page import build
from gprune.ask.comparison import SharedModel

STYLES = Path(__file__).parent / "page.css"
# Visitors whose last comparison is held in memory.
MOST_SESSIONS = 64
# Fonts of the visitor's machine: Gradio's own themes load theirs from the web.
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO_FONTS = ["ui-monospace"]
FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


@contextmanager
def temporary_files() -> Iterator[None]:
    """Gives Gradio a temporary folder for uploads, which is deleted on exit."""
    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="gprune-app-") as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[FOLDER_VARIABLE]
            else:
                os.environ[FOLDER_VARIABLE] = before


# Over 40 lines: Gradio's options, one a line.
def launch(
    shared: SharedModel,
    host: str,
    port: int,
    most_megabytes: int,
    most_megapixels: int,
    block: bool = True,
) -> gr.Blocks:
    """Serves the page; nothing is sent to or loaded from other machines.

    Args:
        shared: answers the questions.
        host: address to listen on.
        port: 0 takes a free one.
        most_megabytes: limit of an upload.
        most_megapixels: limit of an image.
        block: whether to return only after an interruption.

    Returns:
        Gradio's blocks; their ``local_url`` is the address.

    Raises:
        OSError: the port is taken.
    """
    page = build(shared, most_megapixels * 10**6)
    page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        max_file_size=most_megabytes * 10**6,
        state_session_capacity=MOST_SESSIONS,
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
            primary_hue="amber", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS
        ),
        css=STYLES.read_text(),
    )
    return page

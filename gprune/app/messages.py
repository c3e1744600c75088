"""What the page says while a model answers and when something went wrong, as HTML."""

from __future__ import annotations

import logging
import os
from html import escape
from pathlib import Path

import torch

from gprune.ask.progress import Progress
from gprune.errors import UnsupportedModelError, plain_message

# About pictures of the visitor's own, on the page of the shipped model.
DRAWN_SCENES_ONLY = (
    "The shipped model knows drawn scenes only: shapes, colors, numbers and letters on a "
    "background. It reads a photograph as if it were one, and the questions to choose from ask "
    "about such things. For real questions start the page with a model of your own: "
    "gprune app --model FOLDER_OR_HUB_ID."
)
OUT_OF_MEMORY = (
    "the model ran out of memory; take a smaller picture, or fewer tokens with --max-new-tokens"
)
UNEXPECTED = "the model failed; the terminal in which gprune app runs says why"

logger = logging.getLogger(__name__)


def error_sentence(error: Exception, path: str | None = None) -> str:
    """Returns what a visitor is told about an error; one that is a defect is logged in full.

    Args:
        error: from a comparison or from reading a picture.
        path: of the uploaded file. Its folder, a temporary one of the server, is not shown.
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return OUT_OF_MEMORY
    if not isinstance(error, ValueError | OSError | UnsupportedModelError):
        logger.error("a comparison failed", exc_info=error)
        return UNEXPECTED
    folder = f"{Path(path).parent}{os.sep}" if path else ""
    return plain_message(error).replace(folder, "") if folder else plain_message(error)


def error_html(sentence: str) -> str:
    """Returns an error that screen readers announce; its first letter becomes a capital one."""
    text = escape(sentence[:1].upper() + sentence[1:])
    return f'<p class="message error" role="alert">{text}</p>'


def note_html(sentence: str) -> str:
    """Returns a message that is no error."""
    return f'<p class="message note" role="status">{escape(sentence)}</p>'


def link_html(problems: list[str]) -> str:
    """Returns what is said of the bad fields of a link, see `ComparisonSettings.from_query`."""
    if not problems:
        return ""
    fields = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return (
        '<div class="message error" role="alert"><p>The link has bad fields; their defaults are '
        f"used, the others are as in the link.</p><ul>{fields}</ul></div>"
    )


def progress_html(progress: Progress, seconds: float) -> str:
    """Returns a progress bar with a line of text.

    Args:
        progress: how far the model is.
        seconds: since the question was asked.
    """
    name = progress.method or "all tokens"
    tokens = f"{progress.tokens} token{'' if progress.tokens == 1 else 's'}"
    task = "timing the prefill" if progress.timing else tokens
    text = f"{name}: answer {progress.answered + 1} of {progress.total}, {task}, {seconds:.0f} s"
    return running_html(text, progress.answered / progress.total)


def running_html(text: str, done: float) -> str:
    """Returns a line of text above a bar that shows the share ``done``."""
    percent = f"{100 * done:.0f}"
    return (
        f'<div class="running"><p>{escape(text)}</p><div class="bar" role="progressbar" '
        f'aria-label="answers" aria-valuenow="{percent}"><span style="width:{percent}%"></span>'
        "</div></div>"
    )

"""Parts of the page that need no browser: messages, downloads, the address."""

from __future__ import annotations

import io
import json
import logging
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image, ImageFont

from gprune import UnsupportedModelError, VisualTokens
from gprune.app import messages
from gprune.app.downloads import (
    LONGEST_TEXT,
    SPACE,
    TEXT,
    WIDTH,
    comparison_json,
    comparison_png,
    wrapped,
)
from gprune.app.results import results_table
from gprune.app.running import StoppedRuns
from gprune.ask.comparison import Comparison, MethodResult
from gprune.ask.links import ComparisonSettings
from gprune.ask.progress import Progress
from gprune.cli.web import require_address


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("keep=2 is\n too much"), "keep=2 is too much"),
        (UnsupportedModelError("this model cannot"), "this model cannot"),
        (ValueError("image '/tmp/x/y/mine.png' is bad"), "image 'mine.png' is bad"),
        (IsADirectoryError(21, "Is a directory", "/a"), "'/a' is a folder; name a file"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), messages.OUT_OF_MEMORY),
        (MemoryError(), messages.OUT_OF_MEMORY),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), messages.UNEXPECTED),
        (KeyError("pixel_values"), messages.UNEXPECTED),
        (TypeError("'NoneType' object is not iterable"), messages.UNEXPECTED),
    ],
)
def test_errors_are_said_without_words_of_python(error, sentence, caplog):
    with caplog.at_level(logging.ERROR):
        assert messages.error_sentence(error, "/tmp/x/y/mine.png") == sentence
    # Whoever runs the page finds a defect in the log.
    assert [record.exc_info[1] for record in caplog.records] == (
        [error] if sentence == messages.UNEXPECTED else []
    )


def test_messages_are_escaped():
    for text in (
        messages.error_html("<b>"),
        messages.note_html("<b>"),
        messages.link_html(["keep: <b>"]),
        messages.progress_html(Progress("<b>", 1, 3), 2),
    ):
        assert "<b>" not in text
        assert "&lt;b&gt;" in text
    assert messages.link_html([]) == ""
    assert ">Keep is bad<" in messages.error_html("keep is bad")


def test_progress_in_words():
    text = messages.progress_html(Progress("gprune", 2, 5, tokens=1), 7.4)
    assert "gprune: answer 3 of 5, 1 token, 7 s" in text
    assert 'aria-valuenow="40"' in text
    assert "all tokens: answer 1 of 5, 12 tokens" in messages.progress_html(
        Progress(None, 0, 5, tokens=12), 0
    )
    assert "timing the prefill" in messages.progress_html(Progress("a", 1, 2, timing=True), 0)


def test_old_tickets_are_forgotten():
    stopped = StoppedRuns()
    stopped.stop("", keep_answers=True)  # nothing runs
    assert "" not in stopped
    for index in range(StoppedRuns.MOST + 3):
        stopped.stop(f"t{index}", keep_answers=index % 2 == 0)
    assert "t2" not in stopped
    assert "t3" in stopped
    assert stopped.keeps_answers("t4")
    assert not stopped.keeps_answers("t5")


@pytest.mark.parametrize(
    "text",
    ["", "word", "several words of a sentence " * 5, "w" * 159, "blank " * 500, "é ü 漢字 " * 9],
)
def test_wrapped_lines_fit_and_lose_nothing(text):
    lines = wrapped(text)
    font = ImageFont.load_default(TEXT)
    assert all(0 < font.getlength(line) <= WIDTH for line in lines)
    whole = "".join(text.split())
    if len(" ".join(text.split())) <= LONGEST_TEXT:
        assert "".join("".join(lines).split()) == whole
    else:
        assert lines[-1].endswith("...")
        assert sum(len(line) for line in lines) <= LONGEST_TEXT


@pytest.fixture
def refused():
    """A comparison whose only method was refused, of a model whose tokens form no raster."""
    view = Image.new("RGB", (1024, 512), "teal")
    results = [
        MethodResult("fastv", refusal="attention is missing; take another method"),
        MethodResult("random", answer="a <dog>"),
    ]
    tokens = VisualTokens(torch.ones(4, 2))
    return Comparison(ComparisonSettings(), "", None, view, tokens, results[:1], "m")


def test_refused_methods_in_table_and_downloads(refused):
    assert "attention is missing" in results_table(refused)
    with Image.open(io.BytesIO(comparison_png(refused))) as sheet:
        assert sheet.width == SPACE + 2 * (WIDTH + SPACE)
        assert sheet.height > WIDTH // 2
    read = json.loads(comparison_json(refused))
    assert read["grid"] is None
    (method,) = read["methods"]
    assert method["refusal"] == "attention is missing; take another method"
    assert method["answer"] is None
    assert method["saving"] is None


def test_a_taken_port_is_said_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"host=127.0.0.1 and port={port} cannot be used"):
            require_address("127.0.0.1", port)
        command = [sys.executable, "-m", "gprune", "app", "--port", str(port), "--model", "no/such"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"port={port} cannot be used" in done.stderr
    assert done.stderr.count("\n") == 1
    require_address("127.0.0.1", port)  # free again
    for host in (
        "192.0.2.1",
        "no host",
        "x" * 70,
    ):  # an address for documentation: no machine has it
        with pytest.raises(ValueError, match="is not this machine's"):
            require_address(host, 0)

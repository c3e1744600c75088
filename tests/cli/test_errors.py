"""What the commands say of bad input: on one line, in words, and as JSON if asked for."""

from __future__ import annotations

import json

import pytest
import torch

from gprune.cli import app
from gprune.errors import plain_message
from tests.cli.calling import TINY, as_json, call

# Words of Python and of the system, which tell a user nothing.
RAW = ("Errno", "Torch not compiled", "codec can't", "delimiter", "invalid literal", "Traceback")


@pytest.fixture
def files(tmp_path, picture):
    """Names of files for arguments: a picture, a folder, and tasks that cannot be read."""
    (tmp_path / "latin.jsonl").write_bytes(b'{"image": "scene.png", "question": "caf\xe9"}')
    (tmp_path / "cut.jsonl").write_text('{"image": "scene.png" "question": 1}')
    (tmp_path / "file").write_text("")
    return {
        "PICTURE": picture,
        "FOLDER": tmp_path,
        "LATIN": tmp_path / "latin.jsonl",
        "CUT": tmp_path / "cut.jsonl",
        "UNDER_FILE": tmp_path / "file" / "kept.png",
    }


RUN = ("run", "tinyvlm", "--image", "PICTURE", "--prompt", "how many shapes are there?")
BAD = [
    ((*RUN, "--device", "cuda:7"), "device='cuda:7' cannot be used on this machine: torch"),
    ((*RUN, "--device", "warp"), "device='warp' is no device that torch knows; use auto, cpu"),
    ((*RUN, "--out", "UNDER_FILE"), "file' is there already and is no folder"),
    ((*RUN[:-1], "what breed is my dog?"), "does not know: breed, my, dog"),
    ((*RUN[:-1], "  "), "prompt is empty: ask a question"),
    (("run", "tinyvml", *RUN[2:]), "did you mean 'tinyvlm'?"),
    (("run", "./nosuch", *RUN[2:]), "it is no folder; pass the folder of a model, a Hub id"),
    (("run", "FOLDER", *RUN[2:]), "cannot be loaded"),
    (("eval", "tinyvlm", "--tasks", "LATIN"), "line 1 cannot be read: byte 39 is not UTF-8 text"),
    (("eval", "tinyvlm", "--tasks", "CUT"), "line 1, column 23 is not valid JSON"),
    (("flops", "tinyvlmm", "--keep", "0.5"), "did you mean 'tinyvlm'?"),
    (("flops", "tinyvlm", "--keep", "1e"), "keep='1e' is no number"),
    (("bench", "--sizes", "0"), "sizes='0' must be comma-separated whole numbers from 1"),
    (("bench", "--sizes", "576,-4"), "sizes='576,-4'"),
    (("bench", "--sizes", "\u00b2"), "whole numbers from 1 to"),
    (("bench", "--sizes", "9999999"), "sizes='9999999'"),
    (("bench", "--method", "nosuch"), "method 'nosuch' is unknown"),
    (("serve", "tinyvlmm", "--show"), "did you mean 'tinyvlm'?"),
    (("serve", "tinyvlm", "--show", "--hf-overrides", "{a"), "column 2 is not valid JSON"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_errors_are_sentences(files, arguments, message, monkeypatch):
    monkeypatch.setattr(torch, "empty", no_device(torch.empty))
    result = call(*[files.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not [words for words in RAW if words in result.stderr]


def no_device(empty):
    """Fails as a torch without CUDA does."""

    def without_cuda(*args, **kwargs):
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            raise AssertionError("Torch not compiled with CUDA enabled")
        return empty(*args, **kwargs)

    return without_cuda


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flops", "tinyvlmm", "--keep", "0.5"), "did you mean 'tinyvlm'?"),
        (("run", "tinyvlm", "--image", "x.png", "--prompt", "what?"), "'x.png' does not exist"),
        (("flops", "--nosuch"), "No such option"),
        (("run",), "Missing"),
        (("nosuch",), "No such command"),
    ],
)
def test_with_json_an_error_is_json(arguments, message):
    result = call(*arguments, "--json")
    assert result.exit_code == 2
    assert message in json.loads(result.stdout)["error"]
    assert message in " ".join(result.stderr.replace("\u2502", " ").split())


def test_with_json_help_and_results_are_as_ever():
    assert "Example" in call("flops", "--json", "--help").stdout
    assert as_json("flops", "tinyvlm", "--keep", "0.5")["kept_tokens"] == 128


def test_system_errors_in_words(tmp_path):
    cases = {
        "is a folder": lambda: tmp_path.open(),
        "does not exist": lambda: (tmp_path / "absent").open(),
        "has a file where a folder is needed": lambda: (tmp_path / "file" / "x").open(),
    }
    (tmp_path / "file").touch()
    for words, act in cases.items():
        with pytest.raises(OSError, match=r".") as caught:
            act()
        assert words in plain_message(caught.value)
        assert str(tmp_path) in plain_message(caught.value)
    assert plain_message(ValueError("two\n  lines")) == "two lines"
    assert plain_message(OSError("no number")) == "no number"
    assert plain_message(KeyError()) == "KeyError"


def test_every_option_survives_in_the_help():
    """Words in brackets are markup to rich; none of ours may be lost."""
    for command in app.registered_commands:
        text = " ".join(call(command.name, "--help").stdout.split())
        words = " ".join((command.callback.__doc__ or "").split("Example")[0].split())
        assert words.rstrip(".").replace("`", "") in text.replace("`", "")


def test_the_shipped_model_is_known_to_every_command(tmp_path):
    assert as_json("flops", "tinyvlm-siglip", "--keep", "0.5")["visual_tokens"] > 0
    shown = call("serve", "tinyvlm", "--show")
    assert shown.exit_code == 0
    assert TINY in shown.stdout

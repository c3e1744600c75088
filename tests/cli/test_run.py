"""``gprune run``, and images and models that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from gprune import viz
from gprune.pruners import RECOMMENDED
from gprune.tinyvlm import make_scene
from tests.cli.calling import TINY, as_json, call
from tests.folders import save_llava_next


def test_run_on_a_local_checkpoint(tmp_path, picture):
    out = tmp_path / "kept.png"
    item = next(q for q in make_scene("test", 0, 5).ask() if q.kind == "background_color")
    result = as_json(
        *("run", TINY, "--image", picture, "--prompt", item.question),
        *("--compare", "--keep", "0.5", "--out", out),
    )
    assert result["answer_full"] == item.answer
    assert result["method"] == RECOMMENDED
    assert result["overlay"] == str(out)
    assert result["kept_tokens"] == 128
    assert result["prefill_ms_full"] > 0
    assert out.is_file()
    alone = as_json("run", TINY, "--image", picture, "--prompt", "how many shapes are there?")
    assert alone["answer_full"] is None
    assert alone["prefill_ms_full"] is None


def test_run_several_images_without_a_chat_template(tmp_path, picture):
    """LLaVA-NeXT, a plain prompt and two pictures of different shapes."""
    save_llava_next(tmp_path / "next")
    wide = tmp_path / "wide.png"
    Image.new("RGB", (90, 30), (200, 30, 30)).save(wide)
    result = as_json(
        *("run", tmp_path / "next", "--image", picture, "--image", wide),
        *("--prompt", "what color is the circle?", "--max-new-tokens", "3", "--compare"),
        *("--out", tmp_path / "kept.png"),
    )
    assert 0 < result["kept_tokens"] < result["visual_tokens"]
    assert (tmp_path / "kept.png").is_file()


def test_every_picture_is_drawn(tmp_path, picture, monkeypatch):
    drawn = []
    panel = viz.panel

    def watched(pictures, title):
        drawn.extend(pictures)
        return panel(pictures, title)

    monkeypatch.setattr(viz, "panel", watched)
    other = tmp_path / "other.png"
    make_scene("test", 0, 6).draw().save(other)
    images = ("--image", picture, "--image", other)
    result = as_json("run", TINY, *images, "--prompt", "what is there?", "--out", tmp_path)
    assert result["overlay"] == str(tmp_path / "kept.png")
    captions = [caption for caption, _ in drawn]
    assert captions == [
        "what the model sees of image 1",
        "kept 92 of 256 tokens",
        "what the model sees of image 2",
        "kept 92 of 256 tokens",
    ]
    assert drawn[0][1].tobytes() != drawn[2][1].tobytes()
    assert drawn[1][1].tobytes() != drawn[3][1].tobytes()


@pytest.fixture
def broken_images(tmp_path, picture):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:200])
    empty = tmp_path / "empty.png"
    empty.touch()
    huge = tmp_path / "huge.png"
    # A header that claims 60,000 x 60,000 pixels.
    data = bytearray(picture.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    huge.write_bytes(data)
    return {
        "absent": tmp_path / "absent.png",
        "folder": tmp_path,
        "text": text,
        "cut": cut,
        "empty": empty,
        "huge": huge,
    }


@pytest.mark.parametrize("kind", ["absent", "folder", "text", "cut", "empty", "huge"])
@pytest.mark.parametrize("command", ["demo", "run"])
def test_bad_images(broken_images, kind, command):
    path = broken_images[kind]
    arguments = ["demo"] if command == "demo" else ["run", TINY, "--prompt", "what?"]
    result = call(*arguments, "--image", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    message = "does not exist" if kind == "absent" else "cannot be read"
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_unsupported_and_unreadable_models(tmp_path, picture):
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(TINY).iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[:5000] if file.suffix == ".safetensors" else data)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((Path(TINY) / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    for name, message in [
        ("llama", "LlamaForCausalLM, which gprune cannot prune yet; supported: Llava"),
        ("empty", "cannot be loaded"),
        ("broken", "cannot be loaded"),
        ("pickled", "cannot be loaded"),
        ("nosuch", "cannot be loaded"),
    ]:
        result = call("run", tmp_path / name, "--image", picture, "--prompt", "what?")
        assert result.exit_code == 2, name
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_vision_tokens_outside_the_prompt_are_refused(tmp_path, picture):
    from gprune.proof.mllama import mllama

    mllama().save_pretrained(tmp_path)
    for arguments in (
        ["run", tmp_path, "--image", picture, "--prompt", "what?"],
        ["flops", tmp_path, "--keep", "0.5", "--visual-tokens", "64"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Llama 3.2 Vision reads its visual tokens by cross-attention" in result.stderr


def test_run_reports_the_file_that_it_wrote(tmp_path, picture):
    question = ("--image", picture, "--prompt", "how many shapes are there?")
    result = as_json("run", TINY, *question, "--out", tmp_path / "new" / "kept")
    assert Path(result["overlay"]) == tmp_path / "new" / "kept.png"
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "kept.png"]
    people = call("run", TINY, *question, "--out", tmp_path / "kept")
    assert f"picture {tmp_path / 'kept.png'}\n" in people.stdout
    assert f"{RECOMMENDED} kept 92 of 256 visual tokens" in people.stdout

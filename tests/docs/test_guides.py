"""The guides of docs/guides run from top to bottom and print what they say.

A tiny random model takes the place of each checkpoint of a hub, and the CPU that of the GPU.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from PIL import Image

from gprune import make
from gprune.ask.loading import quiet_transformers
from gprune.tinyvlm import make_scene
from tests.docs.blocks import fenced, run
from tests.docs.guide_models import MODELS, make_checkpoint

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
# What a guide needs besides gprune.
NEEDS = {"peft": "peft", "trainer": "accelerate", "offloading": "accelerate", "gpu": "accelerate"}
# The name of a hub's checkpoint.
HUB = re.compile(r'"(?:[\w.-]+/[\w.-]+-hf|Qwen/[\w.-]+)"')
# What an output says about the model's answer, which depends on its weights.
OPEN = re.compile(r"<[^>\n]+>")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Returns folder and processor of a tiny model, by the name that stands in the guides."""
    quiet_transformers()
    made = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("checkpoint")
        made[name] = (folder, make_checkpoint(name, folder))
    return made


@pytest.fixture
def at_work(checkpoints, tmp_path, monkeypatch):
    """Enters a folder with the pictures that the guides name; processors load from memory."""
    monkeypatch.chdir(tmp_path)
    scene = make_scene("test", 0, 4).draw()
    scene.resize((1280, 720), Image.Resampling.NEAREST).save("photo.jpg")
    scene.resize((448, 448), Image.Resampling.NEAREST).save("cat.jpg")
    processors = {str(folder): processor for folder, processor in checkpoints.values()}

    def from_pretrained(name, **options):
        return copy.deepcopy(processors[str(name)])

    monkeypatch.setattr(tf.AutoProcessor, "from_pretrained", from_pretrained)


def missing(guide: Path) -> str | None:
    """Returns the package that a guide needs and that is not installed."""
    needed = NEEDS.get(guide.stem)
    return needed if needed and importlib.util.find_spec(needed) is None else None


def on_this_machine(code: str, checkpoints) -> str:
    """Returns a guide's code with tiny models in place of its checkpoints."""
    for name, (folder, _) in checkpoints.items():
        code = code.replace(f'"{name}"', repr(str(folder)))
    assert not HUB.search(code), HUB.search(code)
    return code if torch.cuda.is_available() else code.replace('"cuda"', '"cpu"')


def assert_printed(expected: str, printed: str) -> None:
    """Checks what a block printed; what stands in <> may be anything."""
    fixed = [re.escape(part) for part in OPEN.split(expected.strip())]
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    assert re.fullmatch(".*?".join(fixed), lines, re.DOTALL), f"printed:\n{printed}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_prints_what_it_says(guide, checkpoints, at_work, capsys):
    if package := missing(guide):
        pytest.skip(f"{package} is not installed: pip install {package} to run this guide")
    space: dict[str, object] = {"__name__": "__main__"}
    printed = None
    for language, line, block in fenced(guide):
        if language == "python":
            assert printed in (None, ""), f"{guide}:{line}: nothing says what is printed before"
            run(on_this_machine(block, checkpoints), guide, line, space)
            printed = capsys.readouterr().out
        elif language == "text":
            assert printed, f"{guide}:{line}: nothing was printed"
            assert_printed(block, printed)
            printed = None
    assert printed in (None, ""), f"{guide}: nothing says what is printed"


def test_outputs_are_compared():
    assert_printed("<answer>: 3 of 4\n", "w1 w2: 3 of 4 \n")
    assert_printed("<the answer>\nkept 1\n", "one\ntwo\nkept 1\n")
    for wrong in ("<answer>: 3 of 5", "3 of 4", "<answer>: 3 of 4\nmore"):
        with pytest.raises(AssertionError):
            assert_printed(wrong, "w1: 3 of 4")


def test_every_guide_is_linked_from_the_start_page_or_the_overview():
    overview = (ROOT / "docs" / "transformers.md").read_text()
    assert len(GUIDES) >= 10
    for guide in GUIDES:
        assert f"](guides/{guide.name}" in overview, guide.name
    assert "](transformers.md" in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize("method", ["weighted_cover", "graph_cover", "fastv", "visionzip"])
def test_an_offloaded_model_gives_the_same_answer(method, checkpoints, tmp_path):
    """As docs/guides/offloading.md says."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder, _ = checkpoints["Qwen/Qwen2.5-VL-3B-Instruct"]
    places = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    load = tf.AutoModelForImageTextToText.from_pretrained
    offloaded = load(folder, device_map=places, offload_folder=tmp_path)
    generator = torch.Generator().manual_seed(0)
    # Words, a picture of 8 x 12 patches that merge two by two, and words.
    ids = torch.tensor([[1, 20, *[8] * 24, 21, 22]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 8).int(),
        "pixel_values": torch.randn(96, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, 8, 12]]),
    }
    results = []
    for model in (load(folder), offloaded):
        with make(method, keep=0.25)(model) as pruned:
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            results.append((output, pruned.kept_mask))
    assert all(map(torch.equal, *results))
    assert any(weight.device.type == "meta" for weight in offloaded.parameters())

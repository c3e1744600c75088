"""The commands: what they print, and one clear sentence with exit code 2 for bad use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import gprune
from gprune import viz
from gprune.ask.comparison import Settings
from gprune.ask.prompts import open_image
from gprune.cli import app, parse_keep
from gprune.pruners import METHODS, group_methods
from gprune.tinyvlm import make_scene
from gprune.tinyvlm.model import checkpoint_folder
from tests.folders import save_llava_next

TINY = str(checkpoint_folder())


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # one object and nothing else


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    make_scene("test", 0, 5).draw().save(path)
    return path


def test_demo_as_json(tmp_path):
    out = tmp_path / "new" / "demo.png"
    result = as_json("demo", "--out", out)
    assert set(result) == {
        *("model", "method", "keep", "question", "expected", "answer_full", "answer_pruned"),
        *("visual_tokens", "kept_tokens", "flops_full", "flops_pruned", "flops_saved"),
        *("prefill_ms_full", "prefill_ms_pruned", "overlay"),
    }
    assert (result["visual_tokens"], result["kept_tokens"]) == (256, 92)
    assert result["answer_full"] == result["expected"]
    assert 0.5 < result["flops_saved"] < 0.7
    assert result["flops_saved"] == 1 - result["flops_pruned"] / result["flops_full"]
    with Image.open(result["overlay"]) as drawn:
        assert Path(result["overlay"]) == out
        assert drawn.width > 600


@pytest.mark.parametrize(
    "method", [name for name, kind in METHODS.items() if kind.scope != "video"]
)
def test_demo_with_every_method(tmp_path, method):
    out = tmp_path / "demo.png"
    result = as_json("demo", "--method", method, "--keep", "64", "--seed", "3", "--out", out)
    assert result["method"] == method
    assert result["kept_tokens"] == 64
    assert out.is_file()


def test_demo_keeping_everything_answers_the_same(tmp_path):
    result = as_json("demo", "--keep", "1", "--out", tmp_path / "demo.png")
    assert result["kept_tokens"] == 256
    assert result["answer_full"] == result["answer_pruned"]
    assert result["flops_saved"] == 0


def test_demo_for_people(tmp_path, picture):
    out = tmp_path / "demo.png"
    question = "how many shapes are there?"
    result = call("demo", "--image", picture, "--question", question, "--out", out)
    assert result.exit_code == 0
    assert "92 of 256 tokens" in result.stdout
    assert "prefill" in result.stdout


def test_run_on_a_local_checkpoint(tmp_path, picture):
    out = tmp_path / "kept.png"
    item = next(q for q in make_scene("test", 0, 5).ask() if q.kind == "background_color")
    result = as_json(
        *("run", TINY, "--image", picture, "--prompt", item.question),
        *("--compare", "--keep", "0.5", "--out", out),
    )
    assert result["answer_full"] == item.answer
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
    from tests.hf.models import mllama

    mllama().save_pretrained(tmp_path)
    for arguments in (
        ["run", tmp_path, "--image", picture, "--prompt", "what?"],
        ["flops", tmp_path, "--keep", "0.5", "--visual-tokens", "64"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Llama 3.2 Vision attends across" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--keep", "0"], "keep=0"),
        (["demo", "--keep", "1.5"], "keep=1.5"),
        (["demo", "--keep", "nan"], "keep=nan"),
        (["demo", "--keep", "much"], "keep='much' is no number"),
        (["demo", "--method", "nosuch"], "method 'nosuch' is unknown; choose one of gprune"),
        (["demo", "--question", "where is my dog?"], "does not know: my, dog"),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--device", "warp"], "device='warp'"),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--device", "cuda:77"], "device="),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--dtype", "int8"], "dtype='int8'"),
        (["flops"], "sizes are missing"),
        (["flops", "--hidden-size", "8"], "sizes are missing"),
    ],
)
def test_bad_use(arguments, message, picture):
    result = call(*[picture if argument == "PICTURE" else argument for argument in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


SIZES = ("--hidden-size", 4096, "--intermediate-size", 11008, "--layers", 32)


@pytest.mark.parametrize(("kept", "tera"), [(192, 0.976), (128, 0.649), (64, 0.323)])
def test_flops_of_llava_7b(kept, tera):
    result = as_json(
        "flops", *SIZES, "--visual-tokens", 576, "--keep", kept, "--convention", "fastv"
    )
    assert round(result["flops_full"] / 1e12, 3) == 2.986
    assert round(result["flops_pruned"] / 1e12, 3) == tera
    assert result["kept_tokens"] == kept
    assert result["kv_bytes_full"] == 2 * 32 * 4096 * 2 * 576
    assert result["kv_bytes_pruned"] == 2 * 32 * 4096 * 2 * kept


def test_flops_with_text_and_a_target():
    sizes = ("--hidden-size", 4096, "--intermediate-size", 14336, "--layers", 32)
    llama = (*sizes, "--heads", 32, "--kv-heads", 8)
    result = as_json(
        *("flops", *llama, "--visual-tokens", 2880, "--text-tokens", 60),
        *("--target-saving", 0.6357, "--convention", "linear"),
    )
    assert result["flops_saved"] >= 0.6357
    assert result["kept_tokens"] == pytest.approx(2880 - 0.6357 * 2940, abs=1)
    both = call("flops", *SIZES, "--visual-tokens", 9, "--keep", 3, "--target-saving", 0.5)
    assert both.exit_code == 2
    assert "either --keep or --target-saving" in both.stderr


def test_flops_inside_the_language_model():
    options = ["flops", *SIZES, "--visual-tokens", 576, "--convention", "fastv"]
    full, before, inside, after_two = (
        as_json(*options, "--keep", keep, *more)["flops_pruned"]
        for keep, more in (
            ("1.0", []),
            ("192", ["--method", "gprune"]),
            ("192", ["--method", "fastv"]),
            ("192", []),
        )
    )
    assert before == after_two
    assert inside == (2 * full + 30 * before) // 32
    both = call(*options, "--target-saving", 0.5, "--method", "fastv")
    assert both.exit_code == 2
    assert "pass --keep" in both.stderr


def test_flops_of_a_checkpoint():
    result = as_json("flops", TINY, "--keep", "0.36")
    assert result["visual_tokens"] == 256
    assert result["vision_tower_flops"] > 0
    people = call("flops", TINY, "--keep", "0.36")
    assert "92 of 256 visual tokens" in people.stdout


def test_methods():
    listed = as_json("methods")["methods"]
    assert [row["name"] for row in listed] == gprune.methods()
    assert listed[0]["options"] == {
        "threshold": 0.5,
        "temperature": 0.03,
        "iterations": 5,
        "backend": "torch",
    }
    assert "uniform_grid" in call("methods").stdout
    reads = {row["name"]: row["signals"] for row in listed}
    assert reads["gprune"] == []
    assert reads["visionzip"] == ["attention", "keys"]


def test_every_method_with_signals_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "methods" / "peers.md").read_text()
    for row in as_json("methods")["methods"]:
        if row["signals"]:
            wanted = f"| `{row['name']}` | {', '.join(row['signals'])} |"
            assert wanted in page


def test_bench(monkeypatch):
    """On a smaller model: what is timed, not how long it takes."""
    from gprune.evaluation import bench

    monkeypatch.setattr(
        bench, "SHAPE", {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    )
    options = ["--sizes", "64", "--width", 32, "--repeats", 1]
    result = as_json("bench", *options, "--method", "uniform_grid")
    assert set(group_methods()) < set(result["selection"][0]["milliseconds"])
    assert result["method"] == "uniform_grid"
    assert [row["keep"] for row in result["prefill"]] == [1.0, 0.5, 0.36, 0.25, 0.1]
    assert result["prefill"][0]["ideal"] == 1
    ideals = [row["ideal"] for row in result["prefill"]]
    assert ideals == sorted(ideals)
    assert all(row["speedup"] > 0 for row in result["prefill"])
    assert "matrix_power" in call("bench", *options).stdout
    bad = call("bench", "--sizes", "many")
    assert bad.exit_code == 2
    assert "sizes='many'" in bad.stderr
    blind = call("bench", *options, "--method", "visionzip")
    assert blind.exit_code == 2
    assert "reads attention and keys of a vision encoder" in blind.stderr
    text = as_json("bench", *options, "--method", "trim")
    assert text["method"] == "trim"


def test_doctor():
    checks = {row["name"]: row for row in as_json("doctor")["checks"]}
    assert checks["transformers"]["good"]
    assert checks["gprune"]["found"] == gprune.__version__
    assert all(row["advice"] for row in checks.values() if not row["good"])
    shown = call("doctor").stdout
    assert "transformers" in shown
    for extra, name in (("app", "gradio"), ("vllm", "vllm"), ("eval", "lmms-eval")):
        assert checks[name]["good"] or f"gprune[{extra}]" in shown


def test_pictures_are_turned_upright(tmp_path):
    """Cameras store how they were held: 6 means turned a quarter to the left."""
    stored = Image.new("RGB", (40, 20), "red")
    stored.paste((0, 0, 255), (0, 0, 20, 20))  # the left half is blue
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200  # blue on top
    assert upright.getpixel((10, 35))[0] > 200


def test_families():
    listed = as_json("families")["families"]
    assert {row["name"]: row["tier"] for row in listed} == gprune.families()
    assert "Qwen3-VL" in call("families").stdout


def test_the_documented_table_is_the_registry():
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert call("families", "--markdown").stdout in page.read_text()


@pytest.mark.parametrize("options", [(), ("--model", "tiny"), ("--model", "tinyvlm")])
def test_app_shows_the_shipped_model(monkeypatch, options):
    """By either name; the page knows that it is the one with few words."""
    shown = []
    page = SimpleNamespace(
        launch=lambda asker, *settings: shown.append(asker), temporary_files=nullcontext
    )
    monkeypatch.setitem(sys.modules, "gprune.app", page)
    monkeypatch.setattr("gprune.cli.require_module", lambda name, extra: None)
    assert call("app", *options).exit_code == 0
    (asker,) = shown
    assert asker.tiny
    assert (asker.name, asker.max_new_tokens) == ("gprune's tiny VLM", None)


def test_app_shows_another_model(monkeypatch, tmp_path):
    """A LLaVA-NeXT from a folder: any words, an uploaded picture, a thumbnail before its tiles."""
    folder = tmp_path / "next"
    save_llava_next(folder)
    shown = []
    page = SimpleNamespace(
        launch=lambda asker, *settings: shown.append(asker), temporary_files=nullcontext
    )
    monkeypatch.setitem(sys.modules, "gprune.app", page)
    monkeypatch.setattr("gprune.cli.require_module", lambda name, extra: None)
    assert call("app", "--model", folder, "--max-new-tokens", 3).exit_code == 0
    (asker,) = shown
    assert (asker.tiny, asker.name, asker.max_new_tokens) == (False, str(folder), 3)
    methods = ("gprune", "tome", "visionzip", "fastv")
    settings = Settings("what is a dog?", methods, 0.25, None)
    *_, last = asker.compare(settings, Image.new("RGB", (90, 30), (200, 30, 30)))
    assert len(last.tokens) == 16  # the thumbnail's
    assert last.expected is None
    for column in last.columns:
        assert column.refusal is None, column.method
        assert column.overlay.size == viz.enlarged(last.shown).size
        assert column.times.full_ms > 0
        assert column.saving.kept_tokens < column.saving.visual_tokens
    assert [len(column.kept) for column in last.columns[:3]] == [4, 4, 4]
    _, words = last.graph(last.token_at(1, 1), 0.5)
    assert "**Token 0**" in words


@pytest.mark.parametrize(
    "command", ["demo", "run", "eval", "app", "bench", "doctor", "methods", "families", "flops"]
)
def test_help_has_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: gprune {command}" in " ".join(result.stdout.split())


def test_keep_as_text():
    assert parse_keep("0.36") == 0.36
    assert parse_keep("64") == 64
    assert isinstance(parse_keep("64"), int)
    assert parse_keep("1") == 1.0
    assert isinstance(parse_keep("1"), float)


def test_the_installed_command():
    environment = {**os.environ, "COLUMNS": "80"}
    command = [str(Path(sys.executable).parent / "gprune"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"gprune {gprune.__version__}\n"


def test_the_shell_completes_commands_and_methods():
    """What bash asks for when the tab key is pressed."""

    def completions(line: str) -> list[str]:
        words = line.split(" ")
        asked = {"_GPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environment = {**os.environ, **asked, "COMP_CWORD": str(len(words) - 1)}
        command = [str(Path(sys.executable).parent / "gprune")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert completions("gprune de") == ["demo"]
    assert completions("gprune demo --method gr") == ["graph_cover"]
    assert "recommended" in completions("gprune bench --method ")


def test_importing_gprune_is_light():
    code = (
        "import sys, gprune; heavy = {'transformers', 'matplotlib', 'vllm', 'gradio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""The scripts in benchmarks/ on tiny sizes: what they measure and write, not how long it takes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from gprune import VisualTokens
from gprune.pruners import group_methods
from gprune.tinyvlm import load, make_scene
from gprune.training.labels import foreground

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, as scripts beside it do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def small_prefill(script):
    module = script("prefill")
    text = module.language(32, 48, 2, 4, 2)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        **module.IMAGE,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.SHAPES, "cpu", (text, vision, 2))
        yield module


def test_prefill(small_prefill):
    cpu, dtype = torch.device("cpu"), torch.float32
    result = small_prefill.measure("cpu", [1, 2], "uniform_grid", 1, cpu, dtype)
    rows = result["rows"]
    assert [(row["batch"], row["keep"]) for row in rows] == [
        (batch, keep) for batch in (1, 2) for keep in small_prefill.KEEPS
    ]
    for row in rows:
        kept = {1.0: 576, 0.5: 288, 0.36: 207, 0.25: 144, 0.1: 57}[row["keep"]]
        assert row["tokens"] == 2 * kept + 64
        # What is measured is what two layers of two heads of eight channels hold: keys and values.
        assert row["kv_bytes"] == row["batch"] * row["tokens"] * 2 * 2 * 2 * 8 * 4
        assert row["of_ideal"] == pytest.approx(row["speedup"] / row["ideal"])
    assert rows[0]["ideal"] == 1
    ideals = [row["ideal"] for row in rows[:5]]
    assert ideals == sorted(ideals)


def test_roofline_is_the_larger_of_computing_and_reading(script):
    prefill = script("prefill")
    shape = prefill.LanguageModelShape(8, 16, 1, heads=2)
    once = prefill.exact(shape, 10)
    assert prefill.roofline_ms(shape, 10, 3, rate=1000, read=1e9, width=2) == 3 * once
    weights = prefill.exact(shape, 1) * 2
    assert prefill.roofline_ms(shape, 10, 3, rate=1e12, read=1000, width=2) == weights


def test_selection(script):
    selection = script("selection")
    for case in selection.supported_cases():
        row = selection.measure(150, 32, case, 1)
        assert (row["dtype"], row["screened"], row["shared"]) == case
        assert row["of_product"] > 0
        assert set(row["milliseconds"]) == {"gprune", "product", "matrix_power"}
    # Nothing is screened on a GPU.
    assert not any(screened for _, screened, _ in selection.supported_cases(torch.device("cuda")))


def test_long_video(script):
    row = script("long_video").measure("gprune", 1280, 16, 0.0)
    assert row["seconds"] > 0
    assert row["bytes_of_input"] == 1280 * 16 * 4


def test_every_method(script, tmp_path, monkeypatch):
    every = script("every_method")
    monkeypatch.setattr(every, "LONG_TOKENS", 768)
    monkeypatch.setattr(every, "LONG_WIDTH", 8)
    assert every.measure_long_video("gprune", 120)["n"] == 768
    assert every.measure_long_video("gprune", 0.01) is None
    monkeypatch.setattr(every, "measure_long_video", lambda name, timeout: None)
    every.main("64", 16, 1, 1.0, tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["method"] for row in result["rows"]} == set(group_methods())


def test_performance_page_is_what_the_results_say(script, tmp_path, monkeypatch):
    performance = script("performance")
    monkeypatch.setattr(performance, "DOCS", tmp_path)
    monkeypatch.setattr(performance, "IMAGES", tmp_path / "images")
    performance.main()
    written = (tmp_path / "performance.md").read_text()
    assert written == (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    assert all(f"images/{name}" in written for name in drawn)
    assert len(drawn) >= 2


def test_check_fails_on_a_worse_ratio_alone(script, monkeypatch, capsys):
    check = script("check")
    monkeypatch.setattr(check, "selection_ratios", lambda repeats: [("one", 1.0, 1.2)])
    monkeypatch.setattr(check, "prefill_ratios", lambda repeats: [("two", 2.0, 1.0)])
    check.main()
    monkeypatch.setattr(check, "prefill_ratios", lambda repeats: [("two", 1.0, 1.5)])
    with pytest.raises(SystemExit, match="1 ratios are more than 35% worse"):
        check.main()
    assert "worse" in capsys.readouterr().out


def test_check_reads_the_committed_results(script, small_prefill, monkeypatch):
    check = script("check")
    selection = check.selection
    monkeypatch.setattr(
        selection, "measure", lambda n, d, case, repeats: {"of_product": 1.0, "n": n}
    )
    labels = [label for label, *_ in check.selection_ratios(1)]
    assert len(labels) == len(selection.supported_cases()) * len(check.SIZES)
    committed = json.loads((BENCHMARKS / "results" / "prefill.json").read_text())
    assert [shape["shape"] for shape in committed["shapes"]] == ["cpu"]
    assert len(check.prefill_ratios(1)) == len(check.KEEPS)


def test_the_page_shows_what_was_measured_on_hard_pictures(script):
    module = script("cover_limits")
    stored = json.loads(module.RESULTS.read_text())
    page = BENCHMARKS.parent / "docs" / "methods" / "graph_cover.md"
    assert module.table(stored) in page.read_text()
    blank = module.pictures()["blank"]
    rows = list(module.measured(load()[0], {"blank": blank}))
    for row, old in zip(rows, stored, strict=False):
        assert (row["keep"], row["method"]) == (old["keep"], old["method"])
        assert row["radius"] == pytest.approx(old["radius"], rel=0.05)


def test_a_wide_picture_is_encoded_square_by_square(script):
    """Its raster is the squares side by side."""
    module, (model, _) = script("hard_pictures"), load()
    strip = module.strip()
    tokens = module.tokens_of(model, strip)
    side = strip.height
    squares = [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]
    alone = [module.tokens_of(model, square) for square in squares]
    beside = torch.cat([one.features.unflatten(0, one.grid) for one in alone], 1)
    assert tokens.grid == tuple(beside.shape[:2])
    torch.testing.assert_close(tokens.features, beside.flatten(0, 1))


def test_gaps_are_in_patches(script):
    tokens = VisualTokens(torch.ones(12, 2), grid=(3, 4))
    assert script("hard_pictures").gap(torch.tensor([0]), tokens) == pytest.approx(13**0.5)


def test_the_page_has_the_stored_hard_subsets(script):
    module = script("hard_subsets")
    page = BENCHMARKS.parent / "docs" / "methods" / "graph_cover.md"
    assert module.table(json.loads(module.RESULTS.read_text())) in page.read_text()


def test_hard_subsets(script, tmp_path, monkeypatch):
    module = script("hard_subsets")
    plain, full = (module.by_foreground(2, most) for most in (False, True))
    scenes = [make_scene("validation", 0, index) for index in range(2 * module.POOL_FACTOR)]
    shares = {scene.draw().tobytes(): foreground(scene).mean() for scene in scenes}
    least, most = ([shares[one.image.tobytes()] for one in part] for part in (plain, full))
    assert max(least) <= min(most)
    assert min(least) == min(shares.values())
    # A subset that has been scored is left alone, another size is scored anew.
    monkeypatch.setattr(module, "SUBSETS", {"crowded": module.crowded})
    out = tmp_path / "subsets.json"
    module.main(2, out)
    found = json.loads(out.read_text())["crowded"]
    assert found["questions"] == sum(len(one.questions) for one in module.crowded(2))
    cells = module.table({"crowded": found}).splitlines()[-1].split(" | ")
    assert cells[-2] == f"{found['right']['uniform_grid 0.1']:.1f}"
    monkeypatch.setattr(module, "scored", None)
    module.main(2, out)


def test_every_kind_of_soaking_case_can_be_performed_again(script):
    """A method that is new, and sees videos alone, has to be left out."""
    soak = script("soak")
    model, processor = soak.load()
    processor.tokenizer.padding_side = "left"
    every = [soak.Case(method, 0.25, "prefill", 0) for method in soak.METHODS]
    every += [soak.Case("graph_cover", 7, mode, 1) for mode in soak.MODES]
    for case in every:
        answer = soak.perform(model, processor, case)
        assert answer == soak.perform(model, processor, case)
        assert bool(answer) == (case.mode != "failure")
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


ABLATED = {
    "graph_cover": {
        "divprune": "divprune",
        "place 0.5": "place 0.5",
        "place 1, positions without gaps": "place 1, positions without gaps",
        "place 1, budget by place 2": "place 1, budget by place 2",
    },
    "weighted_cover": {
        "graph_cover": "place 1",
        "**weighted_cover**: counted and merged": "counted and merged, place 1",
        "**weighted_gprune**: G-Prune's, counted and merged": "gprune, counted and merged",
        "gprune": "gprune",
        "gprune without propagation": "gprune, no propagation",
        "random's, counted and merged": "random, counted and merged",
    },
}


@pytest.mark.parametrize("page", ABLATED)
def test_the_pages_have_the_stored_ablation(page):
    stored = json.loads((BENCHMARKS / "results" / "cover_ablation.json").read_text())
    text = (BENCHMARKS.parent / "docs" / "methods" / f"{page}.md").read_text()
    assert f"all tokens reach\n{stored['full']['macro']:.1f}" in text.replace(" reach ", " reach\n")
    for label, variant in ABLATED[page].items():
        cells = [f"{row['macro']:.1f}" for row in stored["rows"] if row["variant"] == variant]
        assert len(cells) == 4
        assert f"| {label} | {' | '.join(cells)} |\n" in text, label

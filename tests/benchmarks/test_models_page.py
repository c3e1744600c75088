"""The committed comparison of models is that of the committed results, and what it says holds."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gprune.tinyvlm.model import SHIPPED, checkpoint_folder
from gprune.training.card import checksums

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import models

        yield models


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_committed_page(models, here):
    assert models.page() == models.PAGE.read_text(), "run benchmarks/models.py"


def test_the_readme_quotes_the_committed_results(models, here):
    kinds, alike = models.on_common_types(models.models())
    readme = " ".join(Path("README.md").read_text().replace("**", "").split())
    sentence = models.headline(alike).replace("\n", " ")
    assert sentence.partition(" retains ")[2].partition(" of ")[0] in readme
    assert f"{len(kinds)} question types" in readme


def test_results_are_those_of_the_shipped_weights(models, here):
    for name in SHIPPED:
        folder = models.RESULTS if name == "tinyvlm" else models.OTHERS / name
        made = json.loads((folder / models.MODEL).read_text())
        checkpoint = checkpoint_folder(name)
        assert made.pop("sha256") == checksums(checkpoint)["model.safetensors"]
        assert made == json.loads((checkpoint / "recipe.json").read_text())


def test_results_of_other_questions_are_refused(models, here, tmp_path):
    shutil.copytree(models.RESULTS, tmp_path / "other")
    stored = tmp_path / "other" / "questions.json"
    content = json.loads(stored.read_text())
    content["asked"][0] = content["asked"][0][1:]
    stored.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="are of other questions"):
        models.models(models.RESULTS, tmp_path)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
def test_rank_correlation_is_kendalls(models, pairs):
    """Tau-b by its definition: concordant less discordant pairs, ties left out of the scale."""
    concordant = discordant = tied_one = tied_other = 0
    for (a, b), (c, d) in itertools.combinations(pairs, 2):
        concordant += (a - c) * (b - d) > 0
        discordant += (a - c) * (b - d) < 0
        tied_one += a == c and b != d
        tied_other += b == d and a != c
    decided = concordant + discordant
    scale = np.sqrt((decided + tied_one) * (decided + tied_other))
    found = models.rank_correlation(*np.array(pairs, dtype=float).T)
    if scale == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx((concordant - discordant) / scale)


def with_swapped(models, folder: Path, objective: str) -> None:
    """The shipped model's results where two methods have changed places."""
    shutil.copytree(models.RESULTS, folder)
    one, other = (folder / f"{name}.json" for name in ("divprune", "l2_norm"))
    one_text = one.read_text().replace("divprune", "l2_norm")
    one.write_text(other.read_text().replace("l2_norm", "divprune"))
    other.write_text(one_text)
    made = json.loads((folder / models.MODEL).read_text())
    (folder / models.MODEL).write_text(json.dumps({**made, "objective": objective}))


def test_an_objective_that_orders_two_methods_otherwise_is_told(models, here, tmp_path):
    """Every pair that is told apart is a flip."""
    with_swapped(models, tmp_path / "swapped", "captions")
    page = models.page(models.RESULTS, tmp_path)
    assert "| swapped | clip | captions | its own | 0 |" in page
    for keep in models.KEEPS:
        part = page.split(f"### Keep {keep}\n")[1].split("###")[0]
        (line,) = [x for x in part.splitlines() if x.startswith("- `divprune` and `l2_norm`")]
        first, second = line.split(": ")[1].split(", ")
        assert first.startswith("patch labels +")
        assert second == first.replace("patch labels +", "captions -")


def test_models_that_agree(models, here, tmp_path):
    shutil.copytree(models.RESULTS, tmp_path / "same")
    page = models.page(models.RESULTS, tmp_path)
    assert page.count("| tinyvlm | +1.00 |") == len(models.KEEPS)
    assert page.count(", 0 are ordered one way by one model and the other way") == len(models.KEEPS)
    assert "By training objective" not in page


def test_seeds_are_resampled_with_pictures(models, here):
    """Each sample is the mean of as many models as there are, drawn with replacement."""
    board = models.Board(models.RESULTS).at(0.25)
    names = ["divprune", "random"]
    swapped = {"divprune": board["random"], "random": board["divprune"]}
    found = models.seeds_resampled([board, swapped], names)
    one, other = (board[name].resampled() for name in names)
    # Both models, either twice: no other mean is possible.
    for mine, theirs, samples in ((one, other, found[0]), (other, one, found[1])):
        near = np.stack([mine, theirs, (mine + theirs) / 2])
        assert np.allclose(np.abs(near - samples).min(0), 0)
    assert np.allclose(found.sum(0), one + other)  # paired: the same draws for both methods
    alone = models.seeds_resampled([board], names)
    assert np.allclose(alone, [one, other])


def test_the_picture(models, here, tmp_path):
    with_swapped(models, tmp_path / "swapped", "captions")
    models.picture(
        models.on_common_types(models.models(models.RESULTS, tmp_path))[1], tmp_path / "x.png"
    )
    with Image.open(tmp_path / "x.png") as drawn:
        assert min(drawn.size) > 300

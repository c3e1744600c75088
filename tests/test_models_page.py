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

from gprune.tinyvlm.card import sums_of
from gprune.tinyvlm.model import SHIPPED, checkpoint_folder

ROOT = Path(__file__).parents[1]


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


def test_results_are_those_of_the_shipped_weights(models, here):
    for name in SHIPPED:
        folder = models.RESULTS if name == "tinyvlm" else models.OTHERS / name
        made = json.loads((folder / models.MODEL).read_text())
        checkpoint = checkpoint_folder(name)
        assert made.pop("sha256") == sums_of(checkpoint)["model.safetensors"]
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


def test_a_model_that_orders_two_methods_otherwise_is_told(models, here, tmp_path):
    """The results of two methods change places: every pair that is told apart is a flip."""
    others = tmp_path / "others"
    shutil.copytree(models.RESULTS, others / "swapped")
    one, other = (others / "swapped" / f"{name}.json" for name in ("divprune", "l2_norm"))
    one_text = one.read_text().replace("divprune", "l2_norm")
    one.write_text(other.read_text().replace("l2_norm", "divprune"))
    other.write_text(one_text)
    page = models.page(models.RESULTS, others)
    assert "| swapped | clip | labels of patches | its own | 0 |" in page
    for keep in models.KEEPS:
        part = page.split(f"### Keep {keep}\n")[1].split("###")[0]
        (line,) = [x for x in part.splitlines() if x.startswith("- `divprune` and `l2_norm`")]
        first, second = line.split(": ")[1].split(", ")
        assert first.startswith("tinyvlm +")
        assert second == first.replace("tinyvlm +", "swapped -")
    same = tmp_path / "same"
    shutil.copytree(models.RESULTS, same / "same")
    page = models.page(models.RESULTS, same)
    assert "The flips" not in page
    assert page.count("tinyvlm and same +1.00") == len(models.KEEPS)

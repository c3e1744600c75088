"""Every method selects what its authors' released code selected, and the comparison can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tests.parity.methods as methods_package
from gprune.pruners.registry import METHODS
from tests.parity.__main__ import counts, main, vector_line
from tests.parity.methods import adapters
from tests.parity.vectors_io import (
    TOLERANCE,
    Comparison,
    Expected,
    Outcome,
    compare,
    difference,
    load,
)

FOLDER = Path(__file__).parent / "vectors"
STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "parity.json"
VECTORS = load(FOLDER)
IDS = [f"{vector.method}-{vector.label}" for vector, _ in VECTORS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Runs the comparisons as the command does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def compared_with_ours(index: int) -> Comparison:
    vector, expected = VECTORS[index]
    return compare(vector, expected, adapters().get(vector.method))


@pytest.mark.parametrize("index", range(len(VECTORS)), ids=IDS)
def test_agrees_with_the_released_code(index):
    compared = compared_with_ours(index)
    assert compared.exact, vector_line(compared)


def test_the_stored_counts_are_current():
    """They are what the documentation says of each method."""
    compared = [compared_with_ours(index) for index in range(len(VECTORS))]
    command = "python -m tests.parity tests/parity/vectors --out benchmarks/results/parity.json"
    assert json.loads(STORED.read_text()) == counts(compared), f"run {command}"


def test_the_vectors_are_whole():
    """Kept tokens ascend and exist, and no vector stands there twice."""
    assert len(VECTORS) == 310
    assert len(set(IDS)) == len(IDS)
    for vector, expected in VECTORS:
        kept = expected.kept
        assert kept == sorted(set(kept)), vector.label
        assert kept[0] >= 0, vector.label
        if "features" in vector.tensors:
            assert kept[-1] < len(vector.tensors["features"]), vector.label
        if expected.merged is not None:
            assert len(expected.merged) == len(kept), vector.label


def test_every_method_of_the_vectors_is_one_of_ours_with_an_adapter():
    named = {vector.method for vector, _ in VECTORS}
    assert named <= set(METHODS)
    assert named <= set(adapters())


WITH_ROWS = next(pair for pair in VECTORS if pair[1].merged is not None)


def echo(expected: Expected, **changes) -> Outcome:
    """Returns an outcome that is what was expected, except for changes."""
    return replace(Outcome(expected.kept, expected.merged, expected.extra), **changes)


def test_an_outcome_that_is_as_expected_is_exact():
    vector, expected = WITH_ROWS
    compared = compare(vector, expected, lambda _: echo(expected))
    assert compared.exact
    assert compared.overlap == 1
    assert set(compared.errors.values()) == {0.0}
    assert "exact" in vector_line(compared)


def other_token(kept: list[int]) -> list[int]:
    absent = next(i for i in range(len(kept) + 1) if i not in kept)
    return sorted([*kept[1:], absent])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: {"kept": other_token(e.kept)},
        lambda e: {"kept": e.kept[::-1]},
        lambda e: {"kept": e.kept[:-1], "merged": e.merged[:-1]},
        lambda e: {"merged": None},
        lambda e: {"merged": e.merged[:, :-1]},
        lambda e: {"merged": e.merged.flip(0)},
        lambda e: {"merged": e.merged + 2 * TOLERANCE * e.merged.abs().max()},
        lambda e: {"merged": e.merged * torch.nan},
        lambda e: {"facts": {"no such fact": 1}},
    ],
    ids=["token", "order", "count", "no rows", "width", "row order", "values", "nan", "fact"],
)
def test_a_wrong_adapter_is_caught(change):
    vector, expected = WITH_ROWS
    compared = compare(vector, expected, lambda _: echo(expected, **change(expected)))
    assert not compared.exact


def test_facts_are_compared_by_name():
    vector, expected = next(pair for pair in VECTORS if "counts" in pair[0].raw)
    right = compare(vector, expected, lambda v: echo(expected, facts={"counts": v.raw["counts"]}))
    wrong = compare(vector, expected, lambda v: echo(expected, facts={"counts": []}))
    assert right.exact
    assert not wrong.exact
    assert wrong.trouble == "other facts: counts"


def test_an_adapter_that_raises_or_is_missing_does_not_stop_the_others():
    vector, expected = WITH_ROWS

    def fails(_):
        raise KeyError("variant")

    assert compare(vector, expected, fails).trouble == "KeyError: 'variant'"
    assert "no adapter for" in compare(vector, expected, None).trouble
    assert not compare(vector, expected, fails).exact


def test_difference_is_relative_to_the_largest_entry():
    wanted = torch.tensor([[4.0, -8.0], [0.0, 1.0]])
    assert difference(wanted, wanted) == 0
    assert difference(wanted + torch.tensor([0.0, 0.4]), wanted) == pytest.approx(0.05)
    assert difference(wanted[:1], wanted) == float("inf")
    assert difference(torch.empty(0, 3), torch.empty(0, 3)) == 0


def test_two_adapters_for_a_method_are_an_error(tmp_path, monkeypatch):
    for name in ("first_of_two", "second_of_two"):
        (tmp_path / f"{name}.py").write_text("METHODS = {'twice': print}\n")
    monkeypatch.setattr(methods_package, "__path__", [*methods_package.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match=r"'twice' has two adapters, in first_of_two.py and"):
        adapters()


@pytest.fixture
def small(tmp_path):
    """Returns a folder of one case: three tokens, of which G-Prune keeps the first two."""
    save_file(
        {"features": torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])},
        tmp_path / "new_case.safetensors",
    )
    params = {"threshold": 0.5, "temperature": 0.03, "iterations": 5}
    right = {"method": "gprune", "case": "new case", "k": 2, "params": params, "kept": [0, 1]}
    wrong = {**right, "kept": [0, 2]}
    unknown = {**right, "method": "no_such_method"}

    def write(*vectors: str) -> Path:
        named = {"right": right, "wrong": wrong, "unknown": unknown}
        document = {
            "cases": {"new case": {"file": "new_case.safetensors", "n": 3}},
            "vectors": [named[name] for name in vectors],
        }
        (tmp_path / "expected.json").write_text(json.dumps(document))
        return tmp_path

    return write


def test_the_command_counts_what_is_exact(small, capsys, tmp_path):
    assert main([str(small("right"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 cases exact"
    out = tmp_path / "counts.json"
    assert main([str(small("right", "wrong", "unknown")), "-v", "--out", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 3 cases exact"
    assert "overlap 0.333" in lines[1]
    assert lines[2].endswith("no adapter for 'no_such_method' in tests/parity/methods")
    assert lines[3].split() == ["gprune", "exact", "1", "of", "2", "kept", "1"]
    assert json.loads(out.read_text()) == {
        "gprune": {"exact": 1, "vectors": 2},
        "no_such_method": {"exact": 0, "vectors": 1},
    }


def test_the_command_refuses_what_it_cannot_compare(small, capsys, tmp_path):
    for arguments in ([], ["--only", "divprune"]):  # without expected.json first, then with it
        with pytest.raises(SystemExit) as stopped:
            main([str(tmp_path), *arguments])
        assert stopped.value.code == 2
        small("right")
    error = capsys.readouterr().err
    assert "has no expected.json" in error
    assert "has no vectors of divprune" in error


def test_counts_are_sorted_by_method():
    compared = [compare(vector, expected, lambda _: Outcome([])) for vector, expected in VECTORS]
    assert list(counts(compared)) == sorted({vector.method for vector, _ in VECTORS})

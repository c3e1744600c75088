"""The gate: what happens with versions of transformers and torch that have not been tested."""

from __future__ import annotations

import functools
import threading
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
import transformers

import gprune.proof
from gprune import GPrune, __version__, verdicts, versions
from gprune.errors import UnsupportedModelError, UnsupportedVersionError
from gprune.hf import gate, prune
from gprune.proof.models import SPECIMENS
from gprune.verdicts import VerdictKey, read, store, stored

UNTESTED = {"transformers": "5.25.0", "torch": "2.13.0+cpu"}
LLAVA = VerdictKey("llava", __version__, *UNTESTED.values())
PRUNER = GPrune(keep=0.3)


@dataclass(frozen=True)
class Proof:
    """Stands in for `gprune.proof.FamilyProof`."""

    passed: bool
    failures: tuple[str, ...] = ()


class Prover:
    """Stands in for `gprune.proof.prove_family`: counts its calls, and says what it is told to."""

    def __init__(self, proof):
        self.proof, self.calls = proof, []

    def __call__(self, family):
        self.calls.append(family)
        if isinstance(self.proof, Exception):
            raise self.proof
        return self.proof


@pytest.fixture(scope="module")
def llava():
    return SPECIMENS["llava"].build()


@pytest.fixture(autouse=True)
def new_process(tmp_path, monkeypatch):
    """A process that has proven nothing, an empty cache directory, and no settings."""
    for tested in versions.RANGES.values():
        monkeypatch.delenv(tested.override, raising=False)
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "proofs")
    monkeypatch.setattr(gate, "_verdicts", {})


@pytest.fixture
def install(monkeypatch):
    """Pretends that other versions are installed."""

    def pretend(**installed):
        monkeypatch.setattr(versions, "installed_version", (UNTESTED | installed).__getitem__)

    return pretend


@pytest.fixture
def prover(install, monkeypatch):
    """An untested transformers that proves itself."""
    install()
    prover = Prover(Proof(passed=True))
    monkeypatch.setattr(gprune.proof, "prove_family", prover)
    return prover


def enter(model, **options):
    """Prunes the model; returns the lines of warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with prune(model, PRUNER, **options):
            pass
    assert all(one.filename == __file__ for one in caught)  # points at the user's `with`
    lines = [str(one.message) for one in caught]
    assert not any("\n" in line for line in lines)
    return lines


def test_tested_versions_are_neither_proven_nor_mentioned(llava, prover, install):
    install(transformers="5.24.0")
    assert enter(llava) == []
    for untested in ("refuse", "allow", "prove"):
        assert enter(llava, untested=untested) == []
    assert prover.calls == []
    assert stored() == ([], [])


def test_an_untested_version_is_proven_once(llava, prover, monkeypatch):
    first = enter(llava)
    assert len(first) == 1
    assert first[0].startswith(
        "transformers 5.25.0 has not been tested with gprune; the proof of llava passed now, in "
    )
    verdict = read(LLAVA)
    assert verdict.passed
    assert verdict.failures == ()
    on = verdict.when[:10]
    later = (
        f"transformers 5.25.0 has not been tested with gprune; the proof of llava passed on {on}"
    )
    assert enter(llava) == [later]
    monkeypatch.setattr(gate, "_verdicts", {})  # another process
    assert enter(llava) == [later]
    assert prover.calls == ["llava"]


def test_each_family_and_each_version_is_proven(llava, prover, install):
    enter(llava)
    enter(SPECIMENS["qwen2_vl"].build())
    install(transformers="5.25.1")
    enter(llava)
    install(torch="2.14.1")
    enter(llava)
    assert prover.calls == ["llava", "qwen2_vl", "llava", "llava"]
    assert len(stored()[0]) == 4


@pytest.mark.parametrize("failures", [("masks: off by 0.3", "beams: shapes"), ()])
def test_a_failed_proof_refuses_and_says_what_failed(llava, prover, failures, monkeypatch):
    prover.proof = Proof(passed=False, failures=failures)
    shown = "masks: off by 0.3; beams: shapes" if failures else "it does not say what"
    message = (
        "transformers 5.25.0 has not been tested with gprune, and the proof of llava failed: "
        f"{shown}. Instead, run pip install 'transformers>=5.19.0,<5.25.0'; to prove it again, "
        f"delete {LLAVA.path}"
    )
    for _ in range(2):
        with pytest.raises(UnsupportedVersionError) as caught:
            enter(llava)
        assert str(caught.value) == message
        monkeypatch.setattr(gate, "_verdicts", {})  # another process
    assert prover.calls == ["llava"]
    prover.proof = Proof(passed=True)
    LLAVA.path.unlink()
    assert len(enter(llava)) == 1
    assert not llava._forward_pre_hooks


def test_a_proof_that_cannot_run_refuses_and_is_no_verdict(llava, prover):
    prover.proof = ValueError("family 'llava' is unknown")
    message = (
        "the proof of llava could not run: ValueError: family 'llava' is unknown. Instead, run"
    )
    for _ in range(2):
        with pytest.raises(UnsupportedVersionError, match=message) as caught:
            enter(llava)
        assert caught.value.__cause__ is prover.proof
    assert prover.calls == ["llava"] * 2
    assert stored() == ([], [])


def test_a_file_without_a_verdict_is_proven_again(llava, prover):
    enter(llava)
    LLAVA.path.write_text(LLAVA.path.read_text()[:30])
    gate._verdicts.clear()
    enter(llava)
    assert prover.calls == ["llava"] * 2
    assert read(LLAVA).passed


def test_a_verdict_that_cannot_be_stored_holds_for_the_process(llava, prover, tmp_path):
    (tmp_path / "proofs").write_text("a file in its place")
    assert "the next process proves it again, because it cannot be stored (" in enter(llava)[0]
    enter(llava)
    assert prover.calls == ["llava"]


@pytest.mark.parametrize("by_argument", [False, True])
def test_refuse(llava, prover, by_argument, monkeypatch):
    store(replace(passed_verdict(), key=LLAVA))  # even then
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", "allow" if by_argument else "refuse")
    decided = "untested='refuse'" if by_argument else "GPRUNE_UNTESTED_TRANSFORMERS=refuse"
    message = f"5.25.0 has not been tested with gprune, and {decided} refuses that: run pip install"
    with pytest.raises(UnsupportedVersionError, match=message):
        enter(llava, **({"untested": "refuse"} if by_argument else {}))
    assert prover.calls == []


@pytest.mark.parametrize("setting", ["allow", "1", None])
def test_allow(llava, prover, setting, monkeypatch):
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", setting or "refuse")
    lines = enter(llava, **({} if setting else {"untested": "allow"}))
    decided = "GPRUNE_UNTESTED_TRANSFORMERS=allow" if setting else "untested='allow'"
    assert lines == [
        "transformers 5.25.0 has not been tested with gprune, and nothing was proven, because of "
        f"{decided}"
    ]
    assert prover.calls == []


@pytest.mark.parametrize("setting", ["prove", ""])
def test_prove_is_the_default(llava, prover, setting, monkeypatch):
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", setting)
    enter(llava)
    assert prover.calls == ["llava"]


def test_other_settings_are_errors_also_for_tested_versions(llava, prover, install, monkeypatch):
    for installed in ("5.25.0", "5.24.0"):
        install(transformers=installed)
        with pytest.raises(ValueError, match="untested='no' must be one of prove, refuse, allow"):
            enter(llava, untested="no")
        with monkeypatch.context() as patch:
            patch.setenv("GPRUNE_UNTESTED_TORCH", "yes")
            with pytest.raises(ValueError, match="GPRUNE_UNTESTED_TORCH='yes' must be one of"):
                enter(llava)
    assert prover.calls == []


def test_torch_is_asked_too(llava, prover, install, monkeypatch):
    install(transformers="5.24.0", torch="2.16.0+cu130")
    assert "torch 2.16.0+cu130 has not been tested" in enter(llava)[0]
    install(torch="2.16.0+cu130")
    assert "transformers 5.25.0 and torch 2.16.0+cu130 have not been tested" in enter(llava)[0]
    assert prover.calls == ["llava", "llava"]
    # Whoever allows one version has not allowed the other; whoever refuses one refuses both.
    monkeypatch.setenv("GPRUNE_UNTESTED_TORCH", "allow")
    install(torch="2.16.1")
    assert "the proof of llava passed now" in enter(llava)[0]
    monkeypatch.setenv("GPRUNE_UNTESTED_TRANSFORMERS", "refuse")
    with pytest.raises(UnsupportedVersionError, match="GPRUNE_UNTESTED_TRANSFORMERS=refuse"):
        enter(llava)


@pytest.mark.parametrize("version", ["5.18.9", "5.25.0.dev0", "6.0"])
def test_versions_on_both_sides_are_proven(llava, prover, install, version):
    install(transformers=version)
    assert f"transformers {version} has not been tested" in enter(llava)[0]


def test_cheap_errors_come_before_the_proof(llava, prover):
    with pytest.raises(ValueError, match="positions='left'"):
        enter(llava, positions="left")
    with pytest.raises(UnsupportedModelError, match="which gprune cannot prune"):
        enter(torch.nn.Linear(2, 2))
    assert prover.calls == []


def test_the_proof_itself_passes_the_gate(llava, prover, monkeypatch):
    def prove_family(family):
        prover(family)
        with prune(llava, PRUNER):
            return Proof(passed=True)

    monkeypatch.setattr(gprune.proof, "prove_family", prove_family)
    assert len(enter(llava)) == 1
    assert prover.calls == ["llava"]
    with gate.proving():
        assert enter(llava, untested="refuse") == []
    with pytest.raises(UnsupportedVersionError):
        enter(llava, untested="refuse")


def test_threads_share_one_proof(llava, prover, monkeypatch):
    """Also while the proof is open in one of them, the others do not pass unproven."""
    begun, models = threading.Event(), [SPECIMENS["llava"].build() for _ in range(4)]

    def prove_family(family):
        begun.set()
        begun.wait(1)
        return prover(family)

    monkeypatch.setattr(gprune.proof, "prove_family", prove_family)
    prover.proof = Proof(passed=False, failures=("masks",))
    errors = []

    def use(model):
        try:
            with prune(model, PRUNER):
                errors.append(None)
        except UnsupportedVersionError as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prover.calls == ["llava"]
    assert len(errors) == 4
    assert all("masks" in str(error) for error in errors)


def passed_verdict():
    return verdicts.StoredVerdict(LLAVA, True, (), "2026-11-28T12:00:00+00:00", 3.5)


def test_the_real_proof_passes(llava, install):
    install()
    state = torch.get_rng_state()
    with torch.inference_mode():
        lines = enter(llava)
    assert "the proof of llava passed now, in" in lines[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert read(LLAVA).passed


def test_the_real_proof_refuses_a_transformers_that_is_broken(llava, install, monkeypatch):
    install()

    model = transformers.LlavaForConditionalGeneration

    @functools.wraps(model.forward)  # generate() reads the signature
    def forward(*args, **kwargs):
        raise NotImplementedError("renamed again")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(UnsupportedVersionError, match=r"proof of llava failed: .*renamed again"):
        enter(llava)
    assert "renamed again" in read(LLAVA).failures[0]

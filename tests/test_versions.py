"""The ranges of tested versions, and what is done with others."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from gprune.errors import UnsupportedVersionError
from gprune.versions import (
    RANGES,
    installed_version,
    is_allowed,
    is_tested,
    policy,
    require_tested,
)

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("package", list(RANGES))
def test_the_range_includes_its_first_version_and_excludes_its_last(package):
    tested = RANGES[package]
    assert Version(tested.first) < Version(tested.beyond)
    assert is_tested(package, tested.first)
    assert is_tested(package, f"{tested.first}+cpu")
    assert not is_tested(package, f"{tested.first}rc1")
    assert not is_tested(package, tested.beyond)
    assert not is_tested(package, "0.1")


@pytest.mark.parametrize("package", list(RANGES))
def test_development_versions_of_the_next_release_are_not_tested(package):
    for suffix in (".dev0", "rc1", "a0+git1234"):
        assert not is_tested(package, RANGES[package].beyond + suffix)


@pytest.mark.parametrize("package", list(RANGES))
def test_an_untested_version_is_refused_unless_the_check_is_skipped(package, monkeypatch):
    tested = RANGES[package]
    monkeypatch.delenv(tested.override, raising=False)
    require_tested(package, tested.first)
    message = f"{package} {tested.beyond} has not been tested .*{tested.override}=allow"
    with pytest.raises(UnsupportedVersionError, match=message):
        require_tested(package, tested.beyond)
    for value in ("0", "refuse", ""):
        monkeypatch.setenv(tested.override, value)
        assert not is_allowed(package, tested.beyond)
    for value in ("1", "allow"):
        monkeypatch.setenv(tested.override, value)
        assert is_allowed(package, tested.beyond)
        require_tested(package, tested.beyond)


@pytest.mark.parametrize("package", list(RANGES))
def test_policies(package, monkeypatch):
    tested = RANGES[package]
    monkeypatch.delenv(tested.override, raising=False)
    assert policy(package) == tested.policies[0] == ("refuse" if package == "vllm" else "prove")
    for value in tested.policies:
        monkeypatch.setenv(tested.override, value)
        assert policy(package) == value
        monkeypatch.setenv(tested.override, "nothing of the kind")
        assert policy(package, value) == value  # the argument comes first
    with pytest.raises(ValueError, match=f"{tested.override}='nothing of the kind' must be one of"):
        policy(package)
    with pytest.raises(ValueError, match="untested='1' must be one of"):
        policy(package, "1")


def test_nothing_proves_vllm(monkeypatch):
    monkeypatch.setenv("GPRUNE_UNTESTED_VLLM", "prove")
    with pytest.raises(ValueError, match="'prove' must be one of refuse, allow"):
        policy("vllm")


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_what_is_installed_here_is_tested(package):
    assert is_tested(package, installed_version(package))
    require_tested(package)


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_the_distribution_asks_for_the_first_tested_version(package):
    """And for no last one: later versions prove themselves, or are refused by the gate."""
    [bound] = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == package]
    assert bound.specifier.contains(RANGES[package].first)
    assert bound.specifier.contains(RANGES[package].beyond)
    below = Version(RANGES[package].first)
    assert not bound.specifier.contains(f"{below.major}.{below.minor - 1}.99")

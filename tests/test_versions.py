"""The check of the installed versions of transformers and vLLM."""

from __future__ import annotations

import pytest
from packaging.version import Version

from gprune.errors import UnsupportedVersionError
from gprune.versions import RANGES, installed_version, is_allowed, is_tested, require_tested


@pytest.mark.parametrize("package", list(RANGES))
def test_the_range_includes_its_first_version_and_excludes_its_last(package):
    tested = RANGES[package]
    assert Version(tested.first) < Version(tested.beyond)
    assert is_tested(package, tested.first)
    assert not is_tested(package, tested.beyond)
    assert not is_tested(package, "0.1")


@pytest.mark.parametrize("package", list(RANGES))
def test_an_untested_version_is_refused_unless_the_check_is_skipped(package, monkeypatch):
    tested = RANGES[package]
    monkeypatch.delenv(tested.override, raising=False)
    require_tested(package, tested.first)
    message = f"{package} {tested.beyond} has not been tested .*{tested.override}=1"
    with pytest.raises(UnsupportedVersionError, match=message):
        require_tested(package, tested.beyond)
    monkeypatch.setenv(tested.override, "0")
    assert not is_allowed(package, tested.beyond)
    monkeypatch.setenv(tested.override, "1")
    assert is_allowed(package, tested.beyond)
    require_tested(package, tested.beyond)


def test_the_installed_transformers_is_tested():
    assert is_tested("transformers", installed_version("transformers"))
    require_tested("transformers")

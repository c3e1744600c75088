"""The versions of transformers and vLLM that gprune has been tested with."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

from gprune.errors import UnsupportedVersionError


@dataclass(frozen=True)
class VersionRange:
    """The tested versions of a package.

    Attributes:
        first: the lowest tested version.
        beyond: the lowest version above the tested ones.
        override: environment variable; set to 1 to skip the version check.
        tests: the tests to run against an untested version.
    """

    first: str
    beyond: str
    override: str
    tests: str


RANGES = {
    "transformers": VersionRange("5.19.0", "5.25.0", "GPRUNE_UNTESTED_TRANSFORMERS", "tests/hf"),
    "vllm": VersionRange("0.32.0", "0.33.0", "GPRUNE_UNTESTED_VLLM", "tests/serving"),
}


def is_tested(package: str, version: str) -> bool:
    """Returns whether a version of a package, a key of `RANGES`, is in its tested range."""
    tested = RANGES[package]
    return Version(tested.first) <= Version(version) < Version(tested.beyond)


def is_allowed(package: str, version: str) -> bool:
    """Returns whether a version is tested, or its check is skipped by environment variable."""
    return is_tested(package, version) or os.environ.get(RANGES[package].override) == "1"


@functools.cache
def installed_version(package: str) -> str:
    """Returns the installed version; cached, because parsing metadata takes a millisecond."""
    return metadata.version(package)


def require_tested(package: str, version: str | None = None) -> None:
    """Checks that a package's version is tested: the internals of others may differ silently.

    Args:
        package: a key of `RANGES`.
        version: of the package; by default the installed one.

    Raises:
        UnsupportedVersionError: the version is outside the tested range, and the environment
            variable that skips this check is not 1.
    """
    version = version or installed_version(package)
    if is_allowed(package, version):
        return
    tested = RANGES[package]
    raise UnsupportedVersionError(
        f"{package} {version} has not been tested with gprune: run pip install "
        f"'{package}>={tested.first},<{tested.beyond}', or set {tested.override}=1 to skip this "
        f"check and run {tested.tests} against it"
    )

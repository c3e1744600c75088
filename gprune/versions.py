"""The versions of transformers, torch and vLLM that gprune has been tested with."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

from gprune.errors import UnsupportedVersionError

# What to do with an untested version: ask the proof of the family in use (`gprune.hf.gate`), refuse
# it, or take it unproven.
PROVE, REFUSE, ALLOW = "prove", "refuse", "allow"
# Further values of the environment variables.
ALIASES = {"1": ALLOW, "0": REFUSE}


@dataclass(frozen=True)
class VersionRange:
    """The tested versions of a package.

    Attributes:
        first: the lowest tested version.
        beyond: the lowest version above the tested ones.
        override: environment variable that says what to do with other versions.
        tests: the tests to run against an untested version.
        policies: what the variable can be; the first is the default.
    """

    first: str
    beyond: str
    override: str
    tests: str
    policies: tuple[str, ...] = (REFUSE, ALLOW)

    @property
    def requirement(self) -> str:
        """The range as pip writes it."""
        return f">={self.first},<{self.beyond}"


PROVABLE = (PROVE, REFUSE, ALLOW)
RANGES = {
    "transformers": VersionRange(
        "5.19.0", "5.25.0", "GPRUNE_UNTESTED_TRANSFORMERS", "tests/hf", PROVABLE
    ),
    "torch": VersionRange(
        "2.6.0", "2.16.0", "GPRUNE_UNTESTED_TORCH", "tests/graph and tests/hf", PROVABLE
    ),
    "vllm": VersionRange(
        "0.32.0", "0.34.0", "GPRUNE_UNTESTED_VLLM", "gprune prove --engine vllm MODEL"
    ),
}


def is_tested(package: str, version: str) -> bool:
    """Returns whether a version of a package, a key of `RANGES`, is in its tested range."""
    tested, found = RANGES[package], Version(version)
    # A development version of ``beyond`` is sorted below it, and has not been tested either.
    return Version(tested.first) <= found and Version(found.base_version) < Version(tested.beyond)


def policy(package: str, untested: str | None = None) -> str:
    """Returns what to do with an untested version of a package, one of its policies.

    Args:
        package: a key of `RANGES`.
        untested: a policy; None reads the environment variable of the package.

    Raises:
        ValueError: ``untested``, or the variable, is no policy of the package.
    """
    tested = RANGES[package]
    if untested is not None:
        name, value = "untested", untested
    else:
        name, value = tested.override, os.environ.get(tested.override, "")
        value = ALIASES.get(value, value) or tested.policies[0]
    if value not in tested.policies:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(tested.policies)}")
    return value


def is_allowed(package: str, version: str) -> bool:
    """Returns whether a version is tested, or allowed without that by environment variable."""
    return is_tested(package, version) or policy(package) == ALLOW


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
            variable of the package does not allow it.
        ValueError: the variable is no policy of the package.
    """
    version = version or installed_version(package)
    if is_allowed(package, version):
        return
    tested = RANGES[package]
    raise UnsupportedVersionError(
        f"{package} {version} has not been tested with gprune: run pip install "
        f"'{package}{tested.requirement}', or set {tested.override}=allow to skip this "
        f"check and run {tested.tests} against it"
    )

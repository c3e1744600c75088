"""Which transformers the hook has been tested with."""

from __future__ import annotations

import functools
import os
from importlib import metadata

from packaging.version import Version

from gprune.errors import UnsupportedVersionError

FIRST, BEYOND = "5.19.0", "5.24.0"
# The way out for who knows what they do: the test-suite is the judge of another version.
OVERRIDE = "GPRUNE_UNTESTED_TRANSFORMERS"


def is_tested(version: str) -> bool:
    """Whether a version of transformers is in the tested range."""
    return Version(FIRST) <= Version(version) < Version(BEYOND)


@functools.cache
def installed() -> str:
    """The installed version; read once, since parsing a package's metadata takes a millisecond."""
    return metadata.version("transformers")


def require_tested_transformers() -> None:
    """Refuses a transformers outside the tested range, whose internals may differ in silence.

    Raises:
        UnsupportedVersionError: the installed version is outside [5.19.0, 5.24.0) and the
            environment variable GPRUNE_UNTESTED_TRANSFORMERS is not 1.
    """
    version = installed()
    if is_tested(version) or os.environ.get(OVERRIDE) == "1":
        return
    raise UnsupportedVersionError(
        f"transformers {version} has not been tested: pip install "
        f"'transformers>={FIRST},<{BEYOND}', or set {OVERRIDE}=1 and run gprune's tests against it"
    )

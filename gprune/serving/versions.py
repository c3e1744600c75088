"""Which vLLM the plugin has been tested with."""

from __future__ import annotations

import os

from packaging.version import Version

from gprune.errors import UnsupportedVersionError

FIRST, BEYOND = "0.32.0", "0.33.0"
# The way out for who knows what they do: the test-suite is the judge of another version.
OVERRIDE = "GPRUNE_UNTESTED_VLLM"


def is_tested(version: str) -> bool:
    """Whether a version of vLLM is in the tested range."""
    return Version(FIRST) <= Version(version) < Version(BEYOND)


def require_tested_vllm(version: str) -> None:
    """Refuses a vLLM outside the tested range, whose internals may differ in silence.

    Args:
        version: the installed one, ``vllm.__version__``.

    Raises:
        UnsupportedVersionError: it is outside [0.32.0, 0.33.0) and the environment variable
            GPRUNE_UNTESTED_VLLM is not 1.
    """
    if is_tested(version) or os.environ.get(OVERRIDE) == "1":
        return
    raise UnsupportedVersionError(
        f"vllm {version} has not been tested with gprune's plugin: pip install "
        f"'vllm>={FIRST},<{BEYOND}', or set {OVERRIDE}=1 and run tests/serving against it"
    )

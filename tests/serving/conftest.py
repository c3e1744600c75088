"""Runs engines inside the test process, on CPUs; `make test-vllm` has an environment for it."""

from __future__ import annotations

import os

from gprune.serving.proof.engines import ENVIRONMENT

# Python runs it at startup; it is no test module.
collect_ignore = ["shim"]

# Set before vLLM is imported.
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

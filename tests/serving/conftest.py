"""Engines inside the test process, on CPUs. `make test-vllm` runs these tests in their own venv."""

from __future__ import annotations

import os

# Python runs what is in there at its start; it is no test module.
collect_ignore = ["shim"]

# Before vLLM is imported: engines in this process, and quiet.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Else every worker wants a NUMA node to itself, and the tests' own process is tied to a core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

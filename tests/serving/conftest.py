"""Runs engines inside the test process, on CPUs; `make test-vllm` has an environment for it."""

from __future__ import annotations

import os

# Python runs it at startup; it is no test module.
collect_ignore = ["shim"]

# Set before vLLM is imported: engines run in this process, and log warnings only.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# By default every worker takes a NUMA node, and this process would be bound to one core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

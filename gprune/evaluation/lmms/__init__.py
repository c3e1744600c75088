"""Runs public benchmarks with lmms-eval's own command: ``lmms-eval --model gprune``.

lmms-eval is not a dependency: its registry finds this module by the entry point in
``pyproject.toml``.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Returns the manifest for lmms-eval's registry, which imports the model class when used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("gprune", chat_class_path="gprune.evaluation.lmms.model.PrunedLMM")

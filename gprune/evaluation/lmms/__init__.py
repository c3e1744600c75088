"""Public benchmarks through lmms-eval's own command: ``lmms-eval --model gprune``.

lmms-eval is not a dependency: its registry finds this by the entry point in ``pyproject.toml``.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval's model registry asks for; the model itself is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("gprune", chat_class_path="gprune.evaluation.lmms.model.PrunedLMM")

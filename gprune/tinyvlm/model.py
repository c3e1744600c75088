"""Loads the tiny VLMs: small LLaVA models in transformers' own classes, without custom code."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

# The folder of each checkpoint in the package.
SHIPPED = {"tinyvlm": "checkpoint", "tinyvlm-siglip": "checkpoint_siglip"}


def checkpoint_folder(name: str = "tinyvlm") -> Path:
    """Returns the folder of a shipped checkpoint in the installed package.

    Args:
        name: one of ``SHIPPED``.

    Raises:
        ValueError: ``name`` is unknown.
    """
    if name not in SHIPPED:
        raise ValueError(f"name={name!r} must be one of {', '.join(SHIPPED)}")
    return Path(str(resources.files("gprune.tinyvlm") / SHIPPED[name]))


def resolve_checkpoint(checkpoint: str | Path | None) -> Path:
    """Returns the folder of a checkpoint.

    Args:
        checkpoint: a folder, or one of ``SHIPPED``; None is ``tinyvlm``.
    """
    name = "tinyvlm" if checkpoint is None else str(checkpoint)
    return checkpoint_folder(name) if name in SHIPPED else Path(name)


def load(folder: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """Loads a tiny VLM and its processor, in evaluation mode.

    Args:
        folder: a checkpoint that ``python -m gprune.training`` wrote, or one of ``SHIPPED``; None
            is ``tinyvlm``.
        options: passed to ``AutoModelForImageTextToText.from_pretrained``. Weights are stored in
            bfloat16 and loaded as float32 unless ``dtype`` is given.

    Raises:
        FileNotFoundError: the folder has no weights.
    """
    source = resolve_checkpoint(folder)
    if not (source / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"folder {str(source)!r} holds no model.safetensors; train a model with "
            "'python -m gprune.training --out FOLDER'"
        )
    options.setdefault("dtype", torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(
        source, local_files_only=True, **options
    ).eval()
    return model, AutoProcessor.from_pretrained(source, local_files_only=True)

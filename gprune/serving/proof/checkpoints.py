"""Checkpoints in the format that vLLM reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

# How the names of a CLIP or SigLIP tower's weights begin.
TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")


def copy_for_vllm(source: Path, target: Path) -> Path:
    """Copies a checkpoint and renames its tower's weights, see `rename_tower`."""
    shutil.copytree(source, target)
    rename_tower(target)
    return target


def rename_tower(folder: Path) -> None:
    """Renames CLIP and SigLIP weights: vLLM expects a prefix that transformers 5 leaves out."""
    weights = load_file(folder / "model.safetensors")
    # InternVL's tower has embeddings too, but no vision_model in its names.
    internvl = any("lambda_1" in name for name in weights)

    def new_name(name: str) -> str:
        prefix, found, rest = name.partition("vision_tower.")
        if found and rest.startswith(TOWER) and not internvl:
            return f"{prefix}vision_tower.vision_model.{rest}"
        return name

    renamed = {new_name(name): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})

"""Saves and restores a run: weights, optimizer state and progress in one file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gprune.training.recipe import Recipe

STATE_FILE = "state.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class RunProgress:
    """Completed steps of each stage, and the seconds that they took."""

    patches: int = 0
    answers: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"patches": 0.0, "answers": 0.0})


def claim_folder(folder: Path, recipe: Recipe) -> None:
    """Creates the folder of a run and stores its recipe, or checks the stored recipe.

    Raises:
        ValueError: the folder holds a run with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.json"
    if not file.is_file():
        file.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    elif json.loads(file.read_text()) != asdict(recipe):
        raise ValueError(
            f"out {str(folder)!r} holds a run with another recipe; "
            "take a new folder or the options it was started with"
        )


def save_state(
    folder: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, progress: RunProgress
) -> None:
    """Writes the state of a run; a killed process leaves either the old file or the new one."""
    tensors: dict[str, Tensor] = {}
    # Parameters instead of a state dict, which would store the tied word embeddings twice.
    for name, parameter in modules.named_parameters():
        tensors[name] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value.contiguous()
    text = json.dumps(asdict(progress)).encode()
    tensors["progress"] = torch.tensor(list(text), dtype=torch.uint8)
    temporary = folder / "state.partial"
    save_file(tensors, temporary)
    os.replace(temporary, folder / STATE_FILE)


def load_state(folder: Path, modules: nn.Module) -> tuple[RunProgress, dict[str, Tensor]]:
    """Restores the weights of ``modules`` in place, if the folder holds a state.

    Returns:
        the progress of the run; and the optimizer's moments by ``<parameter>.<key>``, empty if
        there is no state.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return RunProgress(), {}
    tensors = load_file(file)
    progress = RunProgress(**json.loads(bytes(tensors.pop("progress").tolist())))
    moments = {
        name.removeprefix("optimizer."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("optimizer.")
    }
    with torch.no_grad():
        for name, parameter in modules.named_parameters():
            parameter.copy_(tensors[name])
    return progress, moments


def restore_moments(
    optimizer: torch.optim.Optimizer,
    modules: nn.Module,
    moments: dict[str, Tensor],
    device: torch.device,
) -> None:
    """Gives the optimizer the moments that `load_state` returned."""
    for name, parameter in modules.named_parameters():
        stored = {
            key: moments[f"{name}.{key}"].to(device)
            for key in MOMENTS
            if f"{name}.{key}" in moments
        }
        if stored:
            optimizer.state[parameter] = stored

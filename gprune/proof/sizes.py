"""Claims about costs: a shorter cache, less memory, a faster prefill."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from gprune.costs import LanguageModelShape, saving
from gprune.costs.clock import time_in_turn
from gprune.costs.generation import cache_bytes, peak_memory, reset_peak_memory
from gprune.hf import find_cache
from gprune.layouts import family_of
from gprune.proof.recording import pruning
from gprune.proof.reference import Kept, kept_by
from gprune.proof.results import Inapplicable, Result, Verdict, holds
from gprune.proof.running import Inputs
from gprune.pruners import Pruner

REPEATS = 7
# Milliseconds; where less can be saved, a pruned prefill that is not faster says nothing. Entering
# the block and selecting take Python a few milliseconds, more on a busy CPU.
SHORTEST_SAVING = {"cpu": 50.0}
SHORTEST_ON_ACCELERATORS = 5.0


@dataclass(frozen=True, eq=False)
class Prefill:
    """The caches after one prefill without and with pruning.

    Attributes:
        full: bytes of the keys and values of each layer, and of all else, without pruning.
        pruned: bytes of each layer with pruning.
        lengths: keys of each layer with pruning; None for a layer that holds no keys.
        full_lengths: the same without pruning.
        expected: keys that each layer should hold with pruning.
        peaks: peak bytes on an accelerator, without and with pruning; None on a CPU.
    """

    full: list[tuple[int, int]]
    pruned: list[int]
    lengths: list[int | None]
    full_lengths: list[int | None]
    expected: list[int]
    peaks: tuple[int, int] | None


@torch.no_grad()
def measure_prefill(model: Any, pruner: Pruner, inputs: Inputs) -> Prefill:
    """Runs a prefill without and with pruning, and reads the caches."""
    peaks = []
    reset_peak_memory(model.device)
    full = find_cache(model(**inputs, logits_to_keep=1))
    peaks.append(peak_memory(model.device) or 0)
    full_bytes, full_lengths = layer_parts(full), layer_lengths(full)
    del full
    with pruning(model, pruner) as (pruned, recorder):
        reset_peak_memory(model.device)
        cache = find_cache(model(**inputs, logits_to_keep=1))
        peaks.append(peak_memory(model.device) or 0)
        kept = kept_by(pruned, cache, inputs, recorder)
    lengths = layer_lengths(cache)
    return Prefill(
        full_bytes,
        layer_bytes(cache),
        lengths,
        full_lengths,
        expected_lengths(model, inputs, kept, len(lengths)),
        None if model.device.type == "cpu" else (peaks[0], peaks[1]),
    )


def layer_bytes(cache: Any) -> list[int]:
    """Returns the bytes of each layer of a cache."""
    return [cache_bytes(type("Layers", (), {"layers": [layer]})) for layer in cache.layers]


def layer_parts(cache: Any) -> list[tuple[int, int]]:
    """Returns for each layer of a cache the bytes of keys and values, and of all else."""
    parts = []
    for layer, total in zip(cache.layers, layer_bytes(cache), strict=True):
        keys = (getattr(layer, name, None) for name in ("keys", "values"))
        size = sum(key.nbytes for key in keys if key is not None)
        parts.append((size, total - size))
    return parts


def layer_lengths(cache: Any) -> list[int | None]:
    """Returns the number of keys in each layer of a cache; None where there are none."""
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    return [None if key is None or key.ndim < 4 else key.shape[2] for key in keys]


def expected_lengths(model: Any, inputs: Inputs, kept: Kept, layers: int) -> list[int]:
    """Returns how many keys each layer should hold: those of the longest row."""
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    if kept.columns is not None:
        across = int(kept.columns.sum(1).max())
        crossing = set(model.config.get_text_config().cross_attention_layers)
        return [across if index in crossing else length for index in range(layers)]
    if not kept.stages:
        return [longest_row(kept.mask & real)] * layers
    expected = []
    for index in range(layers):
        seen = [stage.seen for stage in kept.stages if stage.first <= index]
        expected.append(longest_row(seen[-1] & real) if seen else length)
    return expected


def longest_row(mask: torch.Tensor) -> int:
    """Returns the largest number of true values in a row."""
    return int(mask.sum(1).max())


def cache_length(prefill: Prefill) -> Result:
    """Checks that each layer holds keys of the kept tokens alone.

    Raises:
        Inapplicable: no layer holds keys.
    """
    name = "cache length"
    rows = [
        (index, own, full, want)
        for index, (own, full, want) in enumerate(
            zip(prefill.lengths, prefill.full_lengths, prefill.expected, strict=True)
        )
        if own is not None and full is not None
    ]
    if not rows:
        raise Inapplicable("no layer of the cache holds keys")
    # A sliding-window layer holds its window at most.
    wrong = [index for index, own, full, want in rows if own != min(want, full)]
    shorter = [index for index, own, full, _ in rows if own < full]
    if wrong:
        index = wrong[0]
        detail = f"layer {index} holds {prefill.lengths[index]} keys, not {prefill.expected[index]}"
        return Result(name, Verdict.FAILED, detail)
    last, full = rows[-1][1], rows[-1][2]
    return holds(
        name,
        bool(shorter),
        f"{len(shorter)} of {len(rows)} layers hold fewer keys: {last} instead of {full} at last",
        "no layer holds fewer keys than without pruning",
    )


def memory(prefill: Prefill) -> Result:
    """Checks that the cache takes as many bytes as its share of keys says, and no more at peak."""
    allowed = 0
    for (keys, others), length, want in zip(
        prefill.full, prefill.full_lengths, prefill.expected, strict=True
    ):
        allowed += others + (keys * min(want, length) // length if length else keys)
    used, before = sum(prefill.pruned), sum(map(sum, prefill.full))
    detail = f"cache {before / 2**20:.2f} -> {used / 2**20:.2f} MiB ({used / before:.0%})"
    good = used <= allowed < before
    if prefill.peaks is not None:
        full_peak, pruned_peak = prefill.peaks
        detail += f", peak {full_peak / 2**20:.0f} -> {pruned_peak / 2**20:.0f} MiB"
        good = good and pruned_peak <= 1.01 * full_peak
    verdict = Verdict.PASSED if good else Verdict.FAILED
    return Result("memory", verdict, detail, float(used), float(allowed))


@torch.no_grad()
def prefill_time(model: Any, pruner: Pruner, inputs: Inputs, repeats: int = REPEATS) -> Result:
    """Checks that a pruned prefill is faster, and says by how much of the ideal.

    Ideally the language model's time shrinks as its multiply-adds do, and the selection takes none.

    Raises:
        Inapplicable: the ideal saving, or the measured one, is within the noise of the clock.
    """
    family = family_of(model)
    if family.cross_attention:
        raise Inapplicable("the multiply-adds of cross-attention are not counted")

    def full() -> Any:
        return model(**inputs, logits_to_keep=1)

    def pruned() -> Any:
        with pruner(model):
            return full()

    contenders = {
        "full": full,
        "pruned": pruned,
        "again": full,
        "encoder": lambda: family.encode(model, "image", dict(inputs)),
    }
    times = time_in_turn(contenders, repeats, model.device)
    middle = {name: statistics.median(values) for name, values in times.items()}
    low, _, high = statistics.quantiles(times["full"] + times["again"], n=4)
    noise = max(high - low, abs(middle["full"] - middle["again"]))
    share = ideal_share(model, pruner, inputs)
    return judge_times(middle, noise, share, model.device.type)


def judge_times(
    middle: dict[str, float], noise: float, share: float, device: str = "cpu"
) -> Result:
    """Returns the verdict on median times in milliseconds.

    Args:
        middle: of ``full``, ``pruned`` and ``encoder``.
        noise: difference of two runs that means nothing.
        share: of the language model's multiply-adds that pruning saves.
        device: type of the device.

    Raises:
        Inapplicable: the saving is within the noise, or there is too little to save.
    """
    full, pruned, encoder = middle["full"], middle["pruned"], middle["encoder"]
    ideal = max(share * (full - encoder), 0.0)
    saved = full - pruned
    times = (
        f"prefill {full:.1f} -> {pruned:.1f} ms, of which pruning can save {ideal:.1f} at best "
        f"(encoder {encoder:.1f} ms, noise {noise:.1f} ms)"
    )
    if saved > noise and ideal:
        detail = f"{times}: {saved / ideal:.0%} of the ideal"
        return Result("prefill", Verdict.PASSED, detail, pruned, full)
    if ideal < SHORTEST_SAVING.get(device, SHORTEST_ON_ACCELERATORS):
        raise Inapplicable(f"{times}: too little to pay for the selection")
    if saved >= -noise:
        raise Inapplicable(f"{times}: within the noise")
    return Result("prefill", Verdict.FAILED, f"{times}: it is slower", pruned, full)


@torch.no_grad()
def ideal_share(model: Any, pruner: Pruner, inputs: Inputs) -> float:
    """Returns the share of the language model's multiply-adds that pruning saves.

    Args:
        model: the model.
        pruner: the method.
        inputs: of a prompt of one row.
    """
    ids = inputs["input_ids"]
    visual = int((ids == family_of(model).token_id(model, "image")).sum())
    with pruner(model) as pruned:
        model(**inputs, logits_to_keep=1)
    by_layer = pruned.visual_by_layer
    kept = visual - pruned.dropped[0] if by_layer is None else by_layer[0]
    shape = LanguageModelShape.from_config(model.config)
    cost = saving(shape, visual, ids.shape[1] - visual, 1.0, kept_tokens=kept)
    return cost.flops_saved

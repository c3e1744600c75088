"""Times selection and prefill on this machine, side by side.

Everything that is compared is timed in turn in one run, so that drift of the machine affects all of
it alike; the results are medians and ratios.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gprune.budget import kept_count
from gprune.costs.clock import time_in_turn
from gprune.costs.flops import LanguageModelShape, Saving, saving
from gprune.pruners import GPrune, Pruner, group_methods, make
from gprune.tokens import VisualTokens

# A language model that a CPU can prefill in about a second: LLaVA-1.5's grid, a quarter of its
# width, six of its 32 layers.
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6}
HEADS, SIDE, TEXT_TOKENS = 16, 24, 64

# The vision tower only gives the model its grid: the benchmark starts from encoded features.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 14 * SIDE,
    "patch_size": 14,
}

# Least share of tokens that two forms must both select on an accelerator, where the order of
# summation decides near ties of scores.
MIN_AGREEMENT = 0.99

# Share of the tokens that the selection benchmark keeps.
KEEP = 0.36


def clustered_features(n: int, d: int, seed: int = 0) -> Tensor:
    """Returns features as redundant as an image's: noisy copies of n / 20 directions, [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 20), d, generator=generator)
    cluster = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[cluster] + 0.7 * torch.randn(n, d, generator=generator)


def with_signals(features: Tensor, grid: tuple[int, int] | None) -> VisualTokens:
    """Returns a group of features [n, d] with every signal that a method can read."""
    return VisualTokens(
        features,
        grid=grid,
        attention=features[:, 0].softmax(0),
        object_attention=features[:, -1].softmax(0),
        keys=features,
        text=features[:TEXT_TOKENS],
    )


def matrix_power_form(features: Tensor, pruner: GPrune) -> Tensor:
    """Selects with G-Prune's formula as written in the paper; returns ascending indices, [k].

    Computes the full similarity matrix in float32, its row softmax and a power of that matrix.
    """
    assert isinstance(pruner.keep, float | int)  # not a budget for each kind of group
    features = features.float()
    norms = features.norm(dim=-1)
    unit = features / norms[:, None]
    similarity = unit @ unit.T
    edge = similarity >= pruner.threshold
    logits = (similarity / pruner.temperature).masked_fill(~edge, -torch.inf)
    transition = torch.softmax(logits, -1)
    information = norms @ torch.matrix_power(transition, pruner.iterations)
    scores = information / edge.sum(-1)
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[: kept_count(len(features), pruner.keep)].sort().values


# Over 40 lines because of its nine documented arguments.
def selection_times(
    n: int,
    d: int,
    methods: Sequence[str] = tuple(group_methods()),
    repeats: int = 5,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    shared: float = 0.0,
    kernels: bool = False,
    after_call: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Times each method's selection beside a similarity product and G-Prune's matrix-power form.

    Args:
        n: number of tokens; they form a square raster if n is a square.
        d: width of the features.
        methods: names of the methods to time.
        repeats: timed rounds.
        device: the CPU by default.
        dtype: of the features and of the similarity product.
        shared: weight of a direction that is added to all tokens: 0 leaves most pairs without an
            edge, 2 gives nearly every pair an edge.
        kernels: also time G-Prune's Triton kernels, as ``gprune_triton``.
        after_call: called after each call, see `time_in_turn` and `selection_calls`.

    Returns:
        the arguments, median ``milliseconds`` by name, and the fields of `speed_ratios`.
        ``agreement`` is the share of a form's tokens that the matrix-power form selects too.

    Raises:
        RuntimeError: two forms of G-Prune select different tokens: any on a CPU, more than 1% on an
            accelerator, which sums products in another order.
        ValueError: the kernels do not run here.
    """
    device = device or torch.device("cpu")
    features, tokens = selection_input(n, d, device, dtype, shared)
    forms = {"gprune": GPrune(KEEP)}
    if kernels:
        forms["gprune_triton"] = GPrune(KEEP, backend="triton")
    agreement = check_agreement(forms, tokens)
    contenders = selection_contenders(features, tokens, methods, forms)
    times = time_in_turn(contenders, repeats, device, after_call)
    return {
        "n": n,
        "d": d,
        "dtype": str(dtype).removeprefix("torch."),
        "shared": shared,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        **speed_ratios(times),
        "agreement": agreement,
    }


def selection_calls(repeats: int, methods: Sequence[str] = tuple(group_methods())) -> int:
    """Returns how many calls `selection_times` makes, the warm-up round included."""
    return (repeats + 1) * (len(methods) + 2)  # the product and the matrix-power form


def selection_input(
    n: int, d: int, device: torch.device, dtype: torch.dtype, shared: float
) -> tuple[Tensor, VisualTokens]:
    """Returns features [n, d] and their group; see `selection_times` for the arguments."""
    features = clustered_features(n, d)
    features += shared * torch.randn(d, generator=torch.Generator().manual_seed(1))
    features = features.to(device, dtype)
    side = int(n**0.5)
    return features, with_signals(features, (side, n // side) if side * (n // side) == n else None)


def check_agreement(forms: dict[str, GPrune], tokens: VisualTokens) -> dict[str, float]:
    """Compares the selection of each form of G-Prune with that of the matrix-power form.

    Returns:
        the share of each form's tokens that the matrix-power form selects too.

    Raises:
        RuntimeError: a share is too small.
    """
    features = tokens.features
    minimum = 1 if features.device.type == "cpu" else MIN_AGREEMENT
    expected = matrix_power_form(features, forms["gprune"])
    agreement = {}
    for name, form in forms.items():
        agreement[name] = float(torch.isin(form.select(tokens), expected).float().mean())
        if agreement[name] < minimum:
            raise RuntimeError(
                f"{name} and matrix_power select different tokens at n = {len(features)}: they "
                f"share {agreement[name]:.1%}"
            )
    return agreement


def selection_contenders(
    features: Tensor, tokens: VisualTokens, methods: Sequence[str], forms: dict[str, GPrune]
) -> dict[str, Callable[[], Any]]:
    """Returns the calls that `selection_times` compares, by name."""
    contenders: dict[str, Callable[[], Any]] = {
        "product": lambda: features @ features.T,
        "matrix_power": lambda: matrix_power_form(features, forms["gprune"]),
    }
    for name in methods:
        contenders[name] = functools.partial(make(name, keep=KEEP).select, tokens)
    if "gprune_triton" in forms:
        contenders["gprune_triton"] = functools.partial(forms["gprune_triton"].select, tokens)
    return contenders


def speed_ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Returns medians of G-Prune's time relative to the calls that were timed in the same round.

    ``faster`` is the matrix-power form's time divided by G-Prune's; ``of_product`` is G-Prune's
    time divided by that of one similarity product.
    """
    ratios = {}
    for name in ("matrix_power", "product"):
        pairs = zip(times[name], times["gprune"], strict=True)
        ratios[name] = statistics.median(other / gprune for other, gprune in pairs)
    return {"faster": ratios["matrix_power"], "of_product": 1 / ratios["product"]}


def random_model(
    device: torch.device,
    dtype: torch.dtype,
    text: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
) -> Any:
    """Builds a LLaVA with random weights.

    Args:
        device: where the weights are created.
        dtype: of the weights.
        text: sizes of the language model, as in `LlamaConfig`; `SHAPE` by default.
        vision: sizes of the vision tower, as in `CLIPVisionConfig`; `VISION` by default.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, **(text or SHAPE)}
    language = LlamaConfig(**sizes, vocab_size=1000, max_position_embeddings=8192)
    tower = CLIPVisionConfig(**(vision or VISION))
    config = LlavaConfig(vision_config=tower, text_config=language, image_token_id=999)
    torch.manual_seed(0)
    with torch.device(device):
        # Created on the device: a model of 7 B parameters may not fit in the host's memory.
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(default)


class PrefillBenchmark:
    """One prompt of a LLaVA with random weights: an image of `SIDE` x `SIDE` tokens, and text.

    The prefill starts from encoded features; the vision encoder is not run.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.model = device, random_model(device, dtype)
        self.shape = LanguageModelShape.from_config(self.model.config)
        n = SIDE * SIDE
        self.features = clustered_features(n, SHAPE["hidden_size"]).to(device, dtype)
        self.tokens = VisualTokens(
            self.features, grid=(SIDE, SIDE), text=self.features[:TEXT_TOKENS]
        )
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 900, (1, n + TEXT_TOKENS), generator=generator)
        ids[:, 8 : 8 + n] = self.model.config.image_token_id
        self.ids = ids.to(device)

    def prefill(self) -> Any:
        """Runs the language model on the prompt."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return self.model(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[self.features])},
            logits_to_keep=1,
        )

    def pruned_prefill(self, pruner: Pruner) -> Any:
        """Runs the pruned prefill, including adding and removing the hooks."""
        with pruner(self.model):
            return self.prefill()

    def row(self, method: str, keep: float, repeats: int) -> dict[str, Any]:
        """Times one budget; see `prefill_rows` for the fields."""
        pruner = make(method, keep=keep)
        contenders: dict[str, Callable[[], Any]] = {
            "full": self.prefill,
            "pruned": functools.partial(self.pruned_prefill, pruner),
        }
        if pruner.scope == "group":
            contenders["method"] = functools.partial(pruner.select, self.tokens)
        times = time_in_turn(contenders, repeats, self.device)
        rounds = [
            dict(zip(times, values, strict=True)) for values in zip(*times.values(), strict=True)
        ]
        rounds.sort(key=lambda one: one["full"] / one["pruned"])
        median = rounds[(repeats - 1) // 2]
        cost = self.cost(pruner, keep)
        return {
            "keep": keep,
            "full_ms": median["full"],
            "pruned_ms": median["pruned"],
            "method_ms": median.get("method"),
            "speedup": median["full"] / median["pruned"],
            "ideal": cost.flops_full / cost.flops_pruned,
            "kv_bytes_full": cost.kv_bytes_full,
            "kv_bytes_pruned": cost.kv_bytes_pruned,
        }

    def cost(self, pruner: Pruner, keep: float) -> Saving:
        """Counts the prefill cost with the numbers of tokens that the pruner really keeps."""
        with pruner(self.model) as pruned:
            self.prefill()
        by_layer = None if pruned.visual_by_layer is None else pruned.visual_by_layer[0]
        return saving(self.shape, SIDE * SIDE, TEXT_TOKENS, keep, kept_tokens=by_layer)


@torch.inference_mode()
def prefill_rows(
    keeps: Sequence[float] = (1.0, 0.5, 0.36, 0.25, 0.1),
    method: str = "gprune",
    repeats: int = 3,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    after_row: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Times the language model's prefill with and without pruning, starting from encoded features.

    Args:
        keeps: the budgets.
        method: name of the method.
        repeats: timed rounds.
        device: the CPU by default.
        dtype: of the model.
        after_row: called after each row.

    Returns:
        one row for each budget, with the times of one round: the one whose speedup is the median.
        ``pruned_ms`` includes selection and the hooks. ``method_ms`` is
        the selection alone, None if the method does not choose within one group of visual tokens.
        ``ideal`` is the ratio of multiply-adds (convention ``exact``): the speedup of a
        machine whose multiply-adds per second do not depend on the length of the prompt.

    Raises:
        ValueError: the method reads signals of the vision encoder, which is not run.
    """
    signals = [signal for signal in make(method, keep=1.0).signals if signal != "text"]
    if signals:
        raise ValueError(
            f"method={method!r} reads {' and '.join(signals)} of a vision encoder, which the "
            "prefill benchmark does not run; choose a method that reads only features or text"
        )
    benchmark = PrefillBenchmark(device or torch.device("cpu"), dtype)
    rows = []
    for keep in keeps:
        rows.append(benchmark.row(method, keep, repeats))
        after_row()
    return rows

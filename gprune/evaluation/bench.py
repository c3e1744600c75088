"""How long selection and prefill take on this machine, measured side by side.

Everything that is compared is timed in turn in one run, so that the machine's drift hits all alike,
and what is reported are medians and ratios.
"""

from __future__ import annotations

import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gprune.budget import kept_count
from gprune.costs.flops import LanguageModelShape, saving
from gprune.costs.prefill import synchronize
from gprune.pruners import GPrune, group_methods, make
from gprune.tokens import VisualTokens

# A language model that a CPU can prefill in about a second: LLaVA-1.5's grid, a quarter of its
# width, six of its 32 layers.
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6}
HEADS, SIDE, TEXT_TOKENS = 16, 24, 64
# Least share of tokens that two forms have in common on an accelerator, where near ties of scores
# are decided by the order of summation.
ALIKE = 0.99


def machine(device: torch.device | None = None) -> str:
    """The processor's name, what torch uses of it, and torch's version."""
    if device is not None and device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def clustered(n: int, d: int, seed: int = 0) -> Tensor:
    """Features with the redundancy of an image: noisy copies of n / 20 directions, [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 20), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[which] + 0.7 * torch.randn(n, d, generator=generator)


def with_signals(features: Tensor, grid: tuple[int, int] | None) -> VisualTokens:
    """A group of these features [n, d], with everything that a method may read."""
    return VisualTokens(
        features,
        grid=grid,
        attention=features[:, 0].softmax(0),
        object_attention=features[:, -1].softmax(0),
        keys=features,
        text=features[:TEXT_TOKENS],
    )


def matrix_power_form(features: Tensor, pruner: GPrune) -> Tensor:
    """G-Prune written the direct way: the indices that it keeps, ascending.

    A full similarity product in float32, a row softmax over an n-by-n matrix, and a power of that
    matrix.
    """
    assert isinstance(pruner.keep, float | int)  # a single budget
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


def in_turn(
    contenders: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of each contender, run one after another ``repeats`` times after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if repeat:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def selection_times(
    n: int,
    d: int,
    methods: Sequence[str] = tuple(group_methods()),
    repeats: int = 5,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    shared: float = 0.0,
    kernels: bool = False,
) -> dict[str, Any]:
    """Every method's selection beside one similarity product and G-Prune's matrix-power form.

    Args:
        n: tokens; a square raster where n is a square.
        d: width of the features.
        methods: what to time.
        repeats: counted runs of each.
        device: the CPU by default.
        dtype: of the features, and of the similarity product beside.
        shared: weight of a direction that all tokens have in common: 0 leaves most pairs without
            an edge, 2 gives nearly every pair one.
        kernels: whether G-Prune is timed with its Triton kernels too, as ``gprune_triton``.

    Returns:
        medians in milliseconds, and medians of G-Prune's ratios to what was timed in turn with it:
        ``faster`` than the matrix-power form, and its time in units ``of_product``.

        ``agreement`` is the share of its tokens that the matrix-power form keeps too.

    Raises:
        RuntimeError: two forms of G-Prune select different tokens; on an accelerator, whose sums of
            products differ, more than a few.
        ValueError: the kernels do not run here.
    """
    place = device or torch.device("cpu")
    features = clustered(n, d)
    features += shared * torch.randn(d, generator=torch.Generator().manual_seed(1))
    features = features.to(place, dtype)
    side = int(n**0.5)
    tokens = with_signals(features, (side, n // side) if side * (n // side) == n else None)
    pruner = GPrune(0.36)
    chosen = matrix_power_form(features, pruner)
    forms = {"gprune": pruner}
    if kernels:
        forms["gprune_triton"] = GPrune(0.36, backend="triton")
    agreement = {}
    for name, form in forms.items():
        agreement[name] = float(torch.isin(form.select(tokens), chosen).float().mean())
        if agreement[name] < (1 if place.type == "cpu" else ALIKE):
            raise RuntimeError(
                f"{name} and matrix_power select different tokens at n = {n}: of those that one "
                f"keeps the other has {agreement[name]:.1%}"
            )
    contenders: dict[str, Callable[[], Any]] = {
        "product": lambda: features @ features.T,
        "matrix_power": lambda: matrix_power_form(features, pruner),
    }
    for name in methods:
        contenders[name] = functools.partial(make(name, keep=0.36).select, tokens)
    if kernels:
        contenders["gprune_triton"] = functools.partial(forms["gprune_triton"].select, tokens)
    times = in_turn(contenders, repeats, place)
    ratios = {}
    for name in ("matrix_power", "product"):
        pairs = zip(times[name], times["gprune"], strict=True)
        ratios[name] = statistics.median(slow / fast for slow, fast in pairs)
    return {
        "n": n,
        "d": d,
        "dtype": str(dtype).removeprefix("torch."),
        "shared": shared,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "faster": ratios["matrix_power"],
        "of_product": 1 / ratios["product"],
        "agreement": agreement,
    }


# A vision tower that only gives the model its grid: what is timed here comes after it.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 14 * SIDE,
    "patch_size": 14,
}


def random_model(
    device: torch.device,
    dtype: torch.dtype,
    text: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
) -> Any:
    """A LLaVA with random weights.

    Args:
        text: sizes of the language model (a `LlamaConfig`'s), by default `SHAPE`.
        vision: sizes of the vision tower (a `CLIPVisionConfig`'s), by default `VISION`.
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
        # Made where it will be: a model of 7 B parameters need not fit in the host's memory.
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(default)


@torch.inference_mode()
def prefill_rows(
    keeps: Sequence[float] = (1.0, 0.5, 0.36, 0.25, 0.1),
    method: str = "gprune",
    repeats: int = 3,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:
    """The language model's prefill with and without pruning, encoded features given.

    The pruned time includes selection and everything the hook does; ``method_ms`` is the selection
    alone, None where it happens elsewhere. ``ideal`` is the ratio of the multiply-adds (convention
    ``exact``), which a machine reaches whose speed does not depend on the length of the prompt.

    Raises:
        ValueError: the method reads the vision encoder, which is not run.
    """
    reads = [signal for signal in make(method, keep=1.0).signals if signal != "text"]
    if reads:
        raise ValueError(
            f"method={method!r} reads {' and '.join(reads)} of a vision encoder, which the prefill "
            "benchmark does not run; take a method of features or text alone"
        )
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    place = device or torch.device("cpu")
    model = random_model(place, dtype)
    n = SIDE * SIDE
    features = clustered(n, SHAPE["hidden_size"]).to(place, dtype)
    ids = torch.randint(3, 900, (1, n + TEXT_TOKENS), generator=torch.Generator().manual_seed(0))
    ids[:, 8 : 8 + n] = model.config.image_token_id
    ids = ids.to(place)

    def prefill() -> Any:
        output = BaseModelOutputWithPooling(pooler_output=[features])
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs={"image": output},
            logits_to_keep=1,
        )

    shape = LanguageModelShape.from_config(model.config)
    tokens = VisualTokens(features, grid=(SIDE, SIDE), text=features[:TEXT_TOKENS])
    rows = []
    for keep in keeps:
        pruner = make(method, keep=keep)

        def pruned(pruner: Any = pruner) -> Any:
            with pruner(model):
                return prefill()

        contenders: dict[str, Callable[[], Any]] = {
            "full": prefill,
            "pruned": pruned,
        }
        if pruner.scope == "group":
            contenders["method"] = functools.partial(pruner.select, tokens)
        times = in_turn(contenders, repeats, place)
        medians = {name: statistics.median(values) for name, values in times.items()}
        with pruner(model) as state:
            prefill()
        by_layer = None if state.visual_by_layer is None else state.visual_by_layer[0]
        cost = saving(shape, n, TEXT_TOKENS, keep, kept_tokens=by_layer)
        ratios = [a / b for a, b in zip(times["full"], times["pruned"], strict=True)]
        rows.append(
            {
                "keep": keep,
                "full_ms": medians["full"],
                "pruned_ms": medians["pruned"],
                "method_ms": medians.get("method"),
                "speedup": statistics.median(ratios),
                "ideal": cost.flops_full / cost.flops_pruned,
                "kv_bytes_full": cost.kv_bytes_full,
                "kv_bytes_pruned": cost.kv_bytes_pruned,
            }
        )
    return rows

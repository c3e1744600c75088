"""Prefill and time to first token for several budgets: python benchmarks/prefill.py

The model is a LLaVA with random weights, so nothing is downloaded; the cost of a prefill does not
depend on the values of the weights. The ideal is the machine's roofline: the larger of the language
model's multiply-adds divided by the rate of a large matrix product, and the bytes of its weights
divided by the read bandwidth, both measured here. Everything is timed in turn in one run.
"""

from __future__ import annotations

import ctypes
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gprune import Pruner, VisualTokens, kept_count, make
from gprune.costs.clock import machine_name, synchronize, time_in_turn
from gprune.costs.flops import LanguageModelShape, exact
from gprune.evaluation.bench import clustered_features, random_model

KEEPS = (1.0, 0.5, 0.36, 0.25, 0.1)
SIDE, TEXT_TOKENS = 24, 64
IMAGE = {"image_size": 14 * SIDE, "patch_size": 14}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    **IMAGE,
}


def language(d: int, m: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    """Returns the sizes of a language model, as arguments of `LlamaConfig`."""
    return {
        "hidden_size": d,
        "intermediate_size": m,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# Sizes of the language model, sizes of the vision tower, and images (or tiles) of 576 tokens in a
# prompt. LLaVA-NeXT's and Qwen2.5-VL's language models are combined with LLaVA-1.5's tower.
SHAPES: dict[str, tuple[dict[str, int], dict[str, int], int]] = {
    "cpu": (
        language(1024, 2816, 6, 16, 16),
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            **IMAGE,
        },
        1,
    ),
    "llava-1.5-7b": (language(4096, 11008, 32, 32, 32), CLIP_LARGE, 1),
    "llava-next-8b": (language(4096, 14336, 32, 32, 8), CLIP_LARGE, 5),
    "qwen2.5-vl-7b": (language(3584, 18944, 28, 28, 4), CLIP_LARGE, 2),
}


def matrix_rate(shape: LanguageModelShape, device: torch.device, dtype: torch.dtype) -> float:
    """Measures multiply-adds per second of a product with the model's widest matrix."""
    d, m = shape.hidden_size, shape.intermediate_size
    left = torch.randn(2048, d, device=device, dtype=dtype)
    right = torch.randn(m, d, device=device, dtype=dtype)
    times = time_in_turn({"product": lambda: torch.nn.functional.linear(left, right)}, 9, device)
    return 2048 * d * m / min(times["product"]) * 1000


def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Measures bytes per second for one token times matrices that do not fit in a cache."""
    layers = [torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(8)]
    token = torch.randn(1, 4096, device=device, dtype=dtype)

    def read() -> None:
        for weight in layers:
            torch.nn.functional.linear(token, weight)

    size = sum(weight.nbytes for weight in layers)
    return size / min(time_in_turn({"read": read}, 9, device)["read"]) * 1000


def roofline_ms(
    shape: LanguageModelShape, n: int, batch: int, rate: float, read: float, width: int
) -> float:
    """Returns the least time of a prefill, in milliseconds.

    Args:
        shape: sizes of the language model.
        n: tokens of each prompt.
        batch: number of prompts.
        rate: multiply-adds per second.
        read: bytes read per second.
        width: bytes of a weight.
    """
    weights = exact(shape, 1) * width
    return 1000 * max(batch * exact(shape, n) / rate, weights / read)


def cache_bytes(output: Any) -> int:
    """Returns the bytes of the KV cache in a prefill's output."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Returns the peak memory of a call minus the memory in use before it; None if unknown."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide the peak
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Reads a size of this process from ``/proc/self/status``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


class Prompts:
    """A batch of prompts of equal length: text, the images, text."""

    def __init__(
        self, model: Any, batch: int, images: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.batch, self.images = model, batch, images
        n = SIDE * SIDE
        width = model.config.text_config.hidden_size
        self.features = [
            clustered_features(n, width, seed).to(device, dtype) for seed in range(batch * images)
        ]
        length = images * n + TEXT_TOKENS
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 900, (batch, length), generator=generator)
        ids[:, 8 : 8 + images * n] = model.config.image_token_id
        self.ids = ids.to(device)
        self.pixels = torch.randn(batch * images, 3, 14 * SIDE, 14 * SIDE, generator=generator)
        self.pixels = self.pixels.to(device, dtype)

    def prefill(self, pruner: Pruner | None = None) -> Any:
        """Runs the language model's prefill, starting from encoded features."""
        encoded = BaseModelOutputWithPooling(pooler_output=self.features)
        return self._call(self.ids, pruner, mm_encoder_outputs={"image": encoded})

    def first_token(self, pruner: Pruner | None = None) -> Any:
        """Runs the prefill starting from pixels."""
        return self._call(self.ids, pruner, pixel_values=self.pixels)

    def text_only(self, length: int) -> Any:
        """Runs the language model on ``length`` text tokens, without images and hooks."""
        return self._call(self.ids[:, :1].expand(-1, length).clamp(max=900), None)

    def vision(self) -> Any:
        """Encodes and projects the images."""
        return self.model.get_image_features(self.pixels)

    def select(self, pruner: Pruner) -> list[Tensor]:
        """Runs the selection alone, for every image."""
        return [pruner.select(VisualTokens(x, grid=(SIDE, SIDE))) for x in self.features]

    def _call(self, ids: Tensor, pruner: Pruner | None, **images: Any) -> Any:
        call = functools.partial(
            self.model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_to_keep=1,
            **images,
        )
        if pruner is None:
            return call()
        with pruner(self.model):
            return call()


class Comparison:
    """The prefill of a batch with one method, timed in turn at every budget.

    Args:
        prompts: the batch.
        method: name of the method.
        repeats: timed rounds.
        device: the device that runs the model.
        ideal: gives the roofline's milliseconds for the length of a prompt.
    """

    def __init__(
        self,
        prompts: Prompts,
        method: str,
        repeats: int,
        device: torch.device,
        ideal: Callable[[int], float],
    ) -> None:
        self.prompts, self.device, self.ideal = prompts, device, ideal
        self.pruners = {keep: make(method, keep=keep) for keep in KEEPS}
        self.lengths = {
            keep: prompts.images * kept_count(SIDE * SIDE, keep) + TEXT_TOKENS for keep in KEEPS
        }
        self.times = time_in_turn(self.contenders(), repeats, device)

    def contenders(self) -> dict[str, Callable[[], Any]]:
        """Returns the calls to time, by name; those of a budget end with it."""
        prompts = self.prompts
        contenders: dict[str, Callable[[], Any]] = {
            "full": prompts.prefill,
            "first": prompts.first_token,
            "vision": prompts.vision,
        }
        for keep, pruner in self.pruners.items():
            contenders[f"pruned {keep}"] = functools.partial(prompts.prefill, pruner)
            contenders[f"short {keep}"] = functools.partial(prompts.text_only, self.lengths[keep])
            contenders[f"method {keep}"] = functools.partial(prompts.select, pruner)
            contenders[f"first {keep}"] = functools.partial(prompts.first_token, pruner)
        return contenders

    def median(self, name: str) -> float:
        """Returns the median of a call's milliseconds."""
        return statistics.median(self.times[name])

    def speedup(self, slow: str, fast: str, excluded: str | None = None) -> float:
        """Returns the median of the rounds' ratios; ``excluded`` is subtracted from ``fast``."""
        subtracted = self.times[excluded] if excluded else [0.0] * len(self.times[fast])
        rounds = zip(self.times[slow], self.times[fast], subtracted, strict=True)
        return statistics.median(a / (b - c) for a, b, c in rounds)

    def row(self, keep: float) -> dict[str, Any]:
        """Returns the numbers of one budget."""
        prefill = functools.partial(self.prompts.prefill, self.pruners[keep])
        kv_bytes = cache_bytes(prefill())
        ideal = self.ideal(self.lengths[1.0]) / self.ideal(self.lengths[keep])
        # The method also runs at keep=1; the language model's own speedup excludes it.
        speedup = self.speedup("full", f"pruned {keep}", f"method {keep}")
        return {
            "batch": self.prompts.batch,
            "keep": keep,
            "tokens": self.lengths[keep],
            "vision_ms": self.median("vision"),
            "full_ms": self.median("full"),
            "pruned_ms": self.median(f"pruned {keep}"),
            "short_ms": self.median(f"short {keep}"),
            "method_ms": self.median(f"method {keep}"),
            "first_ms": self.median(f"first {keep}"),
            "first_full_ms": self.median("first"),
            "ideal_ms": self.ideal(self.lengths[keep]),
            "ideal": ideal,
            "speedup": speedup,
            "of_ideal": speedup / ideal,
            "speedup_with_method": self.speedup("full", f"pruned {keep}"),
            "speedup_without_hook": self.speedup("full", f"short {keep}"),
            "first_speedup": self.speedup("first", f"first {keep}"),
            "kv_bytes": kv_bytes,
            "peak_bytes": peak_bytes(prefill, self.device),
        }


@torch.inference_mode()
def measure(
    name: str,
    batches: list[int],
    method: str,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Measures every batch size and budget of one shape."""
    text, vision, images = SHAPES[name]
    model = random_model(device, dtype, text, vision)
    shape = LanguageModelShape.from_config(model.config)
    rate, read = matrix_rate(shape, device, dtype), bandwidth(device, dtype)
    rows: list[dict[str, Any]] = []
    for batch in batches:
        prompts = Prompts(model, batch, images, device, dtype)

        def ideal(length: int, batch: int = batch) -> float:
            return roofline_ms(shape, length, batch, rate, read, dtype.itemsize)

        comparison = Comparison(prompts, method, repeats, device, ideal)
        rows += [comparison.row(keep) for keep in KEEPS]
    return {
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
        "method": method,
        "multiply_adds_per_second": rate,
        "bytes_per_second": read,
        "rows": rows,
    }


def print_table(result: dict[str, Any], device: torch.device) -> None:
    """Prints the rows of one shape."""
    table = Table(
        *("batch", "keep", "tokens", "full, ms", "pruned, ms", "method", "vision", "speedup"),
        *("ideal", "of ideal", "first token", "KV, MB", "peak, MB"),
        title=f"{result['shape']}, {result['dtype']}, {machine_name(device)}",
    )
    for row in result["rows"]:
        peak = row["peak_bytes"]
        table.add_row(
            *(str(row["batch"]), str(row["keep"]), str(row["tokens"])),
            *(f"{row[f'{key}_ms']:.0f}" for key in ("full", "pruned", "method", "vision")),
            *(f"{row[key]:.2f}" for key in ("speedup", "ideal", "of_ideal", "first_speedup")),
            f"{row['kv_bytes'] / 1e6:.1f}",
            "" if peak is None else f"{peak / 1e6:.0f}",
        )
    Console(width=max(130, Console().width)).print(table)


def main(
    shape: Annotated[str, typer.Option(help=f"One or more of {', '.join(SHAPES)}.")] = "",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8",
    method: Annotated[str, typer.Option(help="See gprune methods.")] = "gprune",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Time prefill with and without pruning: the 7 B shapes on a GPU, otherwise the CPU's shape."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = shape.split(",") if shape else [*SHAPES][1:] if device.type == "cuda" else ["cpu"]
    start = time.perf_counter()
    results = [
        measure(
            *(name, [int(batch) for batch in batches.split(",")], method, repeats),
            *(device, getattr(torch, dtype)),
        )
        for name in names
    ]
    synchronize(device)
    seconds = time.perf_counter() - start
    for result in results:
        print_table(result, device)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine_name(device), "seconds": seconds, "shapes": results}
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

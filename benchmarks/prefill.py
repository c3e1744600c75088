"""Prefill and time to first token against keep: python benchmarks/prefill.py

A LLaVA with random weights, so that nothing needs to be downloaded; what a prefill costs does not
depend on what the weights are. The ideal is the machine's own roofline: the larger of the
language model's FLOPs over the rate of a large matrix product, and the bytes of its weights over
the rate at which they can be read, both measured here. Everything is timed in turn in one run.
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
from gprune.costs.flops import LanguageModelShape, exact
from gprune.costs.prefill import synchronize
from gprune.evaluation.bench import clustered, in_turn, machine, random_model

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
    """The sizes of a `LlamaConfig`."""
    return {
        "hidden_size": d,
        "intermediate_size": m,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# The language model's sizes, the vision tower's, and how many pictures (or tiles) of 576 tokens a
# prompt has. Those of LLaVA-NeXT and Qwen2.5-VL have that language model behind LLaVA-1.5's tower.
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
    """Multiply-adds a second of a product with the model's widest matrix."""
    d, m = shape.hidden_size, shape.intermediate_size
    left = torch.randn(2048, d, device=device, dtype=dtype)
    right = torch.randn(m, d, device=device, dtype=dtype)
    times = in_turn({"product": lambda: torch.nn.functional.linear(left, right)}, 9, device)
    return 2048 * d * m / min(times["product"]) * 1000


def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second at which one token reads matrices that no cache holds."""
    layers = [torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(8)]
    token = torch.randn(1, 4096, device=device, dtype=dtype)

    def read() -> None:
        for weight in layers:
            torch.nn.functional.linear(token, weight)

    size = sum(weight.nbytes for weight in layers)
    return size / min(in_turn({"read": read}, 9, device)["read"]) * 1000


def roofline_ms(
    shape: LanguageModelShape, n: int, batch: int, rate: float, read: float, width: int
) -> float:
    """The least time of a prefill of ``batch`` prompts of ``n`` tokens, in milliseconds."""
    weights = exact(shape, 1) * width
    return 1000 * max(batch * exact(shape, n) / rate, weights / read)


def cache_bytes(output: Any) -> int:
    """Bytes of the keys and values that a prefill left behind."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Peak memory of a call beyond what was held before it; None where it cannot be measured."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is needed now
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A size in bytes from Linux's status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


class Prompts:
    """A batch of equal prompts: some text, the images, the rest of the text."""

    def __init__(
        self, model: Any, batch: int, images: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.batch, self.images = model, batch, images
        n = SIDE * SIDE
        width = model.config.text_config.hidden_size
        self.features = [clustered(n, width, i).to(device, dtype) for i in range(batch * images)]
        length = images * n + TEXT_TOKENS
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 900, (batch, length), generator=generator)
        ids[:, 8 : 8 + images * n] = model.config.image_token_id
        self.ids = ids.to(device)
        self.pixels = torch.randn(batch * images, 3, 14 * SIDE, 14 * SIDE, generator=generator)
        self.pixels = self.pixels.to(device, dtype)

    def prefill(self, pruner: Pruner | None = None) -> Any:
        """The language model's prefill, encoded features given."""
        encoded = BaseModelOutputWithPooling(pooler_output=self.features)
        return self._call(self.ids, pruner, mm_encoder_outputs={"image": encoded})

    def first_token(self, pruner: Pruner | None = None) -> Any:
        """The same from the pixels on."""
        return self._call(self.ids, pruner, pixel_values=self.pixels)

    def text_alone(self, length: int) -> Any:
        """A prompt of ``length`` text tokens: what the language model takes without any image."""
        return self._call(self.ids[:, :1].expand(-1, length).clamp(max=900), None)

    def vision(self) -> Any:
        return self.model.get_image_features(self.pixels)

    def select(self, pruner: Pruner) -> list[Tensor]:
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


def rows_of(
    prompts: Prompts, method: str, repeats: int, device: torch.device, ideal: Callable[[int], float]
) -> list[dict[str, Any]]:
    """One row for each keep; ``ideal`` gives the roofline's milliseconds for a prompt's length."""
    n = SIDE * SIDE
    pruners = {keep: make(method, keep=keep) for keep in KEEPS}
    lengths = {
        keep: prompts.images * kept_count(n, pruner.keep) + TEXT_TOKENS  # type: ignore[arg-type]
        for keep, pruner in pruners.items()
    }
    contenders: dict[str, Callable[[], Any]] = {
        "full": prompts.prefill,
        "first": prompts.first_token,
        "vision": prompts.vision,
    }
    for keep, pruner in pruners.items():
        contenders[f"pruned {keep}"] = functools.partial(prompts.prefill, pruner)
        contenders[f"short {keep}"] = functools.partial(prompts.text_alone, lengths[keep])
        contenders[f"method {keep}"] = functools.partial(prompts.select, pruner)
        contenders[f"first {keep}"] = functools.partial(prompts.first_token, pruner)
    times = in_turn(contenders, repeats, device)

    def ratio(slow: str, fast: str, less: str | None = None) -> float:
        """Median over the repeats; ``less`` is taken off the faster."""
        off = times[less] if less else [0.0] * repeats
        return statistics.median(
            a / (b - c) for a, b, c in zip(times[slow], times[fast], off, strict=True)
        )

    rows = []
    for keep, pruner in pruners.items():
        output = prompts.prefill(pruner)
        faster = ideal(lengths[1.0]) / ideal(lengths[keep])
        # At keep 1 too the method is run; the language model's own time leaves it out.
        speedup = ratio("full", f"pruned {keep}", f"method {keep}")
        medians = {
            name: statistics.median(times[f"{name} {keep}"])
            for name in ("pruned", "short", "method", "first")
        }
        rows.append(
            {
                "batch": prompts.batch,
                "keep": keep,
                "tokens": lengths[keep],
                "vision_ms": statistics.median(times["vision"]),
                "full_ms": statistics.median(times["full"]),
                **{f"{name}_ms": value for name, value in medians.items()},
                "first_full_ms": statistics.median(times["first"]),
                "ideal_ms": ideal(lengths[keep]),
                "ideal": faster,
                "speedup": speedup,
                "of_ideal": speedup / faster,
                "speedup_with_method": ratio("full", f"pruned {keep}"),
                "speedup_without_hook": ratio("full", f"short {keep}"),
                "first_speedup": ratio("first", f"first {keep}"),
                "kv_bytes": cache_bytes(output),
                "peak_bytes": peak_bytes(functools.partial(prompts.prefill, pruner), device),
            }
        )
    return rows


@torch.inference_mode()
def measure(
    name: str,
    batches: list[int],
    method: str,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Every batch and keep of one shape."""
    text, vision, images = SHAPES[name]
    model = random_model(device, dtype, text, vision)
    shape = LanguageModelShape.from_config(model.config)
    rate, read = matrix_rate(shape, device, dtype), bandwidth(device, dtype)
    rows: list[dict[str, Any]] = []
    for batch in batches:
        prompts = Prompts(model, batch, images, device, dtype)

        def ideal(length: int, batch: int = batch) -> float:
            return roofline_ms(shape, length, batch, rate, read, dtype.itemsize)

        rows += rows_of(prompts, method, repeats, device, ideal)
    return {
        "shape": name,
        "dtype": str(dtype).removeprefix("torch."),
        "method": method,
        "multiply_adds_per_second": rate,
        "bytes_per_second": read,
        "rows": rows,
    }


def main(
    shape: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}, or several.")] = "",
    batches: Annotated[str, typer.Option(help="Prompts at a time.")] = "1,8",
    method: Annotated[str, typer.Option(help="See gprune methods.")] = "gprune",
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 3,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Time prefill with and without pruning: the 7 B shapes on a GPU, else the one for a CPU."""
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
    console = Console(width=max(130, Console().width))
    for result in results:
        table = Table(
            *("batch", "keep", "tokens", "full, ms", "pruned, ms", "method", "vision", "faster"),
            *("ideal", "of ideal", "first token", "KV, MB", "peak, MB"),
            title=f"{result['shape']}, {result['dtype']}, {machine(device)}",
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
        console.print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine(device), "seconds": seconds, "shapes": results}
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

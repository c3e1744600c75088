"""Writes docs/performance.md from benchmarks/results: python benchmarks/performance.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
DOCS = Path("docs")
IMAGES = DOCS / "images"

Row = dict[str, Any]

INTRODUCTION = """# What selection and prefill cost

Written by `make performance` from the files in `benchmarks/results/`; the command that measured a
table stands under it. What is compared was timed in turn in one run; ratios are medians of ratios
of neighbouring runs, so they hold on a busy machine too, and milliseconds belong to the machine
that is named. `make bench-check` measures some of them anew and fails where a ratio has got much
worse.
"""

SELECTION = """## Selection

`X @ X.T` is one product of the features with themselves, in their own dtype: the floor of a method
that looks at every pair. The matrix-power form is the same method written the direct way (full
float32 product, softmax over an n-by-n matrix, a power of that matrix); all keep the same tokens.

- **screened**: a CPU with bfloat16 units (AVX512-BF16) computes the product in bfloat16 first,
  whose error has a bound, and in float32 only where that cannot exclude an edge. The tokens kept
  are those of float32, and are so on a machine without such units, which computes one triangle of
  the float32 product (**unscreened**; slower, but the same). Features in float32 are not copied for
  that: a cosine is the product of two tokens as they are, divided by their lengths.
- **shared**: how much all tokens have in common. At 0 most pairs have no edge. At 2 nearly all
  have one, so a screen would exclude nothing: a few rows tell, and it is left out.
"""

# Files of results, and what the machine is that they come from.
MACHINES = {
    "selection": """### With bfloat16 units

Measured before features were compared as they are and edges listed where there are few, which took
away work and nothing else; no such machine was at hand since.""",
    "selection_avx2": "### Without",
    "gpu/selection": "### On a GPU",
}

TRIED = """What was tried and left out, on a CPU with torch 2.13:

- A product of bfloat16 features with a float32 result would be exact enough by itself, but
  `torch.mm(..., out_dtype=)` is for CUDA alone, and oneDNN's `fp32_precision = "bf16"`, which gives
  one, takes twice as long as a bfloat16 product. Such features are screened as they are, without a
  copy at unit length, by a bound for each pair.
- A triangle halved again and again in place of strips of rows, strips of other heights, and tiles
  of 32 rows: within 3% of what is there.
- Features split into two bfloat16 parts take three such products: no less than one triangle of the
  float32 product.
- An int8 screen (`torch._int_mm`) is twice as fast as one in bfloat16. Its bound is more than twice
  as wide on well-behaved features, and excludes nothing where a few channels are much larger than
  the rest, as they often are in language models.

### What runs on a GPU

The dense form, in few large launches, and nothing that makes the host wait
(`tests/accelerator`). `GPrune(keep, backend="triton")` has kernels of our own instead
(`gprune.graph.triton`): 16-bit products on tensor cores, the n-by-n weights written once and only
where there are edges, all images of a batch in one launch sequence, nothing read back by the host.
`make test-triton` shows on a CPU that they keep the same tokens, in Triton's interpreter, and that
they compile for an A100 and an H100; until a GPU has shown that they are faster they are not the
default. **While no table here is of a GPU, none was at hand.** Where one is, `make gpu` compares
every method, the kernels and pruned prefills with the CPU's results, measures selection, long
videos and the prefill of models of 7 and 8 billion random parameters, and adds them to this
page."""

LONG = """## Long videos

Past 8,192 tokens only SCOPE and VisPruner hold an n-by-n matrix. G-Prune holds the edges where
there are few, else tiles of them, at most 1.25 GiB in all, and computes the other tiles anew at
every step, as the last rows show, where all pairs have one. Greedy methods compute the rows that
they read, on a CPU some ahead of their use; ToMe blocks; DART, VisionZip and PruMerge the rows of
the tokens that they compare with, HoloV those within a crop. Where merging takes weights (PruMerge,
VLM-Pruner) these are k by n. Time grows as n². Frames are groups of their own by default, wherever
a family tells where one ends, which is the way for videos longer than this: time then grows with
their length. The first table is of a machine that screens in bfloat16, measured before features
were compared as they are and edges listed where there are few; the second of one that cannot. The
last table has every method.
"""

EVERY = """## Every method

Selection among one picture's tokens, of width 4,096 in float32, keep 0.36, timed in turn with one
`X @ X.T`, the fastest at 2,304 first; and once among 16,384 tokens of a long video, of width 1,024,
keep 0.25, in a process of its own. VisPruner, which removes eight tokens a round and compares half
of the others with the other half in each, was given up there after two minutes.
"""

PREFILL = """## Prefill

A LLaVA with random weights. **faster** is the language model's prefill without pruning over that
with it, the time of the method itself taken off; **ideal** is what the machine's roofline gives,
the larger of FLOPs over the rate of a large product and bytes of the weights over the rate at which
they are read, both measured in the same run; **with method** leaves the method in; **first token**
is from pixels to the first token, vision tower included. **text alone** is how much faster a prompt
of as many tokens is that never had an image: what is between it and *faster* is the hook's.
KV cache and peak memory (beyond weights and features) are measured, not computed.
"""


def load(name: str) -> dict[str, Any] | None:
    """A file of results, or None where it has not been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; ``header`` has its titles with commas between."""
    titles = header.split(", ")
    lines = [titles, ["---:"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def source(result: dict[str, Any], command: str) -> str:
    return f"*{result['machine']}. `{command}`, {result['seconds']:.0f} seconds.*"


def section(
    introduction: str, describe: Callable[[str, Row], list[str]], names: Iterable[str]
) -> list[str]:
    """What is said of each file of results that has been measured; nothing where none has."""
    results = {name: result for name in names if (result := load(name)) is not None}
    parts = [part for name, result in results.items() for part in describe(name, result)]
    return [introduction, *parts] if parts else []


def selection() -> list[str]:
    parts = section(SELECTION, timed, MACHINES)
    return [*parts, TRIED] if parts else []


def timed(name: str, result: Row) -> list[str]:
    """The table of one machine, and its plot."""
    rows: list[Row] = result["rows"]
    cells = []
    for row in rows:
        time = row["milliseconds"]
        cells.append(
            (
                row["n"],
                row["dtype"],
                "yes" if row["screened"] else "no",
                row["shared"],
                *(f"{time[form]:.1f}" for form in ("gprune", "product", "matrix_power")),
                f"{row['of_product']:.2f}",
                f"{row['faster']:.1f}",
            )
        )
    header = (
        "tokens, dtype, screened, shared, gprune ms, `X @ X.T` ms, matrix power ms, "
        "of `X @ X.T`, times faster"
    )
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    chosen = [row for row in rows if row["dtype"] == "float32" and row["shared"] == 0]
    for form, label in (("matrix_power", "matrix-power form"), ("product", "X @ X.T")):
        lines = [row for row in chosen if row["screened"]] or chosen
        times = [row["milliseconds"][form] for row in lines]
        axes.plot([row["n"] for row in lines], times, "o--", label=label)
    for screened, label in ((False, "gprune, unscreened"), (True, "gprune, screened")):
        lines = [row for row in chosen if row["screened"] is screened]
        times = [row["milliseconds"]["gprune"] for row in lines]
        if lines:
            axes.plot([row["n"] for row in lines], times, "o-", label=label)
    axes.set(xlabel="tokens", ylabel="milliseconds", xscale="log", yscale="log")
    numbers = sorted({row["n"] for row in rows})
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.legend()
    image = f"performance_{name.replace('/', '_')}.png"
    figure.savefig(IMAGES / image, dpi=80)
    plt.close(figure)
    return [
        MACHINES[name],
        f"![Time against the number of tokens](images/{image})",
        table(header, cells),
        source(result, command("selection", name)),
    ]


def command(script: str, name: str) -> str:
    """What made a file of results."""
    if name.startswith("gpu/"):
        return "make gpu"
    return f"python benchmarks/{script}.py --out benchmarks/results/{name}.json"


def long_video() -> list[str]:
    return section(LONG, lengths, ("long_video", "long_video_avx2", "gpu/long_video"))


def lengths(name: str, result: Row) -> list[str]:
    """The table of one machine."""
    cells = [
        (
            *(row["n"], row["d"], row["shared"], f"{row['seconds']:.1f}"),
            *(f"{row[f'bytes_{kind}'] / 2**30:.2f}" for kind in ("beyond_input", "of_input")),
        )
        for row in result["rows"]
    ]
    return [
        table("tokens, width, shared, seconds, GiB beyond the input, GiB of input", cells),
        source(result, command("long_video", name)),
    ]


def every_method() -> list[str]:
    return section(EVERY, methods, ("every_method",))


def methods(name: str, result: Row) -> list[str]:
    """The table of one machine."""
    product: Row = result["product"]
    cells = []
    for row in result["rows"]:
        time, long = row["milliseconds"], row["long"]
        once = [] if long is None else [long["seconds"], long["bytes_beyond_input"] / 2**30]
        cells.append(
            (
                row["method"],
                *(f"{time[n]:.1f}" for n in product),
                *(f"{time[n] / product[n]:.2f}" for n in product),
                *([f"{value:.1f}" for value in once] or ("", "")),
            )
        )
    header = ", ".join(
        (
            "method",
            *(f"{n} tokens ms" for n in product),
            *(f"{n} tokens of `X @ X.T`" for n in product),
            "16384 tokens s",
            "GiB beyond the input",
        )
    )
    return [table(header, cells), source(result, command("every_method", name))]


def prefill() -> list[str]:
    return section(PREFILL, prefills, ("prefill", "gpu/prefill"))


def prefills(name: str, result: Row) -> list[str]:
    """The tables and plots of one machine."""
    parts = []
    for shape in result["shapes"]:
        rows: list[Row] = shape["rows"]
        cells = [
            (
                *(row["batch"], row["keep"], row["tokens"]),
                *(f"{row[f'{name}_ms']:.0f}" for name in ("full", "pruned", "method", "vision")),
                *(f"{row[name]:.2f}" for name in ("speedup", "ideal", "of_ideal")),
                *(f"{row[name]:.2f}" for name in ("speedup_with_method", "speedup_without_hook")),
                f"{row['first_speedup']:.2f}",
                f"{row['kv_bytes'] / 1e6:.1f}",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}",
            )
            for row in rows
        ]
        image = f"performance_prefill_{shape['shape'].replace('.', '_')}.png"
        bars(rows, IMAGES / image)
        rate, read = shape["multiply_adds_per_second"], shape["bytes_per_second"]
        parts += [
            f"### {shape['shape']}, {shape['dtype']}, {shape['method']}",
            f"![Where the time goes, by batch and keep](images/{image})",
            table(
                "batch, keep, tokens, full ms, pruned ms, method ms, vision ms, faster, ideal, "
                "of ideal, with method, text alone, first token, KV MB, peak MB",
                cells,
            ),
            f"Roofline: {2 * rate / 1e9:.0f} GFLOP/s, {read / 1e9:.1f} GB/s.",
        ]
    return [*parts, source(result, command("prefill", name))]


def bars(rows: list[Row], path: Path) -> None:
    """Vision tower, method and language model as parts of a bar, and the roofline beside."""
    batches = sorted({row["batch"] for row in rows})
    figure, all_axes = plt.subplots(
        1, len(batches), figsize=(4 * len(batches), 3.4), layout="constrained", squeeze=False
    )
    for batch, axes in zip(batches, all_axes[0], strict=True):
        chosen = [row for row in rows if row["batch"] == batch]
        names = ["none", *(str(row["keep"]) for row in chosen)]
        vision = [row["vision_ms"] for row in [chosen[0], *chosen]]
        method = [0.0, *(row["method_ms"] for row in chosen)]
        model = [chosen[0]["full_ms"], *(row["pruned_ms"] - row["method_ms"] for row in chosen)]
        floor = [chosen[0]["ideal_ms"], *(row["ideal_ms"] for row in chosen)]
        bottom = [0.0] * len(names)
        for label, part in (("vision", vision), ("method", method), ("language model", model)):
            axes.bar(names, part, bottom=bottom, label=label)
            bottom = [a + b for a, b in zip(bottom, part, strict=True)]
        where = [a + b + c for a, b, c in zip(vision, method, floor, strict=True)]
        axes.plot(names, where, "k_", markersize=18, label="roofline")
        axes.set(xlabel="keep", ylabel="milliseconds", title=f"batch {batch}")
    all_axes[0][0].legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION, *selection(), *long_video(), *every_method(), *prefill()]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    (DOCS / "performance.md").write_text(text)


if __name__ == "__main__":
    main()

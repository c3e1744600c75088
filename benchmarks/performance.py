"""Writes docs/performance.md from benchmarks/results: python benchmarks/performance.py"""

from __future__ import annotations

import json
import textwrap
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

{summary} Nothing here ran on a GPU yet.

`make performance` writes this page from the files in `benchmarks/results/`; the command that
measured a table stands under it. Compared variants ran in turn in one process. Ratios are medians
of ratios of neighbouring runs, so they hold on a busy machine too; milliseconds are of the
machine that is named. `make bench-check` measures some ratios again and fails where one got much
worse. `gprune bench` measures your machine.
"""

SELECTION = """## Selection

`X @ X.T` is one product of the features with themselves in their own dtype: the lower bound of a
method that compares every pair. The matrix-power form is the same method written directly (a full
float32 product, a softmax over an n × n matrix, a power of that matrix). All forms keep the same
tokens.

- **screened**: a CPU with bfloat16 units (AVX512-BF16) computes the product in bfloat16 first,
  whose error has a bound, and in float32 only where that bound cannot exclude an edge. The kept
  tokens are those of float32. A CPU without such units computes one triangle of the float32
  product (**unscreened**): the same tokens, slower.
- **shared**: the size of a component that all tokens have in common. At 0 most pairs have no
  edge. At 2 nearly all have one, so a screen would exclude nothing; a sample of rows detects
  this, and the screen is skipped.
"""

# Files of results, and a heading for the machine that they come from.
MACHINES = {
    "selection": """### With bfloat16 units

This table is older than two changes that only removed work: cosines from features without a copy,
and lists of edges where there are few.""",
    "selection_avx2": "### Without bfloat16 units",
    "gpu/selection": "### On a GPU",
}

TRIED = """### What was tried and left out

On a CPU with torch 2.13:

- A product of bfloat16 features with a float32 result would be exact enough by itself. But
  `torch.mm(..., out_dtype=)` is for CUDA only, and oneDNN's `fp32_precision = "bf16"`, which
  gives one, takes twice as long as a bfloat16 product. Such features are screened as they are, by
  a bound for each pair.
- Halving the triangle recursively instead of cutting it into strips of rows, strips of other
  heights, and tiles of 32 rows are all within 3% of the present form.
- Features split into two bfloat16 parts need three products, which take no less than one triangle
  of the float32 product.
- An int8 screen (`torch._int_mm`) is twice as fast as one in bfloat16. Its bound is more than
  twice as wide on well-behaved features, and excludes nothing where a few channels are much
  larger than the rest, as they often are in language models.

### What runs on a GPU

By default the dense form: few large kernels and no synchronisation (`tests/accelerator`).
`GPrune(keep, backend="triton")` uses Triton kernels instead (`gprune.graph.triton`): 16-bit
products on tensor cores, n × n weights written once and only where there are edges, all images of
a batch in one launch sequence, nothing read back. `make test-triton` shows on a CPU that the
kernels keep the same tokens in Triton's interpreter, and that they compile for an A100 and an
H100. They become the default once a GPU has shown that they are faster.

`make gpu`, on a machine with a CUDA GPU, compares every method, the kernels and pruned prefills
with the CPU's results. It measures selection, long videos and the prefill of models with 7 and 8
billion random parameters, and adds the tables to this page."""

LONG = """## Long videos

Selecting among 32,768 tokens takes less than 2 GiB beyond the input. By default every frame is a
group of its own where the family marks where frames end, and time then grows with the video's
length; within one group it grows as n².

- Past 8,192 tokens only SCOPE and VisPruner hold an n × n matrix.
- G-Prune holds the edges where there are few, otherwise tiles of the matrix, at most 1.25 GiB in
  all. It recomputes the other tiles at every step, as the last rows of the tables show, where all
  pairs have an edge.
- Greedy methods compute the rows that they read, on a CPU some in advance. ToMe computes blocks.
  DART, VisionZip and PruMerge compute the rows of the tokens that they compare with, HoloV those
  within a crop. The merging weights of PruMerge, VisionZip and VLM-Pruner are k × n.

The first table is from a machine that screens in bfloat16, and older than the two changes named
above; the second from one that does not screen.
"""

EVERY = """## Every method

Selection among one picture's tokens (width 4,096, float32, keep 0.36), in turn with one `X @ X.T`,
fastest at 2,304 tokens first; and once among 16,384 tokens of a long video (width 1,024, keep 0.25)
in a separate process. VisPruner removes eight tokens a round and compares two halves of the rest in
each round; it was stopped there after two minutes.
"""

PREFILL = """## Prefill

A LLaVA with random weights whose language model has six layers, 576 visual and 64 text tokens.

- **faster**: the language model's prefill without pruning over that with pruning, without the
  method's own time. **with method** includes it.
- **ideal**: the machine's roofline, the larger of FLOPs over the rate of a large product and
  bytes of the weights over the rate at which they are read, both measured in the same run.
- **text alone**: the same ratio for a prompt of as many tokens without an image. The difference
  to **faster** is the cost of the hook.
- **first token**: from pixels to the first token, vision tower included.
- KV cache and peak memory (beyond weights and features) are measured, not computed.
"""


def load(name: str) -> dict[str, Any] | None:
    """Returns a file of results, or None if it has not been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; ``header`` holds the column titles, separated by commas."""
    titles = header.split(", ")
    lines = [titles, ["---:"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def source(result: dict[str, Any], command: str) -> str:
    """Returns the line under a table: machine, command and duration."""
    return f"*{result['machine']}. `{command}`, {result['seconds']:.0f} seconds.*"


def section(
    introduction: str, describe: Callable[[str, Row], list[str]], names: Iterable[str]
) -> list[str]:
    """Returns the parts of a section, one or more for each file of results; none without files."""
    results = {name: result for name in names if (result := load(name)) is not None}
    parts = [part for name, result in results.items() for part in describe(name, result)]
    return [introduction, *parts] if parts else []


def summary() -> str:
    """Returns a sentence on the first row of selection and on prefill at keep 0.36."""
    rows = (load("selection") or {})["rows"]
    prefills = (load("prefill") or {})["shapes"][0]["rows"]
    row = next(row for row in prefills if row["keep"] == 0.36)
    text = (
        f"On a CPU, G-Prune selects among {rows[0]['n']} tokens in {rows[0]['of_product']:.1f} "
        f"times the time of one product `X @ X.T`. Keeping {row['keep']:.0%} of them makes prefill "
        f"{row['speedup_with_method']:.1f} times as fast, selection included."
    )
    return "\n".join(textwrap.wrap(text, 98))


def selection() -> list[str]:
    """Returns the section on G-Prune's selection."""
    parts = section(SELECTION, timed, MACHINES)
    return [*parts, TRIED] if parts else []


def timed(name: str, result: Row) -> list[str]:
    """Returns the table of one machine, and draws its plot."""
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
    """Returns the command that measured a file of results."""
    if name.startswith("gpu/"):
        return "make gpu"
    return f"python benchmarks/{script}.py --out benchmarks/results/{name}.json"


def long_video() -> list[str]:
    """Returns the section on long videos."""
    return section(LONG, lengths, ("long_video", "long_video_avx2", "gpu/long_video"))


def lengths(name: str, result: Row) -> list[str]:
    """Returns the table of one machine."""
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
    """Returns the section on every method's selection."""
    return section(EVERY, methods, ("every_method",))


def methods(name: str, result: Row) -> list[str]:
    """Returns the table of one machine."""
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
    """Returns the section on prefill."""
    return section(PREFILL, prefills, ("prefill", "gpu/prefill"))


def prefills(name: str, result: Row) -> list[str]:
    """Returns the tables of one machine, and draws their plots."""
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
    """Draws the vision tower, method and language model as stacked bars, with the roofline."""
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
        roofline = [a + b + c for a, b, c in zip(vision, method, floor, strict=True)]
        axes.plot(names, roofline, "k_", markersize=18, label="roofline")
        axes.set(xlabel="keep", ylabel="milliseconds", title=f"batch {batch}")
    all_axes[0][0].legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Writes docs/performance.md and its plots."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    introduction = INTRODUCTION.format(summary=summary())
    parts = [introduction, *selection(), *long_video(), *every_method(), *prefill()]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    (DOCS / "performance.md").write_text(text)


if __name__ == "__main__":
    main()

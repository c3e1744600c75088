"""vLLM with and without pruning, side by side: python benchmarks/serving.py --out FILE

Two servers of one model with random weights, stock and with the plugin, are asked in turn: every
round goes through all conditions, so that drift of the machine hits all alike. Every request brings
a picture of its own, and caches are off. Needs the environment of `make test-vllm`, or a vLLM of
your own beside gprune.
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

from gprune.evaluation.bench import machine
from gprune.tinyvlm.model import CHAT_TEMPLATE
from gprune.tinyvlm.vocabulary import IMAGE, build_tokenizer

PIXELS, PATCH = 336, 14  # 576 visual tokens, as LLaVA-1.5 has
QUESTION = "what is the color of the object at the left ?"

# Of the language model: `small` prefills in seconds on a few cores; `7b` is LLaVA-1.5-7B's.
SIZES = {
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 12},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
}
TOWERS = {
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "heads": 4},
    "7b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "heads": 16},
}


@dataclass(frozen=True)
class Condition:
    """What is asked: a server and a request's own keep, None for the stock server."""

    name: str
    keep: float | None


@dataclass(frozen=True)
class Outcome:
    """One request: seconds to the first token, and tokens of its prompt."""

    first: float
    prompt: int


def write_model(folder: Path, size: str) -> None:
    """Config and processor; vLLM makes the weights up."""
    tokenizer = build_tokenizer()

    def shape(values: dict[str, int]) -> dict[str, int]:
        return {"num_attention_heads" if k == "heads" else k: v for k, v in values.items()}

    LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=CLIPVisionConfig(
            **shape(TOWERS[size]), image_size=PIXELS, patch_size=PATCH
        ).to_dict(),
        text_config=LlamaConfig(
            **shape(SIZES[size]), vocab_size=len(tokenizer), max_position_embeddings=4096
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
    """Starts a server and gives its address once it is ready."""
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
    """The URL of a picture like no other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((PIXELS, PIXELS)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def ask(
    client: httpx.AsyncClient, address: str, keep: float | None, seed: int, tokens: int
) -> Outcome:
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
            # The first event carries the role, before anything was computed.
            if first is None and any("role" not in choice["delta"] for choice in event["choices"]):
                first = time.perf_counter() - start
            if event.get("usage"):
                prompt = event["usage"]["prompt_tokens"]
    if first is None:
        raise RuntimeError("an answer had no tokens")
    return Outcome(first, prompt)


async def load(
    address: str, keep: float | None, seeds: Sequence[int], concurrency: int, tokens: int
) -> tuple[float, list[Outcome]]:
    """Sends all requests, ``concurrency`` at a time; seconds for all, and what each gave."""
    free = asyncio.Semaphore(concurrency)

    async with httpx.AsyncClient(timeout=None) as client:

        async def one(seed: int) -> Outcome:
            async with free:
                return await ask(client, address, keep, seed, tokens)

        start = time.perf_counter()
        outcomes = await asyncio.gather(*(one(seed) for seed in seeds))
        return time.perf_counter() - start, list(outcomes)


def summary(condition: Condition, seconds: list[float], outcomes: list[Outcome]) -> dict[str, Any]:
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


def main(
    size: Annotated[str, typer.Option(help=f"Of the model: {', '.join(SIZES)}.")] = "small",
    method: Annotated[str, typer.Option(help="One of `gprune methods`.")] = "gprune",
    keeps: Annotated[str, typer.Option(help="Shares to keep.")] = "1,0.5,0.36,0.25,0.1",
    requests: Annotated[int, typer.Option(min=1, help="Of each condition in a round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often through all.")] = 3,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Generated for each request.")] = 4,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "float32",
    eager: Annotated[bool, typer.Option(help="Without torch.compile.")] = False,
    note: Annotated[str, typer.Option(help="About the machine, for the record.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Serve and measure."""
    options = [
        *("--load-format", "dummy", "--dtype", dtype, "--served-model-name", "model"),
        *("--max-model-len", "2048", "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"),
        *("--kv-cache-memory-bytes", str(2**30), "--max-num-seqs", str(concurrency)),
    ]
    if eager:
        options.append("--enforce-eager")
    conditions = [Condition("stock", None)]
    conditions += [Condition(f"keep {keep}", float(keep)) for keep in keeps.split(",")]
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_model(model, size)
        stock = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
        gprune = str(Path(sys.executable).with_name("gprune"))
        pruned = [gprune, "serve", "--method", method, "--keep", "1"]
        trusting = [*options, "--trust-request-mm-kwargs"]
        with (
            server(model, stock, options, Path(name) / "stock.log") as first,
            server(model, pruned, trusting, Path(name) / "pruned.log") as second,
        ):
            seconds: dict[str, list[float]] = {one.name: [] for one in conditions}
            outcomes: dict[str, list[Outcome]] = {one.name: [] for one in conditions}
            for index in range(rounds + 1):
                for condition in conditions:
                    address = first if condition.keep is None else second
                    seeds = range(index * requests, (index + 1) * requests)
                    taken, found = asyncio.run(
                        load(address, condition.keep, seeds, concurrency, tokens)
                    )
                    if index:  # the first round is not counted
                        seconds[condition.name].append(taken)
                        outcomes[condition.name] += found
    rows = [summary(one, seconds[one.name], outcomes[one.name]) for one in conditions]
    base = rows[0]
    table = Table(
        *("condition", "prompt tokens", "requests/s", "TTFT median, ms", "TTFT p99, ms"),
        *("faster", "ideal"),
        title=machine(),
    )
    for row in rows:
        row["faster"] = row["requests_per_second"] / base["requests_per_second"]
        row["ideal"] = base["prompt_tokens"] / row["prompt_tokens"]
        table.add_row(
            *(row["condition"], f"{row['prompt_tokens']:.0f}"),
            *(f"{row['requests_per_second']:.3f}", f"{row['ttft_ms_median']:.0f}"),
            *(f"{row['ttft_ms_p99']:.0f}", f"{row['faster']:.2f}x", f"{row['ideal']:.2f}x"),
        )
    Console().print(table)
    if out is not None:
        import vllm

        record = {
            "machine": machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "vllm": vllm.__version__,
            "note": note,
            "method": method,
            "model": {
                "size": size,
                "dtype": dtype,
                "eager": eager,
                **SIZES[size],
                "visual_tokens": (PIXELS // PATCH) ** 2,
            },
            "load": {"concurrency": concurrency, "rounds": rounds, "generated_tokens": tokens},
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

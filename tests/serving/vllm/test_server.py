"""`gprune serve` as a process: the OpenAI API, its metrics, and broken requests."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("vllm")

import httpx

import gprune
from gprune.tinyvlm.model import checkpoint_folder
from gprune.tinyvlm.scenes import make_scene
from tests.serving.vllm.checkpoints import tiny_vlm
from tests.serving.vllm.engines import Answer, Prompt, Reference, until_end

KEEP, OTHER = 0.25, 0.5
START_TIMEOUT = 400  # seconds, on a busy machine
CONCURRENT = 200


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, log: Path) -> Iterator[str]:
    """Starts a server and yields its address; stops it with the signal of Ctrl-C."""
    port = free_port()
    command = [
        *(str(Path(sys.executable).with_name("gprune")), "serve", str(folder)),
        *("--keep", str(KEEP), "--method", "graph_cover"),
        *("--port", str(port), "--host", "127.0.0.1"),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(2**26), "--served-model-name", "tiny"),
        *("--trust-request-mm-kwargs", "--block-size", "32"),
    ]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield address
            assert process.poll() is None, "the server has stopped"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def request(picture: str, question: str, keep: Any = None) -> dict[str, Any]:
    """Returns the body of a chat completion; ``picture`` is a URL."""
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": question},
    ]
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 4,
        "logprobs": True,
        # The chat template of the checkpoint leaves the BOS token to the tokenizer.
        "add_special_tokens": True,
    }
    if keep is not None:
        body["mm_processor_kwargs"] = {"gprune_keep": keep}
    return body


def huge() -> bytes:
    """Returns a small file with 20,000 x 20,000 pixels."""
    return png(Image.new("1", (20_000, 20_000)))


SCENES = [make_scene("test", 2, index) for index in range(20)]
ASKED = [(scene.draw(), question) for scene in SCENES for question in scene.ask()[:1]]


def expected(keep: float) -> list[Answer]:
    """Returns the answers of transformers."""
    reference = Reference(checkpoint_folder())
    asked = [Prompt(f"<image>{question.question}", [image]) for image, question in ASKED]
    return reference.ask(asked, gprune.GraphCover(keep), 4)


def text_of(answer: Answer) -> str:
    from gprune.tinyvlm.vocabulary import build_tokenizer

    return build_tokenizer().decode(until_end(answer), skip_special_tokens=True)


def answer_text(reply: dict[str, Any]) -> str:
    """Returns the answer in a reply; vLLM's detokenizer puts a space before the first word."""
    return str(reply["choices"][0]["message"]["content"]).strip()


async def send(address: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """Sends all requests at once."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        posts = [client.post(f"{address}/v1/chat/completions", json=body) for body in bodies]
        return list(await asyncio.gather(*posts))


def prompt_tokens(address: str) -> int:
    """Returns vLLM's count of prompt tokens since its start."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith("vllm:prompt_tokens_total{")]
    return int(float(line.rsplit(" ", 1)[1]))


def test_a_server_answers_correctly_and_survives_broken_requests(tmp_path: Path) -> None:
    folder = tiny_vlm(tmp_path / "tiny")
    by_keep = {keep: expected(keep) for keep in (KEEP, OTHER)}
    whole = png(ASKED[0][0])
    question = ASKED[0][1].question
    broken = [
        request(url(b"no image at all"), question),
        request(url(whole[: len(whole) // 2]), question),
        request(url(huge()), question),
        request("http://127.0.0.1:9/absent.png", question),
        request(url(whole), question, keep=1.5),
        request(url(whole), question, keep="half"),
    ]
    with server(folder, tmp_path / "log") as address:
        for body in broken:
            (response,) = asyncio.run(send(address, [body]))
            # vLLM answers with 500 if Pillow refuses the number of pixels.
            assert response.status_code >= 400, response.text
            assert response.json()["error"]["message"]
        (response,) = asyncio.run(send(address, [broken[4]]))
        assert response.status_code == 400
        assert "keep=1.5 as a ratio must lie in (0, 1]" in response.json()["error"]["message"]

        bodies, answers = [], []
        for index in range(CONCURRENT):
            if index % 10 == 9:
                bodies.append(broken[index // 10 % 2])  # small ones, for a short test
                answers.append(None)
                continue
            image, asked = ASKED[index % len(ASKED)]
            keep = (KEEP, OTHER)[index % 2]
            picture = url(png(image))
            bodies.append(request(picture, asked.question, None if keep == KEEP else keep))
            answers.append(by_keep[keep][index % len(ASKED)])
        before = prompt_tokens(address)
        responses = asyncio.run(send(address, bodies))
        counted = 0
        for response, answer in zip(responses, answers, strict=True):
            if answer is None:
                assert response.status_code == 400
                continue
            assert response.status_code == 200, response.text
            reply = response.json()
            assert answer_text(reply) == text_of(answer)
            assert reply["usage"]["prompt_tokens"] == answer.prompt
            counted += answer.prompt
        assert prompt_tokens(address) - before == counted
    log = (tmp_path / "log").read_text()
    assert f"method graph_cover() gprune {gprune.__version__}, keep {KEEP}" in log
    with server(folder, tmp_path / "log") as address:  # the same answer after a restart
        image, asked = ASKED[1]
        (response,) = asyncio.run(send(address, [request(url(png(image)), asked.question)]))
        assert answer_text(response.json()) == text_of(by_keep[KEEP][1])

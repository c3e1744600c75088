"""Coverage-guided fuzzing of the edges: python -m tests.fuzz.guided images -runs=10000

atheris (libFuzzer) records which branches of gprune and Pillow an input reaches, and mutates inputs
that reach new ones; these are kept in out/fuzz, where the next run starts. Arguments after the
target's name are libFuzzer's, such as `-runs` and `-seed`. A failing input is written to out/fuzz.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import atheris

with atheris.instrument_imports(include=["gprune", "PIL"]):
    from hypothesis import given, settings
    from PIL import Image

    from tests.fuzz import edges

    Image.init()  # Pillow imports format modules lazily, which would be outside instrument_imports


def check_image(data: bytes) -> None:
    edges.check_image((data, None))


def check_link(data: bytes) -> None:
    edges.check_link(dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True)))


def check_keep(data: bytes) -> None:
    edges.check_keep(data.decode("utf-8", "replace"))


def check_serving(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return  # vLLM refuses this before gprune sees it
    edges.check_serving(value)


@settings(database=None, deadline=None)
@given(edges.command_lines())
def check_command(words: list[str]) -> None:
    """Lets Hypothesis build the command line from bytes: an arbitrary one could start a server."""
    edges.check_command(words)


CORPUS = Path("out/fuzz")
ROW = {"image": "a.png", "question": "what?", "answer": ["1", "2"], "type": "count"}
SERVING_CONFIG = {
    "keep": {"tile": 0.5, "image": 64},
    "method": "gprune",
    "options": {"threshold": 0.7},
}
# Check and initial inputs of each target.
TARGETS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "images": (
        check_image,
        [
            edges.encode_picture(kind, mode, (7, 5), orientation, animated)
            for kind, modes in edges.MODES.items()
            for mode in modes
            for orientation, animated in ((1, False), (6, True))
        ],
    ),
    "jsonl": (edges.check_any_jsonl, [json.dumps(ROW).encode(), b"[]\n{}\n1"]),
    "links": (check_link, [b"question=what%3F&methods=gprune%2Ctome&keep=0.25&scene=4"]),
    "keeps": (check_keep, [b"0.36", b"64", b"1"]),
    "serving": (check_serving, [json.dumps(SERVING_CONFIG).encode(), b'{"keep": 0.36}']),
    "commands": (check_command.hypothesis.fuzz_one_input, [bytes(range(256))]),
}


def main(arguments: list[str]) -> None:
    """Fuzzes the target named by the first argument; never returns."""
    if not arguments or arguments[0] not in TARGETS:
        raise SystemExit(f"pass one of {', '.join(TARGETS)}, then libFuzzer's options")
    check, seeds = TARGETS[arguments[0]]
    folder = CORPUS / arguments[0]
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def one_input(data: bytes) -> None:
        check(data)

    atheris.Setup(
        [sys.argv[0], f"-artifact_prefix={CORPUS}/", *arguments[1:], str(folder)], one_input
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

"""LLaVA-NeXT: keeps the whole thumbnail and a quarter of the canvas of tiles.

python -m examples.llava_next --image cat.jpg --device cuda
python -m examples.llava_next --tiny
"""

from __future__ import annotations

import typer

from examples.common import DeviceOption, ImageOption, TinyOption, ask
from gprune import make


def main(
    image: ImageOption = None,
    prompt: str = "What is in the image?",
    checkpoint: str = "llava-hf/llava-v1.6-mistral-7b-hf",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask with and without pruning, with a budget for each kind of group."""
    pruner = make("recommended", keep={"thumbnail": 1.0, "canvas": 0.25})
    ask(checkpoint, "llava_next", pruner, prompt, tiny, device, image)


if __name__ == "__main__":
    typer.run(main)

"""LLaVA-1.5: each image is a group of 576 tokens.

python -m examples.llava --image cat.jpg --device cuda
python -m examples.llava --tiny
"""

from __future__ import annotations

import typer

from examples.common import DeviceOption, ImageOption, TinyOption, ask
from gprune import make


def main(
    image: ImageOption = None,
    prompt: str = "What is in the image?",
    checkpoint: str = "llava-hf/llava-1.5-7b-hf",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask with and without pruning."""
    ask(checkpoint, "llava", make("recommended", keep=0.36), prompt, tiny, device, image)


if __name__ == "__main__":
    typer.run(main)

"""InternVL: each tile is a group of 256 tokens.

python -m examples.internvl --image cat.jpg --device cuda
python -m examples.internvl --tiny
"""

from __future__ import annotations

import typer

from examples.common import DeviceOption, ImageOption, TinyOption, ask
from gprune import make


def main(
    image: ImageOption = None,
    prompt: str = "What is in the image?",
    checkpoint: str = "OpenGVLab/InternVL3-1B-hf",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask with and without pruning."""
    ask(checkpoint, "internvl", make("recommended", keep=0.36), prompt, tiny, device, image)


if __name__ == "__main__":
    typer.run(main)

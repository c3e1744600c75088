"""Qwen3-VL: the deepstack features of dropped tokens are dropped too.

python -m examples.qwen3_vl --image cat.jpg --video clip.mp4 --device cuda
python -m examples.qwen3_vl --tiny
"""

from __future__ import annotations

from pathlib import Path

import typer

from examples.common import DeviceOption, ImageOption, TinyOption, VideoOption, ask
from gprune import make


def main(
    image: ImageOption = None,
    video: VideoOption = None,
    prompt: str = "What happens here?",
    checkpoint: str = "Qwen/Qwen3-VL-2B-Instruct",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask about an image, a video or both, with and without pruning."""
    if tiny:
        video = Path("random")  # the random prompt contains both
    ask(checkpoint, "qwen3_vl", make("recommended", keep=0.36), prompt, tiny, device, image, video)


if __name__ == "__main__":
    typer.run(main)

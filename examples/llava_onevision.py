"""LLaVA-OneVision: thumbnail, canvas and video frames are groups.

python -m examples.llava_onevision --image cat.jpg --video clip.mp4 --device cuda
python -m examples.llava_onevision --tiny
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
    checkpoint: str = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask about an image, a video or both, with and without pruning."""
    if tiny:
        video = Path("random")  # the random prompt contains both
    ask(
        checkpoint,
        "llava_onevision",
        make("recommended", keep=0.36),
        prompt,
        tiny,
        device,
        image,
        video,
    )


if __name__ == "__main__":
    typer.run(main)

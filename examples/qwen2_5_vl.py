"""Qwen2.5-VL: pictures of any shape, every video frame is a group.

python -m examples.qwen2_5_vl --image cat.jpg --video clip.mp4 --device cuda
python -m examples.qwen2_5_vl --tiny
"""

from __future__ import annotations

from pathlib import Path

import typer

from examples.common import DeviceOption, ImageOption, TinyOption, VideoOption, ask
from gprune import GPrune


def main(
    image: ImageOption = None,
    video: VideoOption = None,
    prompt: str = "What happens here?",
    checkpoint: str = "Qwen/Qwen2.5-VL-3B-Instruct",
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
) -> None:
    """Ask with and without pruning, about a picture, a video or both."""
    if tiny:
        video = Path("random")  # the random prompt holds both
    ask(checkpoint, "qwen2_5_vl", GPrune(keep=0.36), prompt, tiny, device, image, video)


if __name__ == "__main__":
    typer.run(main)

"""The token order inside Qwen2.5-VL's vision encoder."""

from __future__ import annotations

import torch
from torch import Tensor


def window_order(grids: Tensor, merge: int, window: int, patch: int) -> Tensor:
    """Returns the raster index of each token in an encoder that sorts tokens by window.

    Most layers of Qwen2.5-VL's encoder attend within square windows. It therefore sorts the tokens
    of each frame by window, windows in raster order and tokens in raster order inside each.

    Args:
        grids: (frames, rows, columns) of each image in patches, int64 [images, 3].
        merge: patches along one side of a token.
        window: side of a window in pixels.
        patch: side of a patch in pixels.

    Returns:
        int64 [tokens of all images], on the CPU.
    """
    side = window // merge // patch
    orders, start = [], 0
    for frames, patch_rows, patch_columns in grids.tolist():
        rows, columns = patch_rows // merge, patch_columns // merge
        row, column = torch.arange(rows)[:, None], torch.arange(columns)
        window_index = row // side * -(-columns // side) + column // side  # [rows, columns]
        order = window_index.flatten().argsort(stable=True)
        frame_starts = start + torch.arange(frames)[:, None] * len(order)
        orders.append((frame_starts + order).flatten())
        start += frames * len(order)
    return torch.cat(orders)

"""Linear layers with 8-bit and 4-bit weights, on torch's own CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 32  # channels that share a scale at 4 bits


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per row; activations stay as they are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.scale = linear.weight.abs().amax(1) / 127
        self.weight = (linear.weight / self.scale[:, None]).round().to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        out = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights; a scale and a zero point for `GROUP` channels of a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        groups = linear.weight.unflatten(1, (-1, GROUP))  # [rows, groups, GROUP]
        low, high = groups.amin(-1), groups.amax(-1)
        scale = (high - low) / 15
        whole = ((groups - low[..., None]) / scale[..., None]).round().int()
        self.weight = torch._convert_weight_to_int4pack_for_cpu(whole.flatten(1), 1)
        # The kernel subtracts 8 before it scales.
        self.scale_and_zero = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch._weight_int4pack_mm_for_cpu(flat, self.weight, GROUP, self.scale_and_zero)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


@torch.no_grad()
def quantise(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Replaces every linear layer except the output layer in place, as checkpoints do."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                setattr(parent, name, kind(child))
    return model

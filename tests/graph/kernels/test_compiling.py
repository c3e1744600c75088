"""The kernels compile for GPUs, none of which is needed for that: down to machine code."""

from __future__ import annotations

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compiled

from gprune.graph import NEARLY_ONE
from gprune.graph import triton as kernels

LAYOUT = {"starts": "*i64", "counts": "*i64", "places": "*i64"}
WEIGHTS = {"weights": "*fp32", "edges": "*i8"}
# What a GPU's tensor cores are called in its code: A100's, H100's.
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async"}


def source(kernel, arguments: dict[str, str], constants: dict[str, object]) -> ASTSource:
    """A kernel with the types of its arguments and values of its constants, as a call has them."""
    types = {**arguments, **dict.fromkeys(constants, "constexpr")}
    order = {name: types[name] for name in kernel.arg_names}
    # Tensors begin at multiples of 16 bytes.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(order.values())
        if kind.startswith("*")
    }
    return ASTSource(fn=kernel, signature=order, constexprs=constants, attrs=aligned)


@pytest.mark.parametrize("generation", TENSOR_CORES)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_tiles(kind, generation):
    arguments = {
        "scaled": f"*{kind}",
        "norms": "*fp64",
        "inverse": "*fp32",
        **LAYOUT,
        **WEIGHTS,
        "parts": "*i32",
        "sums": "*fp64",
        "nearest": "*i32",
        "total": "i32",
        "threshold": "fp32",
        "temperature": "fp32",
    }
    constants = {
        "padded": 4096,
        "nearly": NEARLY_ONE,
        "BLOCK": kernels.BLOCK,
        "CHANNELS": kernels.CHANNELS,
        "WIDE": False,
    }
    kernel = compiled(
        source(kernels._tiles, arguments, constants), GPUTarget("cuda", generation, 32)
    )
    assert kernel.asm["cubin"]
    # 16-bit products go to tensor cores; float32 ones, which they would round, do not.
    assert (TENSOR_CORES[generation] in kernel.asm["ptx"]) == (kind != "fp32")
    assert ".local" not in kernel.asm["ptx"]  # nothing that does not fit into registers
    assert kernel.metadata.shared <= 96 * 1024


@pytest.mark.parametrize("generation", TENSOR_CORES)
def test_the_others(generation):
    target = GPUTarget("cuda", generation, 32)
    for kind in ("bf16", "fp16", "fp32", "fp64"):
        scaled = "fp32" if kind == "fp64" else kind
        arguments = {
            "features": f"*{kind}",
            "scaled": f"*{scaled}",
            "norms": "*fp64",
            "inverse": "*fp32",
        }
        constants = {
            "width": 1000,
            "padded": 1024,
            "PASS": kernels.PASS,
            "EXPONENT": kernels.EXPONENT,
        }
        assert compiled(source(kernels._prepare, arguments, constants), target).asm["cubin"]
    arguments = {"information": "*fp64", "row_sums": "*fp64", **LAYOUT, **WEIGHTS, "out": "*fp64"}
    step = compiled(source(kernels._step, arguments, {"BLOCK": kernels.BLOCK}), target)
    assert ".local" not in step.asm["ptx"]

"""The kernels compile to GPU machine code; no GPU is needed for that."""

from __future__ import annotations

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compiled

from gprune.graph import COPY_SIMILARITY
from gprune.graph.triton import BLOCK, CHANNELS, EXPONENT, PASS
from gprune.graph.triton_kernels import count_kernel, prepare_kernel, step_kernel, tiles_kernel

LAYOUT = {"starts": "*i64", "counts": "*i64", "offsets": "*i64"}
WEIGHTS = {"weights": "*fp32", "has_edges": "*i8"}
# The tensor cores' instruction for each compute capability: 8.0 (A100) and 9.0 (H100).
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async"}


def source(kernel, arguments: dict[str, str], constants: dict[str, object]) -> ASTSource:
    """Returns a kernel with the types of its arguments and the values of its constants."""
    types = {**arguments, **dict.fromkeys(constants, "constexpr")}
    order = {name: types[name] for name in kernel.arg_names}
    # A launch finds that tensors begin at multiples of 16 bytes.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, type_name in enumerate(order.values())
        if type_name.startswith("*")
    }
    return ASTSource(fn=kernel, signature=order, constexprs=constants, attrs=aligned)


@pytest.mark.parametrize("capability", TENSOR_CORES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_tiles_kernel(dtype, capability):
    arguments = {
        "scaled": f"*{dtype}",
        "norms": "*fp64",
        "inverse_norms": "*fp32",
        **LAYOUT,
        **WEIGHTS,
        "partial_degrees": "*i32",
        "partial_sums": "*fp64",
        "suspected": "*i32",
        "token_count": "i32",
        "threshold": "fp32",
        "temperature": "fp32",
    }
    constants = {
        "padded_width": 4096,
        "copy_similarity": COPY_SIMILARITY,
        "BLOCK": BLOCK,
        "CHANNELS": CHANNELS,
        "WIDE": False,
    }
    target = GPUTarget("cuda", capability, 32)
    kernel = compiled(source(tiles_kernel, arguments, constants), target)
    assert kernel.asm["cubin"]
    # 16-bit products use tensor cores; float32 products, which these would round, do not.
    assert (TENSOR_CORES[capability] in kernel.asm["ptx"]) == (dtype != "fp32")
    assert ".local" not in kernel.asm["ptx"]  # no arrays in local memory: all fits in registers
    assert kernel.metadata.shared <= 96 * 1024


@pytest.mark.parametrize("capability", TENSOR_CORES)
def test_the_other_kernels(capability):
    target = GPUTarget("cuda", capability, 32)
    for dtype in ("bf16", "fp16", "fp32", "fp64"):
        scaled = "fp32" if dtype == "fp64" else dtype
        arguments = {
            "features": f"*{dtype}",
            "scaled": f"*{scaled}",
            "norms": "*fp64",
            "inverse_norms": "*fp32",
        }
        constants = {
            "width": 1000,
            "padded_width": 1024,
            "PASS": PASS,
            "EXPONENT": EXPONENT,
        }
        assert compiled(source(prepare_kernel, arguments, constants), target).asm["cubin"]
    arguments = {"information": "*fp64", "row_sums": "*fp64", **LAYOUT, **WEIGHTS, "out": "*fp64"}
    step = compiled(source(step_kernel, arguments, {"BLOCK": BLOCK}), target)
    assert ".local" not in step.asm["ptx"]
    arguments = {"vanishing": "*fp32", **LAYOUT, **WEIGHTS, "out": "*i64"}
    count = compiled(source(count_kernel, arguments, {"BLOCK": BLOCK}), target)
    assert ".local" not in count.asm["ptx"]

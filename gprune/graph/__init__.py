"""The similarity graph over visual tokens: G-Prune's mathematics, free of model code.

* `gprune.graph.similarity_graph`: the graph and propagation on it, as the paper states them;
* `gprune.graph.cosine`: similarity of all pairs, `gprune.graph.rows`: of chosen tokens;
* `gprune.graph.products`, `gprune.graph.norms`: what makes both fast and reproducible;
* `gprune.graph.tiled`: the same graph where edges can be, screened in bfloat16 on a CPU;
* `gprune.graph.triton`: the same graph in Triton kernels on a GPU;
* `gprune.graph.half`: which of its weights float16 can hold.

Features of any dtype are compared in float32. Sums over tokens are in float64, so that the order of
summation, which differs between thread counts and devices, changes a score by far less than float32
resolves.
"""

from gprune.graph.copies import COPY_SIMILARITY, confirm_copies
from gprune.graph.cosine import (
    MAX_DENSE_TOKENS,
    CosineRows,
    cosine_similarity,
    dense_fits,
    mean_similarity,
    similarity_matrix,
)
from gprune.graph.norms import token_norms
from gprune.graph.parameters import check_iterations, check_temperature, check_threshold
from gprune.graph.products import BLOCK_ROWS, ROW_MULTIPLE, row_blocks
from gprune.graph.rows import UnitRows
from gprune.graph.similarity_graph import SimilarityGraph

__all__ = [
    "BLOCK_ROWS",
    "COPY_SIMILARITY",
    "MAX_DENSE_TOKENS",
    "ROW_MULTIPLE",
    "CosineRows",
    "SimilarityGraph",
    "UnitRows",
    "check_iterations",
    "check_temperature",
    "check_threshold",
    "confirm_copies",
    "cosine_similarity",
    "dense_fits",
    "mean_similarity",
    "row_blocks",
    "similarity_matrix",
    "token_norms",
]

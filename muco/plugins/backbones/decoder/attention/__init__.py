"""Attention within the dialogues of a packed row: one module a kernel, all with the same result.

T tokens of a row, B dialogues in it, h heads of queries, g of keys and values, d size of a head.
"""

from muco.plugins.backbones.decoder.attention.interface import (
    Layout,
    attend_within,
    has_sliding_windows,
    layout_of,
)
from muco.plugins.backbones.decoder.attention.kernels import (
    Direction,
    Kernel,
    RowSettings,
    begins_branches,
    choose_kernel,
    contexts_of,
)

__all__ = [
    "Direction",
    "Kernel",
    "Layout",
    "RowSettings",
    "attend_within",
    "begins_branches",
    "choose_kernel",
    "contexts_of",
    "has_sliding_windows",
    "layout_of",
]

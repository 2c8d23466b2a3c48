"""Attention within the dialogues of a packed row. One module per kernel; all give the same result.

T tokens of a row, B dialogues in it, h query heads, g heads of keys and values, d head size.
"""

from muco.plugins.backbones.decoder.attention.interface import (
    Layout,
    attend_within,
    has_sliding_windows,
    layout_of,
)
from muco.plugins.backbones.decoder.attention.kernels import (
    AttentionDirection,
    Kernel,
    RowSettings,
    choose_kernel,
    contexts_of,
    isolates_turns,
)

__all__ = [
    "AttentionDirection",
    "Kernel",
    "Layout",
    "RowSettings",
    "attend_within",
    "choose_kernel",
    "contexts_of",
    "has_sliding_windows",
    "isolates_turns",
    "layout_of",
]

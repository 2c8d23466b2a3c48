"""The connection to transformers: its attention layers call the layout of the row."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from muco.core.errors import MucoError
from muco.plugins.backbones.decoder.attention.kernels import Kernel

_NAME = "muco_within"
"""Name under which transformers knows our attention function."""


class Layout(Protocol):
    """Attention of one packed row; built once per row and used by every layer."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float
    ) -> Tensor:
        """Return [1, T, h, d] of queries [1, h, T, d], keys and values [1, g, T, d]."""
        ...


def layout_of(
    kernel: Kernel, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True
) -> Layout:
    """Return the layout of a row for a kernel.

    Args:
        kernel: not `auto`.
        cu_seqlens: int64 [B + 1], the start of each dialogue, and T.
        segment_ids: int64 [1, T]; None if no turn is isolated.
        causal: whether a token sees only earlier ones.
    """
    if kernel == "flash_varlen":
        from muco.plugins.backbones.decoder.attention.flash_varlen import VarlenLayout

        return VarlenLayout(cu_seqlens, segment_ids, causal=causal)
    if kernel == "flex":
        from muco.plugins.backbones.decoder.attention.flex import FlexLayout

        return FlexLayout(cu_seqlens, segment_ids, causal=causal)
    from muco.plugins.backbones.decoder.attention.sdpa import BucketLayout

    return BucketLayout(cu_seqlens, segment_ids, causal=causal)


def attend_within(decoder: Any) -> None:
    """Make a transformers decoder attend by the argument `layout` of its forward.

    Raises:
        MucoError: the decoder has sliding windows, which packed rows do not support.
    """
    from transformers import AttentionInterface

    if has_sliding_windows(decoder.config):
        raise MucoError("backbone.rows: this model has sliding windows; take rows: padded")
    AttentionInterface.register(_NAME, _attend)
    decoder.set_attn_implementation(_NAME)


def has_sliding_windows(config: Any) -> bool:
    """Return whether a transformers decoder of this configuration has layers with a sliding window."""
    layers = getattr(config, "layer_types", None)
    if layers:
        return "sliding_attention" in layers
    # Mistral has no layer types: all of its layers have the window, or none.
    return getattr(config, "sliding_window", None) is not None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    return layout.attend(module, query, key, value, scaling=scaling, dropout=dropout), None

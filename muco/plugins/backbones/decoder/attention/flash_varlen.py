"""The kernel `flash_varlen`: flash attention over sequences of any lengths, on CUDA in half precision."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from muco.core.errors import MucoError
from muco.plugins.backbones.decoder.attention.segments import segments_of


class VarlenLayout:
    """No padding. Each isolated turn reads the keys and values of its prefix."""

    def __init__(self, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> None:
        self.window = (-1, 0) if causal else (-1, -1)
        segments = segments_of(cu_seqlens, segment_ids)
        queries, keys = [len(each.own) for each in segments], [each.num_keys for each in segments]
        self.query_ends, self.key_ends = (_ends(each, cu_seqlens.device) for each in (queries, keys))
        """int32 [S + 1] each, for S segments. The queries are the row's tokens in order."""
        self.key_index = None
        """int64 [number of keys]: the index in the row of each key; None if they are the tokens in order."""
        if queries != keys:
            index = [token for each in segments for token in (*each.prefix, *each.own)]
            self.key_index = torch.tensor(index, device=cu_seqlens.device)
        self.longest_query, self.longest_key = max(queries), max(keys)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float
    ) -> Tensor:
        """Return [1, T, h, d] of queries [1, h, T, d], keys and values [1, g, T, d].

        Raises:
            MucoError: the model has dropout in attention, which the kernel does not support.
        """
        from torch.nn.attention.varlen import varlen_attn

        if dropout:
            raise MucoError("backbone.attention: flash_varlen has no dropout; take flex or sdpa")
        dtype = _half(query)
        queries, keys, values = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
        if self.key_index is not None:
            keys, values = keys.index_select(0, self.key_index), values.index_select(0, self.key_index)
        out = varlen_attn(
            queries.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            self.query_ends,
            self.key_ends,
            self.longest_query,
            self.longest_key,
            scale=scaling,
            window_size=self.window,
            enable_gqa=True,
        )
        return out.to(query.dtype)[None]  # type: ignore[union-attr]


def _ends(sizes: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)


def _half(query: Tensor) -> torch.dtype:
    """Return the dtype to compute in: that of the queries, or autocast's."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise MucoError(
            f"backbone.attention: flash_varlen computes in bfloat16, not {query.dtype}; "
            "set train.precision: bfloat16, or take flex or sdpa"
        )
    return query.dtype

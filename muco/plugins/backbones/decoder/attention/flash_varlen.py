"""The kernel `flash_varlen`: flash attention over sequences of any lengths, on CUDA in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from muco.core.errors import MucoError
from muco.plugins.backbones.decoder.token_sequence import PREFIX


@dataclass(frozen=True)
class Segments:
    """A row as S sequences of queries and keys; the keys of a sequence end with its queries.

    A dialogue is one sequence. With isolated turns, the prefix and each turn are sequences: the queries of a
    turn are its tokens, and its keys are the prefix and its tokens.
    """

    query_ends: list[int]
    """S + 1 ends, from 0. The queries of all sequences are the row's tokens in order."""
    key_ends: list[int]
    """S + 1 ends among the keys, from 0."""
    key_index: list[int] | None
    """The index in the row of each key; None if the keys are the tokens in order."""


def segments_of(cu_seqlens: list[int], segment_ids: list[int] | None) -> Segments:
    """Return the sequences of a row of T tokens.

    Args:
        cu_seqlens: B + 1, the start of each dialogue, and T.
        segment_ids: one per token; None if no turn is isolated.
    """
    if segment_ids is None:
        return Segments(cu_seqlens, cu_seqlens, None)
    query_ends, key_ends, key_index = [0], [0], list[int]()
    for start, stop in pairwise(cu_seqlens):
        prefix = range(start, start)
        for first, last in _runs(segment_ids, start, stop):
            own = range(first, last)
            if segment_ids[first] == PREFIX:
                prefix = own
            else:
                key_index.extend(prefix)
            key_index.extend(own)
            query_ends.append(last)
            key_ends.append(len(key_index))
    return Segments(query_ends, key_ends, key_index)


def _runs(segment_ids: list[int], start: int, stop: int) -> list[tuple[int, int]]:
    """Return the runs of equal segments between two indices."""
    changes = [index for index in range(start + 1, stop) if segment_ids[index] != segment_ids[index - 1]]
    return list(pairwise([start, *changes, stop]))


class VarlenLayout:
    """No padding. Each isolated turn reads the keys and values of its prefix."""

    def __init__(self, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> None:
        self.window = (-1, 0) if causal else (-1, -1)
        ids = None if segment_ids is None else segment_ids[0].tolist()
        segments = segments_of(cu_seqlens.tolist(), ids)
        device = cu_seqlens.device
        self.query_ends = torch.tensor(segments.query_ends, dtype=torch.int32, device=device)
        self.key_index = None
        self.key_ends = self.query_ends
        if segments.key_index is not None:
            self.key_ends = torch.tensor(segments.key_ends, dtype=torch.int32, device=device)
            self.key_index = torch.tensor(segments.key_index, device=device)
        self.longest_query = max(stop - start for start, stop in pairwise(segments.query_ends))
        self.longest_key = max(stop - start for start, stop in pairwise(segments.key_ends))

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

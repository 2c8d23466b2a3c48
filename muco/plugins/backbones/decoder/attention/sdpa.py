"""The kernel `sdpa`: attention of torch over segments of similar lengths, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muco.plugins.backbones.decoder.attention.products import attend
from muco.plugins.backbones.decoder.attention.segments import Segment, segments_of

_MIN_SHARE = 0.5
"""A bucket takes segments with at least this share of the longest one's keys, and of its queries."""


@dataclass(frozen=True)
class _Bucket:
    """R segments of similar lengths, gathered from the row and padded to Q queries and K keys."""

    queries: Tensor
    """int64 [R, Q], indices into the row; padding has the index of a segment's first token."""
    is_query: Tensor
    """bool [R, Q]; false for padding."""
    keys: Tensor
    """int64 [R, K], indices into the row."""
    mask: Tensor | None
    """bool [R, 1, Q, K]; None if plain causal or full attention is correct."""


class BucketLayout:
    """Only attention is padded. An isolated turn is gathered with the keys of its prefix and its own."""

    def __init__(self, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> None:
        self.causal = causal
        self.buckets = [
            _bucket(bucket, cu_seqlens.device, causal=causal)
            for similar in _similar(segments_of(cu_seqlens, segment_ids), lambda each: each.num_keys)
            for bucket in _similar(similar, lambda each: len(each.own))
        ]
        order = torch.cat([bucket.queries[bucket.is_query] for bucket in self.buckets])
        valid = torch.cat([bucket.is_query.flatten() for bucket in self.buckets]).nonzero()[:, 0]
        self.back = torch.empty_like(order).scatter_(0, order, valid)
        """int64 [T]: the index of each token's result in the concatenated results of the buckets."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float
    ) -> Tensor:
        """Return [1, T, h, d] of queries [1, h, T, d], keys and values [1, g, T, d]."""
        parts = []
        for bucket in self.buckets:
            out = attend(
                _gather(query, bucket.queries),
                _gather(key, bucket.keys),
                _gather(value, bucket.keys),
                mask=bucket.mask,
                causal=self.causal and bucket.mask is None,
                scaling=scaling,
                dropout=dropout,
            )
            parts.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts).index_select(0, self.back)[None]


def _similar(segments: Sequence[Segment], size: Callable[[Segment], int]) -> list[list[Segment]]:
    """Return the segments in groups of similar sizes, the largest first."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=size, reverse=True):
        if not groups or size(segment) < _MIN_SHARE * size(groups[-1][0]):
            groups.append([])
        groups[-1].append(segment)
    return groups


def _bucket(segments: list[Segment], device: torch.device, *, causal: bool) -> _Bucket:
    rows = [(each.prefix.start, len(each.prefix), each.own.start, len(each.own)) for each in segments]
    prefix_R1, shared_R1, own_R1, sizes_R1 = torch.tensor(rows, device=device).T[..., None]
    query_Q = torch.arange(int(sizes_R1.max()), device=device)
    key_K = torch.arange(max(each.num_keys for each in segments), device=device)
    is_query, is_key = query_Q < sizes_R1, key_K < shared_R1 + sizes_R1
    keys = torch.where(key_K < shared_R1, prefix_R1 + key_K, own_R1 + key_K - shared_R1)
    mask = None
    if causal and shared_R1.any():
        mask = is_key[:, None] & (key_K <= (shared_R1 + query_Q)[..., None])
    elif not causal and not is_key.all():
        mask = is_key[:, None].expand(-1, len(query_Q), -1)
    return _Bucket(
        own_R1 + query_Q.where(is_query, 0),
        is_query,
        keys.where(is_key, own_R1),
        None if mask is None else mask[:, None],
    )


def _gather(heads: Tensor, index: Tensor) -> Tensor:
    """Return [R, heads, L, d] of a row's [1, heads, T, d]."""
    rows, length = index.shape
    return heads[0].index_select(1, index.flatten()).unflatten(1, (rows, length)).transpose(0, 1)

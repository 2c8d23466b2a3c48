"""The kernel `sdpa`: attention of torch over dialogues of similar lengths, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from muco.plugins.backbones.decoder.packing import PADDING, segment_mask
from muco.plugins.backbones.decoder.token_sequence import PREFIX

_MIN_SHARE = 0.5
"""A bucket takes dialogues of at least this share of its longest dialogue's length."""


@dataclass(frozen=True)
class _Bucket:
    """R dialogues of similar lengths, gathered from the row and padded to the longest, L tokens."""

    index: Tensor
    """int64 [R, L], indices into the row; padding has the index of the dialogue's first token."""
    valid: Tensor
    """bool [R, L]"""
    mask: Tensor | None
    """bool [R, 1, L, L]; None if plain causal or full attention is correct."""


class BucketLayout:
    """Only attention is padded, and dialogues at most double in length."""

    def __init__(self, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> None:
        self.causal = causal
        ends = cu_seqlens.tolist()
        spans = sorted(pairwise(ends), key=lambda span: span[0] - span[1])
        groups: list[list[tuple[int, int]]] = []
        for start, stop in spans:
            longest = groups[-1][0][1] - groups[-1][0][0] if groups else 0
            if not groups or stop - start < _MIN_SHARE * longest:
                groups.append([])
            groups[-1].append((start, stop))
        self.buckets = [_bucket(group, segment_ids, cu_seqlens.device, causal=causal) for group in groups]
        order = torch.cat([bucket.index[bucket.valid] for bucket in self.buckets])
        valid = torch.cat([bucket.valid.flatten() for bucket in self.buckets]).nonzero()[:, 0]
        self.back = torch.empty_like(order).scatter_(0, order, valid)
        """int64 [T]: the index of each token's result in the concatenated results of the buckets."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float
    ) -> Tensor:
        """Return [1, T, h, d] of queries [1, h, T, d], keys and values [1, g, T, d]."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        parts = []
        for bucket in self.buckets:
            own_query, own_key, own_value = (_gather(each, bucket.index) for each in (query, key, value))
            out, _ = sdpa_attention_forward(
                module,
                own_query,
                own_key,
                own_value,
                bucket.mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=self.causal,
            )
            parts.append(out.flatten(0, 1))
        return torch.cat(parts).index_select(0, self.back)[None]


def _bucket(
    spans: list[tuple[int, int]], segment_ids: Tensor | None, device: torch.device, *, causal: bool
) -> _Bucket:
    starts, stops = torch.tensor(spans, device=device).T
    sizes = (stops - starts)[:, None]
    steps = torch.arange(int(sizes.max()), device=device)
    valid = steps < sizes
    index = starts[:, None] + torch.where(valid, steps, 0)
    own = torch.full_like(index, PREFIX) if segment_ids is None else segment_ids[0][index]
    # Causal queries do not see the padding, which comes after them.
    masked = (own > PREFIX).any() or not (causal or valid.all())
    mask = segment_mask(own.masked_fill(~valid, PADDING), causal=causal) if masked else None
    return _Bucket(index, valid, mask)


def _gather(heads: Tensor, index: Tensor) -> Tensor:
    """Return [R, heads, L, d] of a row's [1, heads, T, d]."""
    rows, length = index.shape
    return heads[0].index_select(1, index.flatten()).unflatten(1, (rows, length)).transpose(0, 1)

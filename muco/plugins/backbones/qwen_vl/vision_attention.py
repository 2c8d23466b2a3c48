"""Attention of the vision tower, over all pictures or windows of one size at once."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

from muco.plugins.backbones.decoder.attention.products import attend


class VisionAttention(nn.Module):
    """transformers' attention of Qwen-VL's vision tower with the same weights, which it calls once a picture.

    Thirty-two pictures of 16 patches take a twelfth of the time on a CPU.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.qkv = attention.qkv
        self.proj = attention.proj

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        """Return the outputs [P, D] of patches [P, D]; `cu_seqlens` has the start of each picture, and P."""
        query, key, value = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        query, key = (_rotated(each, *position_embeddings) for each in (query, key))
        return self.proj(_attend(query, key, value, cu_seqlens.diff().tolist()).flatten(1))


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [P, h, d] with rotary positions [P, d]; computed in float32, or in float64 if they are."""
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    return (wide * cos[:, None] + rotate_half(wide) * sin[:, None]).to(heads.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Return [P, h, d] of queries, keys and values [P, h, d] of sequences of these lengths."""
    sequences = [each.split(lengths) for each in (query, key, value)]
    outputs: dict[int, Tensor] = {}
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    for _, equal in groupby(by_length, key=lengths.__getitem__):
        indices = list(equal)
        batch = (torch.stack([each[index] for index in indices]).transpose(1, 2) for each in sequences)
        outputs |= zip(indices, attend(*batch).transpose(1, 2).unbind(), strict=True)
    return torch.cat([outputs[index] for index in range(len(lengths))])

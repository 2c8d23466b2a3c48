"""The kernel `flex`: FlexAttention with a block mask, compiled on CUDA."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from muco.core.errors import MucoError
from muco.plugins.backbones.decoder.token_sequence import PREFIX

_BLOCK = 128


class FlexLayout:
    """The kernel skips the blocks that are empty in the mask."""

    def __init__(self, cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> None:
        self.mask = block_mask(cu_seqlens, segment_ids, causal=causal)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float
    ) -> Tensor:
        """Return [1, T, h, d] of queries [1, h, T, d], keys and values [1, g, T, d].

        Raises:
            MucoError: the model has dropout in attention, which the kernel does not support.
        """
        if dropout:
            raise MucoError("backbone.attention: flex has no dropout; take sdpa")
        size = self.mask.shape[-1]
        padded = (
            torch.nn.functional.pad(each, (0, 0, 0, size - query.shape[2])) for each in (query, key, value)
        )
        out = _kernel(query.device.type)(*padded, block_mask=self.mask, scale=scaling, enable_gqa=True)
        return out[:, :, : query.shape[2]].transpose(1, 2)


def block_mask(cu_seqlens: Tensor, segment_ids: Tensor | None, *, causal: bool = True) -> BlockMask:
    """Return the mask of a packed row, padded to whole blocks, because the kernel is compiled once per size.

    A token of a turn sees its dialogue's prefix and its own turn; a token of the prefix sees the prefix; with
    `causal` only earlier tokens. Padding tokens see one another.
    """
    length = int(cu_seqlens[-1])
    size = -(-length // _BLOCK) * _BLOCK
    dialogue = torch.searchsorted(cu_seqlens, torch.arange(size, device=cu_seqlens.device), right=True)
    segment = torch.zeros_like(dialogue)
    if segment_ids is not None:
        segment[:length] = segment_ids[0]

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (segment[key] == PREFIX) | (segment[key] == segment[query])
        within = (dialogue[key] == dialogue[query]) & own
        return within & (key <= query) if causal else within

    return create_block_mask(sees, None, None, size, size, device=str(cu_seqlens.device), BLOCK_SIZE=_BLOCK)


@cache
def _kernel(device: str) -> Any:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention

"""A chunk's tokens before a transformers decoder: image features in their places, and who sees whom.

R rows, L tokens of a row, H hidden size, T image tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muco.plugins._shared.attention import Kernel, choose_kernel, layout_of
from muco.plugins._shared.rows import branch_mask


def place_features(embeds_RLH: Tensor, image_index: Tensor, features_TH: Tensor) -> Tensor:
    """Return the embeddings with image features in place of the placeholder's."""
    flat = embeds_RLH.flatten(0, 1)
    return flat.index_copy(0, image_index, features_TH.to(flat.dtype)).view_as(embeds_RLH)


def attention_of(kernel: Kernel, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of a decoder's forward that tell its layers who sees whom.

    Args:
        kernel: as the recipe has it.
        tensors: of the chunk; `borders` where its rows are packed, `branches` where turns are isolated.
        dtype: of the embeddings.
    """
    borders, branches = tensors.get("borders"), tensors.get("branches")
    if borders is None:
        return {"attention_mask": None if branches is None else branch_mask(branches)}
    half = dtype.itemsize == 2 or torch.is_autocast_enabled(borders.device.type)
    chosen = choose_kernel(kernel, borders.device, half=half)
    return {"attention_mask": None, "layout": layout_of(chosen, borders, branches)}

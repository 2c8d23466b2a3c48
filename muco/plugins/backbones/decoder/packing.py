"""Token sequences as the rows of a chunk: packed into one row without padding, or one per row, padded.

B dialogues, R rows, L tokens of a row, A axes of position: three for M-RoPE, one otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.turns import TurnSpans
from muco.plugins.backbones.decoder.token_sequence import PREFIX, TokenSequence, feature_index

PADDING = -1
"""The segment of padding, which no other token sees."""


@dataclass(frozen=True)
class Rows:
    """The tokens of a chunk."""

    tensors: dict[str, Tensor]
    """int64. `input_ids` [R, L]; packed, R is 1. `position_ids` [A, R, L]. `image_index`: indices of image
    features in the concatenated rows; only if there are any. `feature_index`: the row of each of them in the
    features of the distinct images; only if an image is repeated. `segment_ids` [R, L]; only if some turns
    are isolated or attention is not causal. `cu_seqlens` [B + 1]: the start of each dialogue in a packed row,
    and its end; only for packed rows."""
    spans: TurnSpans
    num_tokens: int
    num_padding_tokens: int


def packed_row(sequences: Sequence[TokenSequence]) -> Rows:
    """Concatenate the sequences into one row; every dialogue keeps its own positions."""
    cu_seqlens = np.cumsum([0, *map(len, sequences)])
    input_ids = np.concatenate([sequence.input_ids for sequence in sequences])[None]
    segment_ids = np.concatenate([sequence.segment_ids for sequence in sequences])[None]
    position_ids = np.concatenate([np.asarray(sequence.positions) for sequence in sequences], axis=1)[:, None]
    arrays = {"input_ids": input_ids, "position_ids": position_ids, "cu_seqlens": cu_seqlens}
    if (segment_ids > PREFIX).any():
        arrays["segment_ids"] = segment_ids
    return _rows(sequences, arrays, starts=cu_seqlens)


def padded_rows(sequences: Sequence[TokenSequence], *, padding_id: int, causal: bool = True) -> Rows:
    """Put each sequence into a row of its own, padded on the right.

    Args:
        sequences: those of all dialogues.
        padding_id: the padding token.
        causal: whether tokens see only earlier ones; if not, a mask must always exclude padding.
    """
    length = max(map(len, sequences))
    input_ids = np.full((len(sequences), length), padding_id, dtype=np.int64)
    segment_ids = np.full((len(sequences), length), PADDING, dtype=np.int64)
    position_ids = np.zeros((sequences[0].num_axes, len(sequences), length), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        size = len(sequence)
        input_ids[row, :size] = sequence.input_ids
        segment_ids[row, :size] = sequence.segment_ids
        position_ids[:, row, :size] = sequence.positions
    arrays = {"input_ids": input_ids, "position_ids": position_ids}
    if (segment_ids > PREFIX).any() or not causal:
        arrays["segment_ids"] = segment_ids
    return _rows(sequences, arrays, starts=np.arange(len(sequences)) * length)


def _rows(
    sequences: Sequence[TokenSequence], arrays: dict[str, NDArray[Any]], *, starts: NDArray[Any]
) -> Rows:
    """Return the rows and spans; sequence i starts at `starts[i]` of the concatenated rows."""

    def shifted(name: str) -> Tensor:
        indices = [
            start + index
            for start, sequence in zip(starts.tolist(), sequences, strict=False)
            for index in getattr(sequence, name)
        ]
        return torch.tensor(indices, dtype=torch.int64)

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if any(sequence.images for sequence in sequences):
        tensors["image_index"] = shifted("image_index")
        if (rows := feature_index(sequences)) is not None:
            tensors["feature_index"] = torch.from_numpy(rows)
    num_tokens = sum(map(len, sequences))
    return Rows(
        tensors=tensors,
        spans=TurnSpans(token=shifted("token"), start=shifted("start"), stop=shifted("stop")),
        num_tokens=num_tokens,
        num_padding_tokens=arrays["input_ids"].size - num_tokens,
    )


def segment_mask(segment_ids: Tensor, *, causal: bool = True) -> Tensor:
    """Return which query sees which key: bool [R, 1, L, L].

    A token of a turn sees the shared prefix and its own turn; a token of the prefix sees the prefix; with
    `causal` only earlier tokens. A padding token sees itself, because softmax needs one key at least.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    length = segment_ids.shape[1]
    allowed = ((key == PREFIX) | (key == query)) & (query != PADDING)
    if causal:
        allowed &= torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    return (allowed | itself)[:, None]

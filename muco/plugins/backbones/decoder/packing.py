"""Strands as the rows of a chunk: all in one row without padding, or one a row, padded to the longest.

B dialogues, R rows, L tokens of a row, A axes of position: three for M-RoPE, one elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.turns import TurnSpans
from muco.plugins.backbones.decoder.token_sequence import PREFIX, TokenSequence

PADDING = -1
"""The segment of tokens that nothing sees."""


@dataclass(frozen=True)
class Rows:
    """A chunk's tokens."""

    input_ids: Tensor
    """int64 [R, L]; packed, there is one row."""
    position_ids: Tensor
    """int64 [A, R, L]"""
    segment_ids: Tensor | None
    """int64 [R, L]; None where no turn is isolated."""
    cu_seqlens: Tensor | None
    """int64 [B + 1]: where dialogues begin in a packed row, and its end; None where each has its own."""
    image_index: Tensor
    """int64: places of image features, in rows laid end to end."""
    spans: TurnSpans
    num_tokens: int
    num_padding_tokens: int

    def tensors(self) -> dict[str, Tensor]:
        """Return what a backbone needs to encode the rows, by name; absent what is None."""
        found = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "segment_ids": self.segment_ids,
            "cu_seqlens": self.cu_seqlens,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def packed_row(sequences: Sequence[TokenSequence]) -> Rows:
    """Lay the sequences end to end in one row; every dialogue keeps its own positions."""
    cu_seqlens = np.cumsum([0, *map(len, sequences)])
    input_ids = np.concatenate([sequence.input_ids for sequence in sequences])[None]
    segment_ids = np.concatenate([sequence.segment_ids for sequence in sequences])[None]
    position_ids = np.concatenate([np.asarray(sequence.positions) for sequence in sequences], axis=1)[:, None]
    return _rows(sequences, input_ids, position_ids, segment_ids, starts=cu_seqlens, cu_seqlens=cu_seqlens)


def padded_rows(sequences: Sequence[TokenSequence], *, padding_id: int, causal: bool = True) -> Rows:
    """Lay the sequences out one a row, padded on the right.

    Args:
        sequences: of all dialogues.
        padding_id: the token that fills up.
        causal: whether tokens see earlier ones only; where not, a mask always tells what is padding.
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
    starts = np.arange(len(sequences)) * length
    return _rows(
        sequences, input_ids, position_ids, segment_ids, starts=starts, cu_seqlens=None, causal=causal
    )


def _rows(
    sequences: Sequence[TokenSequence],
    input_ids: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    segment_ids: NDArray[np.int64],
    *,
    starts: NDArray[np.int64],
    cu_seqlens: NDArray[np.int64] | None,
    causal: bool = True,
) -> Rows:
    """Return the rows and the spans of their turns; sequence i begins at `starts[i]`, rows end to end."""
    places: dict[str, list[int]] = {"token": [], "start": [], "stop": []}
    image_index: list[int] = []
    for start, sequence in zip(starts.tolist(), sequences, strict=False):
        for name, found in places.items():
            found.extend(start + place for place in getattr(sequence, name))
        image_index.extend(start + place for place in sequence.image_index)
    num_tokens = sum(map(len, sequences))
    return Rows(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segment_ids=torch.from_numpy(segment_ids) if (segment_ids > PREFIX).any() or not causal else None,
        cu_seqlens=None if cu_seqlens is None else torch.from_numpy(cu_seqlens),
        image_index=torch.tensor(image_index, dtype=torch.int64),
        spans=TurnSpans(**{name: torch.tensor(found) for name, found in places.items()}),
        num_tokens=num_tokens,
        num_padding_tokens=input_ids.size - num_tokens,
    )


def segment_mask(segment_ids: Tensor, *, causal: bool = True) -> Tensor:
    """Return who sees whom: bool [R, 1, L, L], query by key.

    A token of a turn sees the shared prefix and its own turn, one of the prefix the prefix; with `causal`
    only what comes before it. A padding token sees itself, so that no row of the softmax is empty.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    length = segment_ids.shape[1]
    allowed = ((key == PREFIX) | (key == query)) & (query != PADDING)
    if causal:
        allowed &= torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    return (allowed | itself)[:, None]

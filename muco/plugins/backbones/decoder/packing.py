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

from muco.core.turns import TurnPlaces
from muco.plugins.backbones.decoder.token_sequence import PREFIX, Strand

PADDING = -1
"""The branch of tokens that nothing sees."""


@dataclass(frozen=True)
class Rows:
    """A chunk's tokens."""

    input_ids: Tensor
    """int64 [R, L]; packed, there is one row."""
    position_ids: Tensor
    """int64 [A, R, L]"""
    branches: Tensor | None
    """int64 [R, L]; None where the borders say it all, no turn being isolated."""
    borders: Tensor | None
    """int64 [B + 1]: where dialogues begin in a packed row, and its end; None where each has its own."""
    image_index: Tensor
    """int64: places of image features, in rows laid end to end."""
    places: TurnPlaces
    num_tokens: int
    num_padding_tokens: int

    def tensors(self) -> dict[str, Tensor]:
        """Return what a backbone needs to encode the rows, by name; absent what is None."""
        found = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "branches": self.branches,
            "borders": self.borders,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def packed_row(strands: Sequence[Strand]) -> Rows:
    """Lay the strands end to end in one row; every dialogue keeps its own positions."""
    borders = np.cumsum([0, *map(len, strands)])
    input_ids = np.concatenate([strand.input_ids for strand in strands])[None]
    branches = np.concatenate([strand.branches for strand in strands])[None]
    position_ids = np.concatenate([np.asarray(strand.positions) for strand in strands], axis=1)[:, None]
    return _rows(strands, input_ids, position_ids, branches, starts=borders, borders=borders)


def padded_rows(strands: Sequence[Strand], *, padding_id: int, causal: bool = True) -> Rows:
    """Lay the strands out one a row, padded on the right.

    Args:
        strands: of all dialogues.
        padding_id: the token that fills up.
        causal: whether tokens see earlier ones only; where not, a mask always tells what is padding.
    """
    length = max(map(len, strands))
    input_ids = np.full((len(strands), length), padding_id, dtype=np.int64)
    branches = np.full((len(strands), length), PADDING, dtype=np.int64)
    position_ids = np.zeros((strands[0].num_axes, len(strands), length), dtype=np.int64)
    for row, strand in enumerate(strands):
        size = len(strand)
        input_ids[row, :size] = strand.input_ids
        branches[row, :size] = strand.branches
        position_ids[:, row, :size] = strand.positions
    starts = np.arange(len(strands)) * length
    return _rows(strands, input_ids, position_ids, branches, starts=starts, borders=None, causal=causal)


def _rows(
    strands: Sequence[Strand],
    input_ids: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    branches: NDArray[np.int64],
    *,
    starts: NDArray[np.int64],
    borders: NDArray[np.int64] | None,
    causal: bool = True,
) -> Rows:
    """Return the rows with the strands' places in them; strand i begins at `starts[i]`, rows end to end."""
    places: dict[str, list[int]] = {"token": [], "start": [], "stop": []}
    image_index: list[int] = []
    for start, strand in zip(starts.tolist(), strands, strict=False):
        for name, found in places.items():
            found.extend(start + place for place in getattr(strand, name))
        image_index.extend(start + place for place in strand.image_places)
    num_tokens = sum(map(len, strands))
    return Rows(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        branches=torch.from_numpy(branches) if (branches > PREFIX).any() or not causal else None,
        borders=None if borders is None else torch.from_numpy(borders),
        image_index=torch.tensor(image_index, dtype=torch.int64),
        places=TurnPlaces(**{name: torch.tensor(found) for name, found in places.items()}),
        num_tokens=num_tokens,
        num_padding_tokens=input_ids.size - num_tokens,
    )


def branch_mask(branches: Tensor, *, causal: bool = True) -> Tensor:
    """Return who sees whom: bool [R, 1, L, L], query by key.

    A token of a turn sees the shared prefix and its own turn, one of the prefix the prefix; with `causal`
    only what comes before it. A padding token sees itself, so that no row of the softmax is empty.
    """
    query, key = branches[:, :, None], branches[:, None, :]
    length = branches.shape[1]
    allowed = ((key == PREFIX) | (key == query)) & (query != PADDING)
    if causal:
        allowed &= torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=branches.device)
    return (allowed | itself)[:, None]

"""A dialogue laid out as tokens, and many of them as the rows of a chunk.

R rows, L tokens of the longest row, A axes of position: three for M-RoPE, one elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.dialogue import TurnKey
from muco.core.image import EncodedImage
from muco.core.turns import TurnPlaces

PREFIX = 0
"""The branch of tokens that every turn sees."""
PADDING = -1
"""The branch of tokens that nothing sees."""


@dataclass
class Strand:
    """One dialogue's tokens, in growth: call `put` and `end_turn` in reading order."""

    num_axes: int
    input_ids: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    """One list an axis."""
    image_places: list[int] = field(default_factory=list)
    """Where image features replace token embeddings."""
    images: list[EncodedImage] = field(default_factory=list)
    keys: list[TurnKey] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    branch: int = PREFIX
    next_position: int = 0
    prefix_end: int = 0
    """The position at which isolated turns start anew."""

    def __post_init__(self) -> None:
        self.positions = [[] for _ in range(self.num_axes)]

    def __len__(self) -> int:
        return len(self.input_ids)

    def put_text(self, ids: Sequence[int]) -> None:
        """Append tokens, one position each."""
        end = self.next_position + len(ids)
        for axis in self.positions:
            axis.extend(range(self.next_position, end))
        self._put(ids)
        self.next_position = end

    def put_image(self, image: EncodedImage, token_id: int, offsets: NDArray[np.int64], extent: int) -> None:
        """Append an image's tokens.

        Args:
            image: the image.
            token_id: the placeholder, once for each of the image's tokens.
            offsets: int64 [A, tokens], positions counted from here.
            extent: how many positions the image takes.
        """
        first = len(self)
        for axis, steps in zip(self.positions, (offsets + self.next_position).tolist(), strict=True):
            axis.extend(steps)
        self._put([token_id] * offsets.shape[1])
        self.image_places.extend(range(first, len(self)))
        self.images.append(image)
        self.next_position += extent

    def begin_turns(self) -> None:
        """End the shared prefix."""
        self.prefix_end = self.next_position

    def begin_turn(self, *, isolated: bool) -> None:
        """Start a turn; an isolated one gets a branch of its own and positions after the prefix."""
        self.start.append(len(self))
        if isolated:
            self.branch += 1
            self.next_position = self.prefix_end

    def mark_embedding(self) -> None:
        """Note that the token just put is the turn's embedding token."""
        self.token.append(len(self) - 1)

    def end_turn(self, key: TurnKey) -> None:
        """Close the turn under its identity."""
        self.stop.append(len(self))
        self.keys.append(key)

    def _put(self, ids: Sequence[int]) -> None:
        self.input_ids.extend(ids)
        self.branches.extend([self.branch] * len(ids))


@dataclass(frozen=True)
class Rows:
    """Strands as rows, padded on the right to the longest."""

    input_ids: Tensor
    """int64 [R, L]"""
    position_ids: Tensor
    """int64 [A, R, L]"""
    branches: Tensor | None
    """int64 [R, L]; None where causal attention alone is right, no turn being isolated."""
    image_index: Tensor
    """int64: places of image features, in rows laid end to end."""
    places: TurnPlaces
    num_tokens: int
    num_padding_tokens: int


def rows_of(strands: Sequence[Strand], *, padding_id: int) -> Rows:
    """Lay the strands out, one a row."""
    length = max(map(len, strands))
    num_axes = strands[0].num_axes
    input_ids = np.full((len(strands), length), padding_id, dtype=np.int64)
    branches = np.full((len(strands), length), PADDING, dtype=np.int64)
    position_ids = np.zeros((num_axes, len(strands), length), dtype=np.int64)
    places: dict[str, list[int]] = {"token": [], "start": [], "stop": []}
    image_index: list[int] = []
    for row, strand in enumerate(strands):
        size = len(strand)
        input_ids[row, :size] = strand.input_ids
        branches[row, :size] = strand.branches
        position_ids[:, row, :size] = strand.positions
        for name, found in places.items():
            found.extend(row * length + place for place in getattr(strand, name))
        image_index.extend(row * length + place for place in strand.image_places)
    num_tokens = sum(map(len, strands))
    return Rows(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        branches=torch.from_numpy(branches) if (branches > PREFIX).any() else None,
        image_index=torch.tensor(image_index, dtype=torch.int64),
        places=TurnPlaces(**{name: torch.tensor(found) for name, found in places.items()}),
        num_tokens=num_tokens,
        num_padding_tokens=input_ids.size - num_tokens,
    )


def branch_mask(branches: Tensor) -> Tensor:
    """Return who sees whom where turns are isolated: bool [R, 1, L, L], query by key.

    A token sees what comes before it in the shared prefix and in its own turn. A padding token sees
    itself, so that no row of the softmax is empty.
    """
    query, key = branches[:, :, None], branches[:, None, :]
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branches.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=branches.device)
    allowed = ((key == PREFIX) | (key == query)) & (query != PADDING) & causal
    return (allowed | itself)[:, None]

"""A dialogue laid out as tokens; A axes of position: three for M-RoPE, one elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from muco.core.backbone import Cost
from muco.core.dialogue import TurnKey
from muco.core.video import Visual

PREFIX = 0
"""The segment of tokens that every turn sees."""


@dataclass
class TokenSequence:
    """One dialogue's tokens, in growth: call `put` and `end_turn` in reading order."""

    num_axes: int
    input_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    """One list an axis."""
    image_index: list[int] = field(default_factory=list)
    """Where image features replace token embeddings."""
    images: list[Visual] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    """Of each image: into how many pictures it is cut for the vision tower; of a video, its frames."""
    num_patches: int = 0
    """Of all images: patches that enter the vision tower."""
    keys: list[TurnKey] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    segment: int = PREFIX
    next_position: int = 0
    prefix_end: int = 0
    """The position at which isolated turns start anew."""

    def __post_init__(self) -> None:
        self.positions = [[] for _ in range(self.num_axes)]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def cost(self) -> Cost:
        """The dialogue's tokens and patches."""
        return Cost(len(self), self.num_patches)

    def put_text(self, ids: Sequence[int]) -> None:
        """Append tokens, one position each."""
        end = self.next_position + len(ids)
        for axis in self.positions:
            axis.extend(range(self.next_position, end))
        self._put(ids)
        self.next_position = end

    def put_image(
        self,
        image: Visual,
        token_id: int,
        offsets: NDArray[np.int64],
        extent: int,
        *,
        num_patches: int,
        num_tiles: int = 1,
    ) -> None:
        """Append an image's tokens, or those of a video that stand in one run.

        Args:
            image: the image or video.
            token_id: the placeholder, once for each of the image's tokens.
            offsets: int64 [A, tokens], positions counted from here.
            extent: how many positions the image takes.
            num_patches: how many patches of it enter the vision tower.
            num_tiles: into how many pictures it is cut for the vision tower.
        """
        self.show(image, num_patches=num_patches, num_tiles=num_tiles)
        self.put_features(token_id, offsets, extent)

    def show(self, image: Visual, *, num_patches: int, num_tiles: int = 1) -> None:
        """Note an image or a video, whose tokens follow, in one run or in several."""
        self.images.append(image)
        self.tiles.append(num_tiles)
        self.num_patches += num_patches

    def put_features(self, token_id: int, offsets: NDArray[np.int64], extent: int) -> None:
        """Append a run of the tokens whose embeddings come from the vision tower; see `put_image`."""
        first = len(self)
        for axis, steps in zip(self.positions, (offsets + self.next_position).tolist(), strict=True):
            axis.extend(steps)
        self._put([token_id] * offsets.shape[1])
        self.image_index.extend(range(first, len(self)))
        self.next_position += extent

    def begin_turns(self) -> None:
        """End the shared prefix."""
        self.prefix_end = self.next_position

    def begin_turn(self, *, isolated: bool) -> None:
        """Start a turn; an isolated one gets a segment of its own and positions after the prefix."""
        self.start.append(len(self))
        if isolated:
            self.segment += 1
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
        self.segment_ids.extend([self.segment] * len(ids))

"""One dialogue as a sequence of tokens; A axes of position: three for M-RoPE, one otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from muco.core.backbone import Cost
from muco.core.dialogue import TurnKey
from muco.core.video import Visual

PREFIX = 0
"""The segment of tokens that every turn sees."""


@dataclass
class SequenceImage:
    """An image or a video of a sequence."""

    visual: Visual
    num_patches: int
    """Patches that enter the vision tower."""
    num_tiles: int
    """The number of pictures for the vision tower: the tiles of an image, or the frames of a video."""
    num_tokens: int = 0
    """Tokens whose embeddings are features of it."""

    @property
    def key(self) -> tuple[int, int]:
        """Images with an equal key have equal features."""
        return self.visual.content_id, self.num_tiles


@dataclass
class TokenSequence:
    """The tokens of one dialogue. A processor fills it in reading order, turn by turn."""

    num_axes: int
    input_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    """One list per axis."""
    image_index: list[int] = field(default_factory=list)
    """Indices of the tokens whose embeddings are image features."""
    images: list[SequenceImage] = field(default_factory=list)
    """In the order of their tokens."""
    keys: list[TurnKey] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    segment: int = PREFIX
    next_position: int = 0
    prefix_end: int = 0
    """The first position of isolated turns."""
    num_positions: int = 0
    """Positions that the longest turn reaches to, the prefix included."""

    def __post_init__(self) -> None:
        self.positions = [[] for _ in range(self.num_axes)]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def cost(self) -> Cost:
        """The number of tokens, and of patches of distinct images."""
        images = {image.key: image.num_patches for image in self.images}
        return Cost(len(self), sum(images.values()), images)

    def put_text(self, ids: Sequence[int]) -> None:
        """Append tokens, one position each."""
        end = self.next_position + len(ids)
        for axis in self.positions:
            axis.extend(range(self.next_position, end))
        self._put(ids)
        self.next_position = end

    def add_image(self, image: Visual, *, num_patches: int, num_tiles: int = 1) -> None:
        """Add an image or a video. Its tokens follow by `put_features`, in one run or in several."""
        self.images.append(SequenceImage(image, num_patches, num_tiles))

    def put_features(self, token_id: int, offsets: NDArray[np.int64], extent: int) -> None:
        """Append a run of tokens whose embeddings are image features.

        Args:
            token_id: the placeholder, repeated for each token.
            offsets: int64 [A, tokens], positions relative to the next position.
            extent: how many positions the run takes.
        """
        first = len(self)
        for axis, steps in zip(self.positions, (offsets + self.next_position).tolist(), strict=True):
            axis.extend(steps)
        self._put([token_id] * offsets.shape[1])
        self.image_index.extend(range(first, len(self)))
        self.images[-1].num_tokens += offsets.shape[1]
        self.next_position += extent

    def end_prefix(self) -> None:
        """End the shared prefix."""
        self.prefix_end = self.next_position

    def begin_turn(self, *, isolated: bool) -> None:
        """Start a turn. An isolated one has its own segment, and its positions start after the prefix."""
        self.start.append(len(self))
        if isolated:
            self.segment += 1
            self.next_position = self.prefix_end

    def mark_embedding(self) -> None:
        """Mark the last token as the turn's embedding token."""
        self.token.append(len(self) - 1)

    def end_turn(self, key: TurnKey) -> None:
        """End the turn with this identity."""
        self.stop.append(len(self))
        self.num_positions = max(self.num_positions, self.next_position)
        self.keys.append(key)

    def _put(self, ids: Sequence[int]) -> None:
        self.input_ids.extend(ids)
        self.segment_ids.extend([self.segment] * len(ids))


def distinct_images(sequences: Iterable[TokenSequence]) -> list[SequenceImage]:
    """Return the images of all sequences, equal ones once, in the order of their first tokens."""
    images: dict[tuple[int, int], SequenceImage] = {}
    for sequence in sequences:
        for image in sequence.images:
            images.setdefault(image.key, image)
    return list(images.values())


def feature_index(sequences: Iterable[TokenSequence]) -> NDArray[np.int64] | None:
    """Return the row of each image token's feature, int64 [T], in the features of `distinct_images`.

    None if no image is repeated: the features are in the order of the tokens.
    """
    first_row: dict[tuple[int, int], int] = {}
    num_rows = 0
    indices: list[NDArray[np.int64]] = []
    for image in (image for sequence in sequences for image in sequence.images):
        row = first_row.setdefault(image.key, num_rows)
        num_rows += image.num_tokens if row == num_rows else 0
        indices.append(np.arange(row, row + image.num_tokens))
    index = np.concatenate(indices)
    return None if len(index) == num_rows else index

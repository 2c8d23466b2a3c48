"""How the frames of a video become patches, tokens and positions, as each family of Qwen-VL has it.

T frames, S slices of `depth` frames each, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError
from muco.core.video import Video


@dataclass(frozen=True)
class Frames:
    """What a recipe and a model decide about videos.

    Qwen2-VL counts slices on its axis of time. Qwen2.5-VL counts time there, so many positions a second.
    Qwen3-VL tells the time before each slice in words, and gives every slice the positions of an image.
    """

    max_frames: int
    min_pixels: int
    """Of each frame."""
    max_pixels: int
    """Of each frame."""
    positions_per_second: float | None = None
    """Of Qwen2.5-VL."""
    told: bool = False
    """Whether the time is told in words: Qwen3-VL."""


@dataclass(frozen=True)
class Cut:
    """A video as it enters the model."""

    places: list[int]
    """int [T]: its frames in the whole video, the last one repeated until they fill slices."""
    height: int
    """Of each frame in pixels, once resized."""
    width: int
    seconds_per_slice: float
    depth: int

    @property
    def num_slices(self) -> int:
        """S."""
        return len(self.places) // self.depth


def cut(video: Video, frames: Frames, images: Any) -> Cut:
    """Return the frames that are taken, and their size.

    Args:
        video: as it lies in a shard.
        frames: what is decided about videos.
        images: the image processor; its patches are those of frames.

    Raises:
        DataError: frames of differing sizes, too long or broken.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    depth, factor = images.temporal_patch_size, images.patch_size * images.merge_size
    places = video.frame_indices(frames.max_frames)
    seconds_per_slice = depth * video.seconds_per_frame * len(video.frames) / len(places)
    places += places[-1:] * (-len(places) % depth)
    width, height = video.size
    try:
        if frames.told and min(width, height) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        height, width = smart_resize(
            height, width, factor=factor, min_pixels=frames.min_pixels, max_pixels=frames.max_pixels
        )
    except ValueError as error:
        raise DataError(f"video of {video.size[0]} x {video.size[1]} pixels: {error}") from None
    return Cut(places, height, width, seconds_per_slice, depth)


def slice_positions(made: Cut, frames: Frames) -> NDArray[np.int64]:
    """Return where each slice lies on the axis of time, int64 [S], from the first one on.

    In float32 and rounded down, as transformers has it.
    """
    steps = np.arange(made.num_slices, dtype=np.int64)
    if frames.positions_per_second is None:
        return steps
    interval = np.float32(frames.positions_per_second) * np.float32(made.seconds_per_slice)
    return (steps.astype(np.float32) * interval).astype(np.int64)


def slice_times(video: Video, made: Cut) -> list[str]:
    """Return in words when each slice is, halfway from its first frame to its last."""
    seconds = [place * video.seconds_per_frame for place in made.places]
    middles = [(seconds[at] + seconds[at + made.depth - 1]) / 2 for at in range(0, len(seconds), made.depth)]
    return [f"<{middle:.1f} seconds>" for middle in middles]


def patches_of(video: Video, made: Cut, images: Any) -> NDArray[np.uint8]:
    """Return a video's patches, slice by slice in the order of the language model's tokens.

    uint8 [S x rows x columns, channels x depth x patch x patch].

    Raises:
        DataError: a frame that cannot be decoded.
    """
    decoded = {
        place: video.frames[place].decode().resize((made.width, made.height), images.resample)
        for place in dict.fromkeys(made.places)
    }
    pixels_THWC = np.stack([np.asarray(decoded[place]) for place in made.places])
    patch, merge = images.patch_size, images.merge_size
    rows, columns = made.height // (patch * merge), made.width // (patch * merge)
    parts = pixels_THWC.reshape(made.num_slices, made.depth, rows, merge, patch, columns, merge, patch, -1)
    # Slices, rows, columns; within a token its rows and columns; then channels, frames, pixels.
    ordered = parts.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(made.num_slices * rows * columns * merge**2, -1)

"""Patches, tokens and positions of a video's frames, for each family of Qwen-VL.

T frames, S slices of `depth` frames each, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muco.core.errors import DataError
from muco.core.video import Video
from muco.plugins.backbones.qwen_vl.pixels import slice_patches


@dataclass(frozen=True)
class Frames:
    """The settings of videos, from the recipe and the model.

    The time axis of Qwen2-VL counts slices; that of Qwen2.5-VL counts positions per second. Qwen3-VL
    writes the time as text before each slice and gives every slice the positions of an image.
    """

    max_frames: int
    min_pixels: int
    """Limit of each frame."""
    max_pixels: int
    positions_per_second: float | None = None
    """Only Qwen2.5-VL."""
    writes_times: bool = False
    """Whether the time of each slice is written as text: Qwen3-VL."""


@dataclass(frozen=True)
class Cut:
    """A video as it enters the model."""

    indices: list[int]
    """[T]: the indices of its frames in the whole video; the last one is repeated to fill the last slice."""
    height: int
    """Of each frame in pixels, after resizing."""
    width: int
    seconds_per_slice: float
    depth: int

    @property
    def num_slices(self) -> int:
        """S."""
        return len(self.indices) // self.depth


def cut(video: Video, frames: Frames, images: Any) -> Cut:
    """Return the frames to use, and their size.

    Args:
        video: as in a shard.
        frames: the settings.
        images: the image processor, which has the sizes of patches.

    Raises:
        DataError: the frames differ in size, are too elongated or broken.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    depth, factor = images.temporal_patch_size, images.patch_size * images.merge_size
    indices = video.frame_indices(frames.max_frames)
    seconds_per_slice = depth * video.seconds_per_frame * len(video.frames) / len(indices)
    indices += indices[-1:] * (-len(indices) % depth)
    width, height = video.size
    try:
        if frames.writes_times and min(width, height) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        height, width = smart_resize(
            height, width, factor=factor, min_pixels=frames.min_pixels, max_pixels=frames.max_pixels
        )
    except ValueError as error:
        raise DataError(f"video of {video.size[0]} x {video.size[1]} pixels: {error}") from None
    return Cut(indices, height, width, seconds_per_slice, depth)


def slice_positions(made: Cut, frames: Frames) -> NDArray[np.int64]:
    """Return the position of each slice on the time axis, relative to the first one, int64 [S].

    Computed in float32 and rounded down, as in transformers.
    """
    steps = np.arange(made.num_slices, dtype=np.int64)
    if frames.positions_per_second is None:
        return steps
    interval = np.float32(frames.positions_per_second) * np.float32(made.seconds_per_slice)
    return (steps.astype(np.float32) * interval).astype(np.int64)


def slice_times(video: Video, made: Cut) -> list[str]:
    """Return the time of each slice as text: the middle of its first and last frame."""
    seconds = [index * video.seconds_per_frame for index in made.indices]
    middles = [(seconds[at] + seconds[at + made.depth - 1]) / 2 for at in range(0, len(seconds), made.depth)]
    return [f"<{middle:.1f} seconds>" for middle in middles]


def patches_of(video: Video, made: Cut, images: Any) -> NDArray[np.uint8]:
    """Return a video's patches, slice by slice; uint8 [S x rows x columns, channels x depth x patch x patch].

    Raises:
        DataError: a frame cannot be decoded.
    """
    decoded = {
        index: video.frames[index].decode().resize((made.width, made.height), images.resample)
        for index in dict.fromkeys(made.indices)
    }
    pixels_THWC = np.stack([np.asarray(decoded[index]) for index in made.indices])
    pixels_SFHWC = pixels_THWC.reshape(made.num_slices, made.depth, *pixels_THWC.shape[1:])
    return np.concatenate(slice_patches(pixels_SFHWC, images))

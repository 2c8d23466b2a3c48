"""Pixels of images and frames in the order of the patches of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image


def image_patches(images: Sequence[Image], processor: Any) -> list[NDArray[np.uint8]]:
    """Return the patches of RGB images whose sizes are whole patches.

    Args:
        images: resized.
        processor: the image processor, which has the sizes of patches.

    Returns:
        uint8 [rows x columns, channels x depth x patch x patch] of each image.
    """
    patches: dict[int, NDArray[np.uint8]] = {}
    sizes = [image.size for image in images]
    by_size = sorted(range(len(images)), key=sizes.__getitem__)
    for _, equal in groupby(by_size, key=sizes.__getitem__):
        indices = list(equal)
        pixels_NHWC = np.stack([np.asarray(images[index]) for index in indices])
        patches |= zip(indices, slice_patches(pixels_NHWC[:, None], processor), strict=True)
    return [patches[index] for index in range(len(images))]


def slice_patches(pixels_SFHWC: NDArray[np.uint8], processor: Any) -> NDArray[np.uint8]:
    """Return the patches of slices of frames, in the order of the language model's tokens.

    Args:
        pixels_SFHWC: uint8, `temporal_patch_size` frames of each slice, or one that stands for all of them.
        processor: the image processor, which has the sizes of patches.

    Returns:
        uint8 [S, rows x columns, channels x depth x patch x patch].
    """
    patch, merge, depth = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    slices, frames, height, width, channels = pixels_SFHWC.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    parts = pixels_SFHWC.reshape(slices, frames, rows, merge, patch, columns, merge, patch, channels)
    # Rows and columns of tokens; within a token its rows and columns; then channels, frames, pixels.
    ordered = parts.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    full = np.broadcast_to(ordered, (*ordered.shape[:6], depth, patch, patch))
    return full.reshape(slices, rows * columns * merge**2, -1)

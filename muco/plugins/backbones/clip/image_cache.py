"""Features of images that a frozen tower has computed, kept in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageCache:
    """Compute the features of an image once, as long as the tower's weights do not change.

    Each image is encoded apart from the others. Else the last bits of its features would depend on the images
    beside it, and a resumed run would differ from an uninterrupted one.
    """

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self._features: dict[tuple[object, ...], Tensor] = {}

    def encode(self, tower: nn.Module, pixels: Tensor, image_ids: Tensor) -> Tensor:
        """Return the features of a frozen tower, [images, ...], without gradient.

        `pixels` is [images, 3, height, width], `image_ids` int64 [images], hashes of the images' contents.
        """
        device = pixels.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
        rows = [
            self._row(tower, image, (image_id, pixels.device, precision))
            for image_id, image in zip(image_ids.tolist(), pixels.split(1), strict=True)
        ]
        return torch.cat(rows)

    def _row(self, tower: nn.Module, image: Tensor, key: tuple[object, ...]) -> Tensor:
        """Return the features of one image, [1, ...]."""
        row = self._features.get(key)
        if row is None:
            # A tensor of inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                row = tower(image.clone())
            if len(self._features) < self.max_images:
                self._features[key] = row
        return row

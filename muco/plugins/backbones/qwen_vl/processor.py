"""Rendering dialogues for Qwen-VL: tokens, M-RoPE positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from muco.core.dialogue import Dialogue
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.plugins._shared.attention import Direction
from muco.plugins._shared.chat import IMAGE_PAD, Pieces, TemplateName, pieces_of
from muco.plugins._shared.strand import Strand
from muco.plugins._shared.strand_processor import StrandProcessor


class QwenVLProcessor(StrandProcessor):
    """A tokenizer, an image processor and a chat template."""

    num_axes = 3

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: TemplateName,
        *,
        padded: bool = False,
        direction: Direction = "causal",
    ) -> None:
        super().__init__(tokenizer, image_processor, padded=padded, direction=direction)
        self.template: TemplateName = template
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    def pieces(self, dialogue: Dialogue) -> Pieces:
        return pieces_of(dialogue, self.template)

    def put_image(self, strand: Strand, images: Sequence[EncodedImage], place: int) -> None:
        _, grid_h, grid_w = self._grid(images[place])
        merge = self.image_processor.merge_size
        height, width = grid_h // merge, grid_w // merge
        steps = np.indices((1, height, width), dtype=np.int64).reshape(self.num_axes, -1)
        strand.put_image(images[place], self.image_id, steps, max(height, width))

    def patches(self, strand: Strand) -> int:
        return len(strand.image_places) * self.image_processor.merge_size**2

    def pixels(self, strands: Sequence[Strand]) -> dict[str, Tensor]:
        images = [image.decode() for strand in strands for image in strand.images]
        made = self.image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        return {"pixel_values": made["pixel_values"].byte(), "image_grid_thw": made["image_grid_thw"]}

    def _grid(self, image: EncodedImage) -> tuple[int, int, int]:
        """Return frames, rows and columns of patches after the processor's resizing."""
        width, height = image.size
        patch, merge = self.image_processor.patch_size, self.image_processor.merge_size
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        try:
            resized_h, resized_w = smart_resize(
                height,
                width,
                factor=patch * merge,
                min_pixels=self.image_processor.size["shortest_edge"],
                max_pixels=self.image_processor.size["longest_edge"],
            )
        except ValueError as error:
            raise DataError(f"image of {width} x {height} pixels: {error}") from None
        return 1, resized_h // patch, resized_w // patch

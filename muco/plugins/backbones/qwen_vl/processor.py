"""Rendering dialogues for Qwen-VL: tokens, M-RoPE positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from muco.core.dialogue import Dialogue
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.video import Video, Visual
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat import (
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    Pieces,
    TemplateName,
    pieces_of,
)
from muco.plugins.backbones.decoder.chat_templates import layout
from muco.plugins.backbones.decoder.jinja_template import ChatFormat
from muco.plugins.backbones.decoder.processor import DecoderProcessor
from muco.plugins.backbones.decoder.token_sequence import SequenceImage, TokenSequence
from muco.plugins.backbones.qwen_vl.pixels import image_patches
from muco.plugins.backbones.qwen_vl.transformers_processor import transformers_processor
from muco.plugins.backbones.qwen_vl.video import Frames, cut, patches_of, slice_positions, slice_times

SmallImages = Literal["square", "keep_ratio"]


class QwenVLProcessor(DecoderProcessor):
    """A tokenizer, an image processor, a chat template and the settings of videos."""

    num_axes = 3

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: TemplateName,
        frames: Frames,
        *,
        small_images: SmallImages,
        rows: RowSettings,
    ) -> None:
        super().__init__(tokenizer, image_processor, rows)
        self.template: TemplateName = template
        self.frames = frames
        self.small_images: SmallImages = small_images
        self.image_id: int
        self.video_id: int
        self.image_id, self.video_id = tokenizer.convert_tokens_to_ids([IMAGE_PAD, VIDEO_PAD])

    def pieces(self, dialogue: Dialogue) -> Pieces:
        return pieces_of(dialogue, self.template)

    def chat_format(self) -> ChatFormat:
        image = VISION_START + IMAGE_PAD + VISION_END
        if self.template == "bare":
            return ChatFormat(layout("bare"), image)
        # `chatml_public` differs in reconstruction turns only, which nobody embeds after training.
        return ChatFormat(layout("chatml"), f"{image}\n", text_end="\n")

    def to_transformers(self, model_config: Any, chat_template: str) -> Any:
        family = model_config.model_type
        return transformers_processor(self.tokenizer, self.image_processor, family, chat_template)

    def export_limits(self) -> Sequence[str]:
        if self.small_images == "keep_ratio":
            return ()
        side = self.image_processor.patch_size * self.image_processor.merge_size
        return (
            f"Images with a side below {side} pixels are resized in another way than in muco, so their "
            "vectors differ. Enlarge them before.",
        )

    def put_image(self, sequence: TokenSequence, images: Sequence[Visual], index: int) -> None:
        image = images[index]
        if isinstance(image, Video):
            self._put_video(sequence, image)
            return
        _, grid_h, grid_w = self._grid(image)
        merge = self.image_processor.merge_size
        height, width = grid_h // merge, grid_w // merge
        sequence.add_image(image, num_patches=grid_h * grid_w)
        sequence.put_features(self.image_id, _steps(1, height, width), max(height, width))

    def pixels(self, images: Sequence[SequenceImage]) -> dict[str, Tensor]:
        visuals = [image.visual for image in images]
        stills = iter(self._images([each for each in visuals if isinstance(each, EncodedImage)]))
        made = [self._video(each) if isinstance(each, Video) else next(stills) for each in visuals]
        patches, grids = zip(*made, strict=True)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}

    def _put_video(self, sequence: TokenSequence, video: Video) -> None:
        made = cut(video, self.frames, self.image_processor)
        side = self.image_processor.patch_size * self.image_processor.merge_size
        height, width = made.height // side, made.width // side
        num_patches = made.num_slices * height * width * self.image_processor.merge_size**2
        sequence.add_image(video, num_patches=num_patches)
        if not self.frames.writes_times:
            steps = _steps(made.num_slices, height, width)
            steps[0] = slice_positions(made, self.frames)[steps[0]]
            sequence.put_features(self.video_id, steps, max(height, width))
            return
        for time in slice_times(video, made):
            self.put_text(sequence, time + VISION_START, special=True)
            sequence.put_features(self.video_id, _steps(1, height, width), max(height, width))
            self.put_text(sequence, VISION_END, special=True)

    def _images(self, images: Sequence[EncodedImage]) -> list[tuple[Tensor, list[int]]]:
        """Return each image's patches, uint8, and its grid."""
        grids = [self._grid(image) for image in images]
        resized = [self._resized(image, grid) for image, grid in zip(images, grids, strict=True)]
        patches = image_patches(resized, self.image_processor)
        return [(torch.from_numpy(each), list(grid)) for each, grid in zip(patches, grids, strict=True)]

    def _video(self, video: Video) -> tuple[Tensor, list[int]]:
        """Return a video's patches, uint8, and its grid."""
        made = cut(video, self.frames, self.image_processor)
        patch = self.image_processor.patch_size
        grid = [made.num_slices, made.height // patch, made.width // patch]
        return torch.from_numpy(patches_of(video, made, self.image_processor)), grid

    def _resized(self, image: EncodedImage, grid: tuple[int, int, int]) -> Image:
        """Return the decoded image in the size of its grid."""
        decoded = image.decode()
        size = self._size(decoded.size)
        if size != decoded.size:
            decoded = decoded.resize(size)
        patch, (_, rows, columns) = self.image_processor.patch_size, grid
        return decoded.resize((columns * patch, rows * patch), self.image_processor.resample)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height before the image processor resizes an image of that size."""
        token_pixels = self.image_processor.patch_size * self.image_processor.merge_size
        if self.small_images == "square" and min(size) < token_pixels:
            return 2 * token_pixels, 2 * token_pixels
        return size

    def _grid(self, image: EncodedImage) -> tuple[int, int, int]:
        """Return frames, rows and columns of patches after the processor's resizing."""
        width, height = self._size(image.size)
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


def _steps(num_slices: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return slice, row and column of each token, int64 [3, tokens]."""
    return np.indices((num_slices, height, width), dtype=np.int64).reshape(3, -1)

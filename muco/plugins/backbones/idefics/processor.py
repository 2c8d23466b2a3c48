"""Rendering dialogues for Idefics3: tokens, positions, tiles of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muco.core.compatibility import no_video
from muco.core.dialogue import Dialogue
from muco.core.video import Video, Visual, stills
from muco.plugins.backbones.aspect_ratio import refuse_elongated
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat import Pieces
from muco.plugins.backbones.decoder.chat_templates import Template, pieces_of
from muco.plugins.backbones.decoder.jinja_template import ChatFormat
from muco.plugins.backbones.decoder.processor import DecoderProcessor
from muco.plugins.backbones.decoder.token_sequence import SequenceImage, TokenSequence

_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_IMAGE, _END = "<image>", "<end_of_utterance>"
SPECIAL_TOKENS = (
    *(_FAKE, _IMAGE, _END, _GLOBAL),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
"""The first three are in the tokenizer of every checkpoint."""

_TEMPLATES = {
    "chat": Template(
        ("System: ", f"{_END}\n"), ("User:", _END), ("Assistant:", _END), " ", "\n", gap_before_image=False
    ),
    "bare": Template(),
}


class IdeficsProcessor(DecoderProcessor):
    """A tokenizer, an image processor and a chat template."""

    num_axes = 1
    sanitizes = False  # transformers' processor of Idefics3 does not take it

    def __init__(
        self, tokenizer: Any, image_processor: Any, template: str, model_config: Any, *, rows: RowSettings
    ) -> None:
        super().__init__(tokenizer, image_processor, rows)
        self.template = _TEMPLATES[template]
        vision = model_config.vision_config
        self.tile_patches = (vision.image_size // vision.patch_size) ** 2
        self.tile_tokens = self.tile_patches // model_config.scale_factor**2
        self.image_id: int = model_config.image_token_id

    def pieces(self, dialogue: Dialogue) -> Pieces:
        return pieces_of(dialogue, self.template)

    def chat_format(self) -> ChatFormat:
        return ChatFormat(self.template, _IMAGE + self.template.after_image)

    def to_transformers(self, model_config: Any, chat_template: str) -> Any:
        from transformers import Idefics3Processor

        return Idefics3Processor(
            self.image_processor, self.tokenizer, image_seq_len=self.tile_tokens, chat_template=chat_template
        )

    def put_image(self, sequence: TokenSequence, images: Sequence[Visual], index: int) -> None:
        image = images[index]
        if isinstance(image, Video):
            raise no_video("idefics")
        refuse_elongated(*image.size)
        rows, columns = self.grid(*image.size[::-1])
        headers = [
            ("\n" if row > 1 and column == 1 else "") + f"{_FAKE}<row_{row}_col_{column}>"
            for row, column in product(range(1, rows + 1), range(1, columns + 1))
        ]
        headers.append(("\n\n" if headers else "") + _FAKE + _GLOBAL)
        num_tiles = len(headers)
        sequence.add_image(image, num_patches=num_tiles * self.tile_patches, num_tiles=num_tiles)
        for header in headers:
            self.put_text(sequence, header, special=True)
            sequence.put_features(self.image_id, np.arange(self.tile_tokens)[None], self.tile_tokens)
        self.put_text(sequence, _FAKE, special=True)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of tiles of an image of that size in pixels; 0, 0 if it is not split."""
        if not self.image_processor.do_image_splitting:
            return 0, 0
        side = self.image_processor.max_image_size["longest_edge"]
        return tile_grid(height, width, side=side, longest_edge=self.image_processor.size["longest_edge"])

    def pixels(self, images: Sequence[SequenceImage]) -> dict[str, Tensor]:
        # `put_image` refuses videos.
        nested = [[image.decode()] for image in stills(image.visual for image in images)]
        made = self.image_processor(nested, do_rescale=False, do_normalize=False, do_pad=False)
        return {"pixel_values": torch.from_numpy(np.stack(list(chain(*made["pixel_values"])))).byte()}


def tile_grid(height: int, width: int, *, side: int, longest_edge: int) -> tuple[int, int]:
    """Return rows and columns of tiles of an image that may be split; 0, 0 if one tile holds it.

    All sizes are in pixels: a tile has `side`, and the longer side of an image is resized to `longest_edge`.
    """
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    # The function reads only the shape.
    shape_only = np.broadcast_to(np.uint8(0), (3, height, width))
    height, width = get_resize_output_image_size(shape_only, longest_edge)
    ratio, tiles = width / height, math.ceil(max(width, height) / side)
    if tiles == 1:
        return 0, 0
    if width >= height:
        return math.ceil(int(tiles * side / ratio) / side), tiles
    return tiles, math.ceil(int(tiles * side * ratio) / side)

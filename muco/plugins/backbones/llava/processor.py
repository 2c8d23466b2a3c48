"""Rendering dialogues for LLaVA: tokens, positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.dialogue import Dialogue
from muco.core.image import EncodedImage
from muco.plugins._shared.attention import Direction
from muco.plugins._shared.chat import Pieces
from muco.plugins._shared.strand import Strand
from muco.plugins._shared.strand_processor import StrandProcessor
from muco.plugins.backbones.llava.templates import Template, pieces_of
from muco.plugins.backbones.llava.tiling import Tiling

_ANCHOR = "\n"
"""A token of its own before any text, in tokenizers that begin texts with a space."""


class LlavaProcessor(StrandProcessor):
    """A tokenizer, an image processor, a chat template and a way to cut images."""

    num_axes = 1

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: Template,
        tiling: Tiling,
        *,
        image_id: int,
        padded: bool = False,
        direction: Direction = "causal",
    ) -> None:
        super().__init__(tokenizer, image_processor, padded=padded, direction=direction)
        self.template = template
        self.tiling = tiling
        self.image_id = image_id
        begun = tokenizer("")["input_ids"][:1]
        self.beginning: tuple[int, ...] = tuple(begun) if begun == [tokenizer.bos_token_id] else ()
        """What the tokenizer puts before any text: Llama's `<s>`."""
        self.adds_space: bool = tokenizer.tokenize("a")[0].startswith("\u2581")
        self.anchor_tokens = len(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])

    def pieces(self, dialogue: Dialogue) -> Pieces:
        return pieces_of(dialogue, self.template)

    def begin(self, strand: Strand) -> None:
        strand.put_text(self.beginning)

    def put_text(self, strand: Strand, text: str, *, special: bool) -> None:
        if not self.adds_space or len(strand) == len(self.beginning):
            strand.put_text(self._ids(text, special))
        else:
            # Within a text, the space that the tokenizer begins texts with is nobody's.
            strand.put_text(self._ids(_ANCHOR + text, special)[self.anchor_tokens :])

    def put_image(self, strand: Strand, images: Sequence[EncodedImage], place: int) -> None:
        width, height = images[place].size
        num_tiles = self.tiling.num_tiles(height, width, alone=len(images) == 1)
        size = self.tiling.num_tokens(height, width, num_tiles)
        steps = np.arange(size, dtype=np.int64)[None]
        strand.put_image(images[place], self.image_id, steps, size, num_tiles=num_tiles)

    def patches(self, strand: Strand) -> int:
        return sum(strand.tiles) * self.tiling.side_patches**2

    def pixels(self, strands: Sequence[Strand]) -> dict[str, Tensor]:
        images = [image.decode() for strand in strands for image in strand.images]
        tiles = [number for strand in strands for number in strand.tiles]
        if not self.tiling.grids:
            made = self.image_processor(images, do_rescale=False, do_normalize=False)
            return {"pixel_values": _bytes(np.stack(made["pixel_values"]))}
        shown: list[Any] = images
        if self.tiling.only_alone:
            shown = _together(images, tiles)
        made = self.image_processor(shown, do_pad=False, do_rescale=False, do_normalize=False)
        return {
            "pixel_values": _bytes(np.concatenate(made["pixel_values"])),
            "image_tiles": torch.tensor(tiles),
            "image_sizes": torch.tensor([(image.height, image.width) for image in images]),
        }


def _bytes(pixels: NDArray[Any]) -> Tensor:
    return torch.from_numpy(pixels).byte()


def _together(images: Sequence[Any], tiles: Sequence[int]) -> list[list[Any]]:
    """Return the images in lists as the image processor wants them: it cuts what is alone in its list.

    Images that stay whole were shown with others, so that they stand in runs of two at least.
    """
    found: list[list[Any]] = []
    for whole, run in groupby(zip(images, tiles, strict=True), key=lambda each: each[1] == 1):
        members = [image for image, _ in run]
        found.extend([members] if whole else [[image] for image in members])
    return found

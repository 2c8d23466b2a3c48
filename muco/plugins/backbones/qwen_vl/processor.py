"""Rendering dialogues for Qwen-VL: tokens, M-RoPE positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muco.core.backbone import Cost, Processor
from muco.core.dialogue import Dialogue
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.turns import EncoderInputs, TurnIds
from muco.plugins._shared.attention import Direction, begins_branches
from muco.plugins._shared.chat import EMB, IMAGE_PAD, MASK, Markup, Piece, Said, TemplateName, pieces_of
from muco.plugins._shared.rows import packed_row, padded_rows
from muco.plugins._shared.strand import Strand

_MROPE_AXES = 3
_MOST_COUNTED = 4096
"""Dialogues whose strands are kept between `count` and `collate`."""


class QwenVLProcessor(Processor):
    """A tokenizer, an image processor and a chat template."""

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: TemplateName,
        *,
        padded: bool = False,
        direction: Direction = "causal",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.padded = padded
        self.direction: Direction = direction
        self.template: TemplateName = template
        self.emb_id, self.mask_id, self.image_id = tokenizer.convert_tokens_to_ids([EMB, MASK, IMAGE_PAD])
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._ids = lru_cache(maxsize=65536)(self._tokenize)
        self._counted: dict[int, tuple[Dialogue, Strand]] = {}

    def __getstate__(self) -> dict[str, Any]:
        memories = ("_ids", "_counted")
        return {name: value for name, value in vars(self).items() if name not in memories}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_afresh()

    def count(self, dialogue: Dialogue) -> Cost:
        if len(self._counted) >= _MOST_COUNTED:
            self._counted.clear()
        strand = self._lay_out(dialogue)
        self._counted[id(dialogue)] = (dialogue, strand)
        return Cost(len(strand), self._patches(strand))

    def collate(self, dialogues: Sequence[Dialogue]) -> EncoderInputs:
        strands = [self._render(dialogue) for dialogue in dialogues]
        padding_id, causal = self.tokenizer.pad_token_id, self.direction == "causal"
        padded = self.padded
        rows = padded_rows(strands, padding_id=padding_id, causal=causal) if padded else packed_row(strands)
        tensors = rows.tensors()
        images = [image for strand in strands for image in strand.images]
        if images:
            tensors |= self._pixels(images)
            tensors["image_index"] = rows.image_index
        return EncoderInputs(
            tensors=tensors,
            places=rows.places,
            ids=TurnIds.of([key for strand in strands for key in strand.keys]),
            num_tokens=rows.num_tokens,
            num_padding_tokens=rows.num_padding_tokens,
            num_patches=sum(map(self._patches, strands)),
        )

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def _render(self, dialogue: Dialogue) -> Strand:
        """Return the dialogue's strand, the one that `count` made where it was just counted."""
        counted = self._counted.pop(id(dialogue), None)
        return counted[1] if counted else self._lay_out(dialogue)

    def _lay_out(self, dialogue: Dialogue) -> Strand:
        pieces = pieces_of(dialogue, self.template)
        strand = Strand(_MROPE_AXES)
        self._put(strand, pieces.prefix)
        strand.begin_turns()
        isolated = begins_branches(self.direction, dialogue)
        for turn, own in zip(dialogue.turns, pieces.turns, strict=True):
            strand.begin_turn(isolated=isolated)
            self._put(strand, own)
            strand.end_turn(turn.key)
        return strand

    def _put(self, strand: Strand, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, EncodedImage):
                self._put_image(strand, piece)
            elif isinstance(piece, Said):
                strand.put_text(self._ids(piece.text, False))
            else:
                self._put_markup(strand, piece)

    def _put_markup(self, strand: Strand, piece: Markup) -> None:
        before, emb, after = piece.text.partition(EMB)
        if before:
            strand.put_text(self._ids(before, True))
        if emb:
            strand.put_text((self.emb_id,))
            strand.mark_embedding()
        if after:
            strand.put_text(self._ids(after, True))

    def _put_image(self, strand: Strand, image: EncodedImage) -> None:
        _, grid_h, grid_w = self._grid(image)
        merge = self.image_processor.merge_size
        height, width = grid_h // merge, grid_w // merge
        place = np.indices((1, height, width), dtype=np.int64).reshape(_MROPE_AXES, -1)
        strand.put_image(image, self.image_id, place, max(height, width))

    def _patches(self, strand: Strand) -> int:
        return len(strand.image_places) * self.image_processor.merge_size**2

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

    def _pixels(self, images: Sequence[EncodedImage]) -> dict[str, Any]:
        """Return patches in 8 bits, a quarter of their size as numbers, and their grids."""
        decoded = [image.decode() for image in images]
        made = self.image_processor(decoded, do_rescale=False, do_normalize=False, return_tensors="pt")
        return {"pixel_values": made["pixel_values"].byte(), "image_grid_thw": made["image_grid_thw"]}

    def colors(self, patches: Tensor) -> Tensor:
        """Return patches as the vision tower takes them: float32 of uint8, [patches, channels x size]."""
        mean, std = (
            torch.tensor(values, device=patches.device)[:, None]
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        channels = patches.unflatten(1, (len(mean), -1)).float() / 255
        return ((channels - mean) / std).flatten(1)

    def _tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        return tuple(ids["input_ids"])

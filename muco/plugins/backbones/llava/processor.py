"""Rendering dialogues for LLaVA: tokens, positions, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import not_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.compatibility import no_video
from muco.core.dialogue import Dialogue
from muco.core.errors import MucoError
from muco.core.image import EncodedImage
from muco.core.video import Video, Visual
from muco.plugins.backbones.decoder.attention import RowSettings
from muco.plugins.backbones.decoder.chat import Pieces
from muco.plugins.backbones.decoder.chat_templates import Template, pieces_of
from muco.plugins.backbones.decoder.jinja_template import ChatFormat
from muco.plugins.backbones.decoder.processor import DecoderProcessor
from muco.plugins.backbones.decoder.token_sequence import SequenceImage, TokenSequence
from muco.plugins.backbones.llava.tiling import Tiling
from muco.plugins.backbones.llava.transformers_processor import transformers_processor

_ANCHOR = "\n"
"""Put before a text, for tokenizers that put a space before every text; its tokens are removed again."""


class LlavaProcessor(DecoderProcessor):
    """A tokenizer, an image processor, a chat template and the tiling of images."""

    num_axes = 1

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: Template,
        tiling: Tiling,
        *,
        image_id: int,
        video_id: int | None = None,
        max_frames: int = 1,
        rows: RowSettings,
    ) -> None:
        super().__init__(tokenizer, image_processor, rows)
        self.template = template
        self.tiling = tiling
        self.image_id = image_id
        self.video_id = video_id
        self.max_frames = max_frames
        self.adds_space: bool = tokenizer.tokenize("a")[0].startswith("\u2581")
        self.anchor_tokens = len(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])

    def pieces(self, dialogue: Dialogue) -> Pieces:
        return pieces_of(dialogue, self.template)

    def chat_format(self) -> ChatFormat:
        opening = self.template.user[0]
        if self.adds_space and not opening:
            raise MucoError(
                "template `bare` cannot be exported with this tokenizer, which begins texts with a space"
            )
        leading = " " if self.adds_space and not self.special_tokens.match(opening) else ""
        image = self.tokenizer.convert_ids_to_tokens(self.image_id)
        return ChatFormat(self.template, image + self.template.after_image, leading=leading)

    def to_transformers(self, model_config: Any, chat_template: str) -> Any:
        return transformers_processor(self.tokenizer, self.image_processor, model_config, chat_template)

    def text_ids(self, text: str, *, special: bool, first: bool) -> tuple[int, ...]:
        if first or not self.adds_space:
            return self._ids(text, special)
        # Within a dialogue, the space that the tokenizer puts before a text is left out.
        return self._ids(_ANCHOR + text, special)[self.anchor_tokens :]

    def put_image(self, sequence: TokenSequence, images: Sequence[Visual], index: int) -> None:
        image = images[index]
        if isinstance(image, Video):
            self._put_video(sequence, image)
            return
        width, height = image.size
        is_only = sum(not isinstance(each, Video) for each in images) == 1
        num_tiles = self.tiling.num_tiles(height, width, is_only=is_only)
        size = self.tiling.num_tokens(height, width, num_tiles)
        self._put_features(sequence, image, self.image_id, size, num_tiles)

    def _put_video(self, sequence: TokenSequence, video: Video) -> None:
        """Append the tokens of the frames, and the token that ends the video."""
        if self.tiling.frame_tokens is None or self.video_id is None:
            raise no_video("this family of `llava` (only LLaVA-OneVision reads videos)")
        _ = video.size
        num_frames = len(video.frame_indices(self.max_frames))
        size = num_frames * self.tiling.frame_tokens + 1
        self._put_features(sequence, video, self.video_id, size, num_frames)

    def _put_features(
        self, sequence: TokenSequence, image: Visual, token_id: int, size: int, num_tiles: int
    ) -> None:
        num_patches = num_tiles * self.tiling.side_patches**2
        sequence.add_image(image, num_patches=num_patches, num_tiles=num_tiles)
        sequence.put_features(token_id, np.arange(size)[None], size)

    def pixels(self, images: Sequence[SequenceImage]) -> dict[str, Tensor]:
        visuals = [image.visual for image in images]
        tiles = [image.num_tiles for image in images]
        are_videos = [isinstance(image, Video) for image in visuals]
        decoded = [image.decode() for image in visuals if isinstance(image, EncodedImage)]
        if not self.tiling.grids:
            made = self.image_processor(decoded, do_rescale=False, do_normalize=False)
            return {"pixel_values": _bytes(np.stack(made["pixel_values"]))}
        cut = iter(self._cut(decoded, list(compress(tiles, map(not_, are_videos)))))
        pictures = [self._frames(image) if isinstance(image, Video) else next(cut) for image in visuals]
        return {
            "pixel_values": _bytes(np.concatenate(pictures)),
            "image_tiles": torch.tensor(tiles),
            "image_sizes": torch.tensor([image.size[::-1] for image in visuals]),
            "image_is_video": torch.tensor(are_videos),
        }

    def _cut(self, images: Sequence[Any], tiles: Sequence[int]) -> Sequence[NDArray[Any]]:
        """Return the pictures of each image, [tiles, channels, height, width]."""
        if not images:
            return ()
        if not self.tiling.splits_only_single:
            return self._tiles(images)
        # The image processor splits the only image of a list, so a list of whole images needs two.
        split = [image for image, number in zip(images, tiles, strict=True) if number > 1]
        whole = [image for image, number in zip(images, tiles, strict=True) if number == 1]
        made = self._tiles([[image] for image in split] + ([[*whole, whole[0]]] if whole else []))
        split_tiles, whole_tiles = iter(made[: len(split)]), iter(made[len(split) :])
        return [next(whole_tiles if number == 1 else split_tiles) for number in tiles]

    def _tiles(self, images: Sequence[Any]) -> Sequence[NDArray[Any]]:
        made = self.image_processor(images, do_pad=False, do_rescale=False, do_normalize=False)
        return made["pixel_values"]

    def _frames(self, video: Video) -> NDArray[np.uint8]:
        """Return the used frames, each resized to a tile without keeping the aspect ratio."""
        side = (self.tiling.side_pixels, self.tiling.side_pixels)
        frames = [video.frames[index].decode() for index in video.frame_indices(self.max_frames)]
        resized = [np.asarray(frame.resize(side, self.image_processor.resample)) for frame in frames]
        return np.stack(resized).transpose(0, 3, 1, 2)


def _bytes(pixels: NDArray[Any]) -> Tensor:
    return torch.from_numpy(pixels).byte()

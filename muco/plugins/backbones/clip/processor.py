"""Render dialogues for two towers; each distinct text and image of a chunk is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muco.core.backbone import Cost, Processor
from muco.core.compatibility import no_video
from muco.core.dialogue import Dialogue, Turn, TurnKey
from muco.core.image import EncodedImage
from muco.core.turns import EncoderInputs, TurnIds, TurnSpans
from muco.core.video import Visual
from muco.plugins.backbones.aspect_ratio import refuse_elongated
from muco.plugins.backbones.clip.texts import TextReader


@dataclass(frozen=True)
class _TurnContent:
    """What the towers encode of one turn."""

    texts: tuple[str, ...]
    """One, or none for a turn of images alone. A turn without images has a text, which may be empty."""
    images: tuple[EncodedImage, ...]


@dataclass(frozen=True)
class _Rendered:
    """A dialogue, turn by turn."""

    cost: Cost
    turns: list[_TurnContent]
    keys: list[TurnKey]


class ClipProcessor(Processor):
    """The tokenizer and the image transform of a checkpoint."""

    def __init__(
        self, texts: TextReader, transform: Callable[[Any], Tensor], *, patches_per_image: int
    ) -> None:
        """Store the parts; `transform` makes float32 [3, height, width] of a picture, all of one size."""
        self.texts = texts
        self.transform = transform
        self.patches_per_image = patches_per_image
        # With full context, `num_tokens` includes the padding.
        self.padded = not texts.full_context

    def render(self, dialogue: Dialogue) -> _Rendered:
        turns = _turn_contents(dialogue)
        texts = {text for turn in turns for text in turn.texts}
        images = {image.content_id: self.patches_per_image for turn in turns for image in turn.images}
        cost = Cost(sum(map(self.texts.num_tokens, texts)), sum(images.values()), images)
        return _Rendered(cost, turns, [turn.key for turn in dialogue.turns])

    def collate(self, rendered: Sequence[_Rendered]) -> EncoderInputs:
        """Return one chunk.

        Its tensors are `input_ids` int64 [texts, L], `pixel_values` float32 [images, 3, height, width], and
        `image_ids` int64 [images], hashes of the images' contents.
        Row `text_row[i]` belongs to turn `text_turn[i]`, and `image_row[i]` to `image_turn[i]`, all int64.
        `both` lists the turns that have text and image.
        """
        turns = [turn for dialogue in rendered for turn in dialogue.turns]
        texts = list(dict.fromkeys(text for turn in turns for text in turn.texts))
        images = {image.content_id: image for turn in turns for image in turn.images}
        tensors: dict[str, Tensor] = {}
        num_tokens = sum(map(self.texts.num_tokens, texts))
        num_padding_tokens = 0
        if texts:
            tensors["input_ids"] = self.texts.rows(texts)
            num_padding_tokens = tensors["input_ids"].numel() - num_tokens
            tensors["text_turn"], tensors["text_row"] = _links(texts, [turn.texts for turn in turns])
        if images:
            tensors["pixel_values"] = torch.stack([self._pixels(image) for image in images.values()])
            tensors["image_ids"] = torch.tensor(list(images))
            tensors["image_turn"], tensors["image_row"] = _links(
                list(images), [[image.content_id for image in turn.images] for turn in turns]
            )
        both = [index for index, turn in enumerate(turns) if turn.texts and turn.images]
        if both:
            tensors["both"] = torch.tensor(both)
        index = torch.arange(len(turns))
        return EncoderInputs(
            tensors=tensors,
            spans=TurnSpans(token=index, start=index, stop=index + 1),
            ids=TurnIds.of([key for dialogue in rendered for key in dialogue.keys]),
            num_tokens=num_tokens,
            num_padding_tokens=num_padding_tokens,
            num_patches=len(images) * self.patches_per_image,
            num_cut_texts=sum(self.texts.is_cut(text) for turn in turns for text in turn.texts),
        )

    def save(self, folder: Path) -> None:
        """Do nothing: the towers' files include the tokenizer and the transform."""

    def _pixels(self, image: EncodedImage) -> Tensor:
        refuse_elongated(*image.size)
        return self.transform(image.decode())


def _turn_contents(dialogue: Dialogue) -> list[_TurnContent]:
    """Return what is encoded of each turn; the system text is not.

    Raise MucoError if a turn has a video, ValueError if turns see earlier turns.
    """
    if dialogue.context == "causal" and len(dialogue.turns) > 1:
        raise ValueError("two towers have no context between turns; pack with `context: isolated`")
    return [_turn_content(turn, dialogue.images) for turn in dialogue.turns]


def _turn_content(turn: Turn, shared: tuple[Visual, ...]) -> _TurnContent:
    contents = [message.content for message in turn.messages]
    text = "\n".join(content.text for content in contents if content.text.strip())
    visuals = shared + tuple(visual for content in contents for visual in content.images)
    images = tuple(visual for visual in visuals if isinstance(visual, EncodedImage))
    if len(images) < len(visuals):
        raise no_video("clip")
    return _TurnContent((text,) if text or not images else (), images)


def _links(rows: Sequence[object], by_turn: Sequence[Sequence[object]]) -> tuple[Tensor, Tensor]:
    """Return the turn and the row of every content of every turn, int64 each."""
    row_of = {content: row for row, content in enumerate(rows)}
    pairs = [(turn, row_of[content]) for turn, contents in enumerate(by_turn) for content in contents]
    turn, row = torch.tensor(pairs).unbind(1)
    return turn, row

"""Rendering dialogues for two towers: each distinct text and image of a chunk once."""

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
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.turns import EncoderInputs, TurnIds, TurnSpans
from muco.core.video import Visual
from muco.plugins.backbones.aspect_ratio import refuse_elongated
from muco.plugins.backbones.clip.texts import TextReader


@dataclass(frozen=True)
class _Shown:
    """What one turn shows to the towers."""

    text: str
    images: tuple[EncodedImage, ...]


@dataclass(frozen=True)
class _Rendered:
    """A dialogue, turn by turn."""

    cost: Cost
    turns: list[_Shown]
    keys: list[TurnKey]


class ClipProcessor(Processor):
    """A reader of texts, and the image transform of the checkpoint."""

    def __init__(
        self, texts: TextReader, transform: Callable[[Any], Tensor], *, patches_per_image: int
    ) -> None:
        """Take the parts.

        Args:
            texts: for the text tower.
            transform: a picture to float32 [3, height, width], all of one size.
            patches_per_image: that enter the image tower.
        """
        self.texts = texts
        self.transform = transform
        self.patches_per_image = patches_per_image
        # A text at its full context counts its padding already.
        self.padded = not texts.full_context

    def render(self, dialogue: Dialogue) -> _Rendered:
        turns = _shown(dialogue)
        texts = {turn.text for turn in turns if turn.text}
        images = {image.content_id for turn in turns for image in turn.images}
        cost = Cost(sum(map(self.texts.num_tokens, texts)), len(images) * self.patches_per_image)
        return _Rendered(cost, turns, [turn.key for turn in dialogue.turns])

    def collate(self, rendered: Sequence[_Rendered]) -> EncoderInputs:
        """Return one chunk.

        Its tensors: `input_ids` int64 [texts, L] and `pixel_values` float32 [images, 3, height, width]; for
        each two int64 lists, `text_turn` and `text_row`, `image_turn` and `image_row`, that say which row
        belongs to which turn; and `both`, the turns that show text and image.
        """
        shown = [turn for dialogue in rendered for turn in dialogue.turns]
        texts = list(dict.fromkeys(turn.text for turn in shown if turn.text))
        images = {image.content_id: image for turn in shown for image in turn.images}
        tensors: dict[str, Tensor] = {}
        num_tokens = sum(map(self.texts.num_tokens, texts))
        num_padding_tokens = 0
        if texts:
            tensors["input_ids"] = self.texts.rows(texts)
            num_padding_tokens = tensors["input_ids"].numel() - num_tokens
            tensors["text_turn"], tensors["text_row"] = _links(
                texts, [[turn.text] if turn.text else [] for turn in shown]
            )
        if images:
            tensors["pixel_values"] = torch.stack([self._pixels(image) for image in images.values()])
            tensors["image_turn"], tensors["image_row"] = _links(
                list(images), [[image.content_id for image in turn.images] for turn in shown]
            )
        both = [place for place, turn in enumerate(shown) if turn.text and turn.images]
        if both:
            tensors["both"] = torch.tensor(both)
        place = torch.arange(len(shown))
        return EncoderInputs(
            tensors=tensors,
            spans=TurnSpans(token=place, start=place, stop=place + 1),
            ids=TurnIds.of([key for dialogue in rendered for key in dialogue.keys]),
            num_tokens=num_tokens,
            num_padding_tokens=num_padding_tokens,
            num_patches=len(images) * self.patches_per_image,
            num_cut_texts=sum(self.texts.is_cut(turn.text) for turn in shown if turn.text),
        )

    def save(self, folder: Path) -> None:
        """Do nothing: the towers' own files hold the tokenizer and the transform."""

    def _pixels(self, image: EncodedImage) -> Tensor:
        refuse_elongated(*image.size)
        return self.transform(image.decode())


def _shown(dialogue: Dialogue) -> list[_Shown]:
    """Return what each turn shows; the system text is not among it.

    Raises:
        DataError: a turn holds neither text nor image.
        MucoError: a turn shows a video.
        ValueError: a turn would have to see an earlier one.
    """
    if dialogue.context == "causal" and len(dialogue.turns) > 1:
        raise ValueError("two towers have no context between turns; pack with `context: isolated`")
    return [_shown_by(turn, dialogue.images) for turn in dialogue.turns]


def _shown_by(turn: Turn, shared: tuple[Visual, ...]) -> _Shown:
    contents = [message.content for message in turn.messages]
    text = "\n".join(content.text for content in contents if content.text.strip())
    visuals = shared + tuple(visual for content in contents for visual in content.images)
    images = tuple(visual for visual in visuals if isinstance(visual, EncodedImage))
    if len(images) < len(visuals):
        raise no_video("clip")
    if not text and not images:
        raise DataError("a turn holds neither text nor image")
    return _Shown(text, images)


def _links(rows: Sequence[object], of_turns: Sequence[Sequence[object]]) -> tuple[Tensor, Tensor]:
    """Return turn and row, int64, of all that the turns show."""
    number = {content: row for row, content in enumerate(rows)}
    pairs = [(turn, number[content]) for turn, contents in enumerate(of_turns) for content in contents]
    turn, row = torch.tensor(pairs).unbind(1)
    return turn, row

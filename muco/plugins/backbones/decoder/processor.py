"""The processor of decoder backbones: dialogues to token sequences to the rows of a chunk."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from muco.core.backbone import Processor
from muco.core.dialogue import Dialogue
from muco.core.errors import DataError, MucoError
from muco.core.turns import EncoderInputs, TurnIds
from muco.core.video import Visual
from muco.plugins.backbones.decoder.attention import AttentionDirection, RowSettings, isolates_turns
from muco.plugins.backbones.decoder.chat import EMB, MASK, Markup, Piece, Pieces, UserText
from muco.plugins.backbones.decoder.jinja_template import ChatFormat
from muco.plugins.backbones.decoder.packing import packed_row, padded_rows
from muco.plugins.backbones.decoder.token_sequence import SequenceImage, TokenSequence, distinct_images

_Part = Markup | UserText | Visual | tuple[int, ...]
"""One special token of the template, plain text, an image, or tokens."""
_NO_TEXT = UserText("")


class DecoderProcessor(Processor):
    """A tokenizer and an image processor. A subclass adds the chat template and the tokens of images."""

    num_axes: ClassVar[int]
    """Axes of position: three for M-RoPE, one otherwise."""
    max_positions: int | None = None
    """The context of the language model; None for no limit."""
    sanitizes: ClassVar[bool] = True
    """See `Exported.sanitizes`."""

    def __init__(self, tokenizer: Any, image_processor: Any, rows: RowSettings) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.padded = rows.rows == "padded"
        self.attention_direction: AttentionDirection = rows.attention_direction
        first = tokenizer("")["input_ids"][:1]
        self.beginning: tuple[int, ...] = tuple(first) if first == [tokenizer.bos_token_id] else ()
        """The token that the tokenizer puts before any text, Llama's `<s>`; empty if there is none."""
        self.emb_id: int
        self.mask_id: int
        self.emb_id, self.mask_id = tokenizer.convert_tokens_to_ids([EMB, MASK])
        self.special_ids: dict[str, int] = tokenizer.get_added_vocab()
        names = sorted(self.special_ids, key=len, reverse=True)
        self.special_tokens = re.compile(f"({'|'.join(map(re.escape, names))})")
        """Matches one special token of the template."""
        self._set_cache()

    @abstractmethod
    def pieces(self, dialogue: Dialogue) -> Pieces:
        """Return the dialogue in the format of the chat template."""

    def chat_format(self) -> ChatFormat:
        """Return the format of `pieces`, for export; by default this raises MucoError."""
        raise MucoError(f"{type(self).__name__} has no chat template in Jinja, so it cannot be exported")

    def to_transformers(self, model_config: Any, chat_template: str) -> Any:
        """Return the processor of transformers, with this tokenizer, image processor and chat template.

        Called only if `chat_format` is written, and then to be written too.
        """
        raise MucoError(f"{type(self).__name__} has no processor of transformers, so it cannot be exported")

    def export_limits(self) -> Sequence[str]:
        """Return what `to_transformers` does not do as this processor does; sentences for the reader."""
        return ()

    @abstractmethod
    def put_image(self, sequence: TokenSequence, images: Sequence[Visual], index: int) -> None:
        """Append the tokens of `images[index]`; `images` are those of the prefix, or of one turn.

        Raises:
            DataError: the image processor does not accept the image.
            MucoError: the image is a video, and the model reads none.
        """

    @abstractmethod
    def pixels(self, images: Sequence[SequenceImage]) -> dict[str, Tensor]:
        """Return the tensors for `encode_images` by name, of one or more images.

        Pixels are uint8, a quarter of the size of float32; `colors` converts them on the device.

        Raises:
            DataError: an image cannot be decoded.
        """

    def colors(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [N, channels x ...] or [N, channels, ...] normalized, in float32."""
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None]
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        channels = pixels.flatten(1).unflatten(1, (len(mean), -1)).float() / 255
        return ((channels - mean) / std).view(pixels.shape)

    def text_ids(self, text: str, *, special: bool, first: bool) -> tuple[int, ...]:
        """Return the tokens of a text. `special`: of special tokens too; `first`: it begins the dialogue."""
        return self._ids(text, special)

    def put_text(self, sequence: TokenSequence, text: str, *, special: bool) -> None:
        """Append text. Unless `special`, special tokens in it are ordinary characters."""
        first = len(sequence) == len(self.beginning)
        sequence.put_text(self.text_ids(text, special=special, first=first))

    def render(self, dialogue: Dialogue) -> TokenSequence:
        pieces = self.pieces(dialogue)
        isolated = isolates_turns(self.attention_direction, dialogue)
        prefix, *turns = (self._parts(each) for each in (pieces.prefix, *pieces.turns))
        if not isolated:
            self._join(prefix, turns[0])
        sequence = TokenSequence(self.num_axes)
        sequence.put_text(self.beginning)
        self._put(sequence, prefix)
        sequence.end_prefix()
        for turn, own in zip(dialogue.turns, turns, strict=True):
            sequence.begin_turn(isolated=isolated)
            self._put(sequence, own)
            sequence.end_turn(turn.key)
        return sequence

    def collate(self, rendered: Sequence[TokenSequence]) -> EncoderInputs:
        longest = max(sequence.num_positions for sequence in rendered)
        if self.max_positions is not None and longest > self.max_positions:
            raise DataError(
                f"a dialogue of {longest:,} tokens; the model's context has {self.max_positions:,}. Shorten "
                "the text, lower backbone.max_pixels, or set train.max_dialogue_tokens"
            )
        if self.padded:
            # No token attends to padding, so any token id will do.
            padding_id = self.tokenizer.pad_token_id or 0
            rows = padded_rows(rendered, padding_id=padding_id, causal=self.attention_direction == "causal")
        else:
            rows = packed_row(rendered)
        images = distinct_images(rendered)
        return EncoderInputs(
            tensors={**rows.tensors, **(self.pixels(images) if images else {})},
            spans=rows.spans,
            ids=TurnIds.of([key for sequence in rendered for key in sequence.keys]),
            num_tokens=rows.num_tokens,
            num_padding_tokens=rows.num_padding_tokens,
            num_patches=sum(image.num_patches for image in images),
        )

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_ids", "_split")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_cache()

    def _set_cache(self) -> None:
        self._ids = lru_cache(maxsize=65536)(self._tokenize)
        self._split = lru_cache(maxsize=1024)(self._split_markup)

    def _parts(self, pieces: Sequence[Piece]) -> list[_Part]:
        """Return plain texts, special tokens and images. Adjacent text of template and users is one text.

        So the tokens are those of the whole rendered text: Qwen's `?` and a line break are one token.
        """
        parts: list[_Part] = []
        for piece in pieces:
            for part in self._split(piece.text) if isinstance(piece, Markup) else (piece,):
                if isinstance(part, UserText) and parts and isinstance(parts[-1], UserText):
                    parts[-1] = UserText(parts[-1].text + part.text)
                elif part != _NO_TEXT:
                    parts.append(part)
        return parts

    def _split_markup(self, text: str) -> tuple[Markup | UserText, ...]:
        """Return the special tokens of the template and the texts between them."""
        return tuple(
            Markup(part) if part in self.special_ids else UserText(part)
            for part in self.special_tokens.split(text)
            if part
        )

    def _join(self, prefix: list[_Part], turn: list[_Part]) -> None:
        """Tokenize the last text of the prefix and the first text of the turn as one text.

        The tokens that the prefix has without the turn stay in the prefix, the others go to the turn.
        """
        if not (prefix and turn and isinstance(prefix[-1], UserText) and isinstance(turn[0], UserText)):
            return
        first = len(prefix) == 1
        before, text = prefix[-1].text, prefix[-1].text + turn[0].text
        own, joined = (self.text_ids(each, special=False, first=first) for each in (before, text))
        pairs = zip(own, joined, strict=False)
        end = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(own), len(joined)))
        prefix[-1], turn[0] = joined[:end], joined[end:]

    def _put(self, sequence: TokenSequence, parts: Sequence[_Part]) -> None:
        images = [part for part in parts if not isinstance(part, Markup | UserText | tuple)]
        index = 0
        for part in parts:
            if isinstance(part, UserText):
                self.put_text(sequence, part.text, special=False)
            elif isinstance(part, tuple):
                sequence.put_text(part)
            elif isinstance(part, Markup):
                sequence.put_text((self.special_ids[part.text],))
                if part.text == EMB:
                    sequence.mark_embedding()
            else:
                self.put_image(sequence, images, index)
                index += 1

    def _tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        return tuple(ids["input_ids"])

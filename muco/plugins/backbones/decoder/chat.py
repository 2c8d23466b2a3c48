"""Chat templates: a dialogue as pieces of text and images. Each turn ends in one embedding token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from muco.core.dialogue import Dialogue, Message, Turn
from muco.core.video import Visual

EMB = "<|emb|>"
"""The token whose last hidden state is a turn's embedding."""
MASK = "<|mask|>"
"""Replaces hidden words of the other side in a reconstruction turn."""
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
VIDEO_PAD = "<|video_pad|>"

TemplateName = Literal["chatml", "chatml_public", "bare"]
"""chatml: Qwen's roles. chatml_public: as the public MuCo weights were trained: in a reconstruction
turn, the request before the assistant's message has no `<|im_end|>`. bare: only the content and the embedding
token, for random weights: half as many tokens."""


@dataclass(frozen=True)
class Markup:
    """Text of the template; its special tokens are special."""

    text: str


@dataclass(frozen=True)
class UserText:
    """Text of a user or a data set; special tokens in it are ordinary characters."""

    text: str


Piece = Markup | UserText | Visual


@dataclass(frozen=True)
class Pieces:
    """A dialogue in pieces: the shared prefix, then the pieces of each turn, with `EMB`."""

    prefix: tuple[Piece, ...]
    turns: tuple[tuple[Piece, ...], ...]


def pieces_of(dialogue: Dialogue, template: TemplateName) -> Pieces:
    """Return the dialogue's pieces; each isolated turn directly follows the prefix."""
    if template == "bare":
        return _bare(dialogue)
    return _chatml(dialogue, defect=template == "chatml_public")


def _chatml(dialogue: Dialogue, *, defect: bool) -> Pieces:
    system = (
        (Markup("<|im_start|>system\n"), UserText(dialogue.system), Markup("<|im_end|>\n"))
        if dialogue.system
        else ()
    )
    prefix = (*system, Markup("<|im_start|>user\n"), *_images(dialogue.images, "\n"))
    turns = []
    for index, turn in enumerate(dialogue.turns):
        follows = index > 0 and dialogue.context == "causal"
        opening = (Markup("\n<|im_start|>user\n"),) if follows else ()
        turns.append((*opening, *_chatml_turn(turn, defect=defect)))
    return Pieces(prefix, tuple(turns))


def _chatml_turn(turn: Turn, *, defect: bool) -> Iterator[Piece]:
    """Yield the turn from within its first user message to the end of its embedding's message."""
    for index, message in enumerate(turn.messages):
        if index:
            yield Markup(f"<|im_start|>{message.role}\n")
        yield from _content(message, "\n")
        answered = [after.role for after in turn.messages[index + 1 : index + 2]] == ["assistant"]
        yield Markup("\n" if defect and answered else "<|im_end|>\n")
    yield Markup(f"<|im_start|>assistant\n{EMB}<|im_end|>")


def _bare(dialogue: Dialogue) -> Pieces:
    system = (UserText(dialogue.system),) if dialogue.system else ()
    turns = tuple(
        (*(piece for message in turn.messages for piece in _content(message, "")), Markup(EMB))
        for turn in dialogue.turns
    )
    return Pieces((*system, *_images(dialogue.images, "")), turns)


def _content(message: Message, end: str) -> Iterator[Piece]:
    """Yield the images, then the text with its blanks; `end` replaces the text's last line break."""
    written, start = message.content.text, 0
    text = written.removesuffix("\n") if message.line_break else written
    yield from _images(message.content.images, end)
    for position in message.blanks:
        if position > start:
            yield UserText(text[start:position])
        yield Markup(MASK)
        start = position
    if text[start:]:
        yield UserText(text[start:])
    if end and message.line_break and (written or message.blanks):
        yield Markup(end)


def _images(images: tuple[Visual, ...], end: str) -> Iterator[Piece]:
    for image in images:
        yield Markup(VISION_START)
        yield image
        yield Markup(VISION_END + end)

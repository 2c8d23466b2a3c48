"""Dialogues: the output of a packer. Every turn ends in one embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from muco.core.sample import Content
from muco.core.video import Visual

Context = Literal["causal", "isolated"]
"""causal: a turn sees the shared prefix and the earlier turns. isolated: only the prefix and itself."""


@dataclass(frozen=True)
class TurnKey:
    """The identity of a turn, the same for a query and its target; stable 64-bit hashes.

    A query's positives are the targets of its sample and turn, whatever their form.
    """

    sample_id: int
    """Identifies the record."""
    turn_id: int
    """The pair's index in the record, whatever its position in the dialogue."""
    group_id: int
    """Hash of the image, or of the record if it has no image."""
    content_id: int
    """Hash of the target's content: targets with equal ids are the same answer."""
    task_id: int
    form_id: int = 0
    """0 for the original form, 1 for the reconstructed one."""
    is_negative: bool = False
    """A hard negative: it has the ids of its query, but is no positive."""


@dataclass(frozen=True)
class Message:
    """Text and images of one role, before a turn's embedding."""

    role: Literal["user", "assistant"]
    content: Content
    blanks: tuple[int, ...] = ()
    """Ascending positions in the text at which the mask token replaces hidden words."""
    line_break: bool = True
    """Whether the chat template writes its line break, if it has one, after the text."""


@dataclass(frozen=True)
class Turn:
    """Messages that one embedding answers; usually a single user message."""

    messages: tuple[Message, ...]
    key: TurnKey


@dataclass(frozen=True)
class Dialogue:
    """Turns that share a prefix: the system text and the images at the head of the first message."""

    system: str
    images: tuple[Visual, ...]
    turns: tuple[Turn, ...]
    context: Context = "causal"

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a dialogue needs at least one turn")

    @property
    def content_key(self) -> tuple[object, ...]:
        """The content without ids, hashable: dialogues with equal keys have equal embeddings."""
        turns = tuple(
            tuple(
                (message.role, message.content.content_id, message.blanks, message.line_break)
                for message in turn.messages
            )
            for turn in self.turns
        )
        return (self.system, tuple(image.content_id for image in self.images), turns, self.context)


@dataclass(frozen=True)
class DialoguePair:
    """The query and target dialogues of one sample, and its hard negatives."""

    queries: tuple[Dialogue, ...]
    targets: tuple[Dialogue, ...]
    negatives: tuple[Dialogue, ...] = ()

"""What a packer makes of a sample: dialogues whose every turn ends in one embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from muco.core.sample import Content
from muco.core.video import Visual

Context = Literal["causal", "isolated"]
"""causal: a turn sees the shared prefix and the earlier turns. isolated: the prefix and itself."""


@dataclass(frozen=True)
class TurnKey:
    """The identity of a turn, the same for a query and its target; stable 64-bit hashes.

    A query's positives are the targets of its sample and turn, whatever their form.
    """

    sample_id: int
    """Names the record."""
    turn_id: int
    """The pair's index in the record, whatever its place in the dialogue."""
    group_id: int
    """Hash of the image, or of the record where there is none."""
    content_id: int
    """Hash of the target's content: two targets with one id are the same answer."""
    task_id: int
    form_id: int = 0
    """0 the original, 1 the reconstructed."""
    is_negative: bool = False
    """A hard negative: its owner's ids, but nobody's positive."""


@dataclass(frozen=True)
class Message:
    """What is said before a turn's embedding."""

    role: Literal["user", "assistant"]
    content: Content
    blanks: tuple[int, ...] = ()
    """Places in the text, ascending, at which the mask token stands for words that are hidden."""


@dataclass(frozen=True)
class Turn:
    """Messages answered by one embedding; most often a single user message."""

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
        """What the backbone sees, hashable: dialogues with one key have one embedding a turn."""
        said = tuple(
            tuple((message.role, message.content.content_id, message.blanks) for message in turn.messages)
            for turn in self.turns
        )
        return (self.system, tuple(image.content_id for image in self.images), said, self.context)


@dataclass(frozen=True)
class DialoguePair:
    """Both sides of one sample, and its hard negatives."""

    queries: tuple[Dialogue, ...]
    targets: tuple[Dialogue, ...]
    negatives: tuple[Dialogue, ...] = ()

"""What a backbone and a pooler say about an exported folder, which other tools read without muco."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PooledState = Literal["turn_token", "last_token", "mean"]
"""The state that a pooler takes of a turn: of its embedding token, of its last token, or the mean."""


@dataclass(frozen=True)
class Exported:
    """How the transformers model of an exported folder makes a vector.

    Projection and normalization are not part of it: they follow for every backbone.
    """

    architecture: str
    """The model's class in transformers."""
    methods: Mapping[str, tuple[str, str]]
    """The method of the model, and the field of its output, by kind of input: `text`, `image`, `image+text`,
    and `message` for chats, which the chat template renders."""
    pools_last_token: bool
    """Whether the state of the last token is the vector; otherwise the method returns one vector an input."""
    sanitizes: bool = False
    """Whether the processor takes `sanitize_control_tokens`: special tokens in a user's text are then
    ordinary characters, as in muco."""
    limits: tuple[str, ...] = ()
    """What the folder does not do as muco does; sentences for its reader."""

"""What a packer needs to write `pack`: the base class, keys of turns, one-turn dialogues and random draws.

Public: packers of other packages build on this module.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from random import Random
from typing import Literal

from pydantic import NonNegativeInt

from muco.core.component import ComponentConfig
from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.ids import stable_id
from muco.core.packer import Packer
from muco.core.sample import Content, Pair, Sample

SYSTEM = "You are a helpful assistant."
"""The system text of Qwen2-VL's chat template, and of the public MuCo weights."""


class PackerConfig(ComponentConfig):
    """The settings of every packer that derives from `BasePacker`."""

    max_negatives: NonNegativeInt | None = None
    """At most this many hard negatives of a pair, drawn anew at each visit; None takes all."""
    system: str = SYSTEM
    """Opens every dialogue; empty for none."""


class BasePacker(Packer, ABC):
    """A packer with the settings of `PackerConfig`. A subclass writes `pack`."""

    def __init__(self, config: PackerConfig) -> None:
        self.system = config.system
        self.max_negatives = config.max_negatives

    def single_turn(self, content: Content, key: TurnKey) -> Dialogue:
        """Return a dialogue of one user message; its images go into the shared prefix, before the text."""
        return Dialogue(self.system, content.images, (user_turn(Content(content.text), key),))

    def hard_negatives(self, pair: Pair, key: TurnKey, rng: Random) -> list[Dialogue]:
        """Return one dialogue for each hard negative of the pair, at most `max_negatives` drawn at random.

        Args:
            pair: the negatives are its own.
            key: of the pair's query and target. A negative has the same ids, but its own `content_id`, and
                `is_negative` is true.
            rng: the `sample_random` of `pack`.
        """
        negatives = pair.negatives
        if self.max_negatives is not None and len(negatives) > self.max_negatives:
            negatives = rng.sample(negatives, self.max_negatives)
        return [
            self.single_turn(content, replace(key, content_id=content.content_id, is_negative=True))
            for content in negatives
        ]

    def inference(self, content: Content) -> Dialogue:
        """Return the dialogue that embeds `content` after training; its ids belong to no sample."""
        key = TurnKey(sample_id=0, turn_id=0, group_id=0, content_id=content.content_id, task_id=0)
        return self.single_turn(content, key)


def turn_key(sample: Sample, index: int) -> TurnKey:
    """Return the key that the query and the target of pair `index` share: equal keys make a positive."""
    pair = sample.pairs[index]
    return TurnKey(
        sample_id=stable_id(sample.dataset, sample.sample_id),
        turn_id=index,
        group_id=sample.group_id,
        content_id=pair.target.content_id,
        task_id=stable_id(sample.dataset, pair.task),
    )


def user_turn(content: Content, key: TurnKey) -> Turn:
    """Return a turn of one user message."""
    return Turn((Message("user", content),), key)


def draw_pairs(sample: Sample, turns: Literal["one", "all"], rng: Random) -> list[int]:
    """Return the indices of the pairs to pack: one drawn at random, or all in the order of the data."""
    indices = list(range(len(sample.pairs)))
    return indices if turns == "all" else [rng.randrange(len(indices))]


def draw_query(pair: Pair, rng: Random) -> Content:
    """Return one of the pair's paraphrased queries, drawn at random."""
    return pair.queries[rng.randrange(len(pair.queries))]

"""What the packers have in common: keys of turns, and the dialogue that inference uses."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from pydantic import NonNegativeInt

from muco.core.component import ComponentConfig
from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.ids import stable_id
from muco.core.sample import Content, Pair, Sample

SYSTEM = "You are a helpful assistant."
"""The system text of Qwen2-VL's chat template, and of the public MuCo weights."""


class PackerConfig(ComponentConfig):
    """The settings of every packer."""

    max_negatives: NonNegativeInt | None = None
    """At most this many hard negatives of a pair, drawn anew at each visit; None takes all."""
    system: str = SYSTEM
    """Opens every dialogue; empty for none."""


def turn_key(sample: Sample, index: int) -> TurnKey:
    """Return the identity that the query and the target of pair `index` share."""
    pair = sample.pairs[index]
    return TurnKey(
        sample_id=stable_id(sample.dataset, sample.sample_id),
        turn_id=index,
        group_id=sample.group_id,
        content_id=pair.target.content_id,
        task_id=stable_id(sample.dataset, pair.task),
    )


def user_turn(content: Content, key: TurnKey) -> Turn:
    """Return the turn of one user message."""
    return Turn((Message("user", content),), key)


def draw_pairs(sample: Sample, turns: Literal["one", "all"], draw: random.Random) -> list[int]:
    """Return the indices of the pairs that a sample is packed with: one of them, or all in order."""
    every = list(range(len(sample.pairs)))
    return every if turns == "all" else [draw.randrange(len(every))]


def draw_query(pair: Pair, draw: random.Random) -> Content:
    """Return one of the pair's paraphrases."""
    return pair.queries[draw.randrange(len(pair.queries))]


def alone(content: Content, key: TurnKey, *, system: str) -> Dialogue:
    """Return a dialogue of one turn, its images in the shared prefix."""
    return Dialogue(system, content.images, (user_turn(Content(content.text), key),))


def hard_negatives(
    pair: Pair, key: TurnKey, *, system: str, most: int | None, draw: random.Random
) -> list[Dialogue]:
    """Return a dialogue for each of the pair's wrong targets; they keep their owner's identity.

    Where there are more than `most`, so many are drawn.
    """
    wrong = pair.negatives
    if most is not None and len(wrong) > most:
        wrong = draw.sample(wrong, most)
    keys = [replace(key, content_id=each.content_id, is_negative=True) for each in wrong]
    return [alone(each, own, system=system) for each, own in zip(wrong, keys, strict=True)]


def for_inference(content: Content, *, system: str) -> Dialogue:
    """Return the dialogue of one turn that belongs to no sample."""
    key = TurnKey(sample_id=0, turn_id=0, group_id=0, content_id=content.content_id, task_id=0)
    return alone(content, key, system=system)

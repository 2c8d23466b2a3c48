"""What the packers have in common: keys of turns, and the dialogue that inference uses."""

from __future__ import annotations

import random
from dataclasses import replace

from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.ids import stable_id
from muco.core.sample import Content, Pair, Sample

SYSTEM = "You are a helpful assistant."
"""The system text of Qwen2-VL's chat template, and of the public MuCo weights."""


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


def draw_query(pair: Pair, draw: random.Random) -> Content:
    """Return one of the pair's paraphrases."""
    return pair.queries[draw.randrange(len(pair.queries))]


def alone(content: Content, key: TurnKey, *, system: str) -> Dialogue:
    """Return a dialogue of one turn, its images in the shared prefix."""
    return Dialogue(system, content.images, (user_turn(Content(content.text), key),))


def hard_negatives(pair: Pair, key: TurnKey, *, system: str) -> list[Dialogue]:
    """Return a dialogue for each of the pair's wrong targets; they keep their owner's identity."""
    keys = [replace(key, content_id=wrong.content_id, is_negative=True) for wrong in pair.negatives]
    return [alone(wrong, own, system=system) for wrong, own in zip(pair.negatives, keys, strict=True)]


def for_inference(content: Content, *, system: str) -> Dialogue:
    """Return the dialogue of one turn that belongs to no sample."""
    key = TurnKey(sample_id=0, turn_id=0, group_id=0, content_id=content.content_id, task_id=0)
    return alone(content, key, system=system)

"""One pair, one dialogue: the packing of every embedder before MuCo, and the baseline to hold against."""

from __future__ import annotations

import random
from typing import Any, Literal

from muco.core.component import Feature
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.packer import Packer
from muco.core.sample import Content, Sample
from muco.plugins.packers.base import (
    PackerConfig,
    alone,
    draw_pairs,
    draw_query,
    for_inference,
    hard_negatives,
    turn_key,
)


class SingleTurn(Packer):
    """Give every query and every target a dialogue of its own."""

    class Config(PackerConfig):
        turns: Literal["one", "all"] = "one"
        """one: a pair drawn from each sample. all: every pair, the image encoded anew for each."""

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"independent_targets"})

    def __init__(self, config: Config) -> None:
        self.turns: Literal["one", "all"] = config.turns
        self.max_negatives = config.max_negatives
        self.system = config.system

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        queries, targets, negatives = [], [], []
        for index in draw_pairs(sample, self.turns, sample_random):
            pair, key = sample.pairs[index], turn_key(sample, index)
            asked = draw_query(pair, sample_random)
            query = Content(asked.text, sample.images + asked.images)
            queries.append(alone(query, key, system=self.system))
            targets.append(alone(pair.target, key, system=self.system))
            negatives += hard_negatives(
                pair, key, system=self.system, most=self.max_negatives, draw=sample_random
            )
        return DialoguePair(tuple(queries), tuple(targets), tuple(negatives))

    def inference(self, content: Content) -> Dialogue:
        return for_inference(content, system=self.system)

"""One dialogue for each query and each target: the packing of single-turn embedders, as a baseline."""

from __future__ import annotations

import random
from typing import Any, Literal

from muco.core.component import Feature
from muco.core.dialogue import DialoguePair
from muco.core.sample import Content, Sample
from muco.plugins.packers.base import BasePacker, PackerConfig, draw_pairs, draw_query, turn_key


class SingleTurn(BasePacker):
    """Give every query and every target a dialogue of its own."""

    class Config(PackerConfig):
        turns: Literal["one", "all"] = "one"
        """one: a pair drawn from each sample. all: every pair, the image encoded anew for each."""

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"independent_targets"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.turns: Literal["one", "all"] = config.turns

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        queries, targets, negatives = [], [], []
        for index in draw_pairs(sample, self.turns, sample_random):
            pair, key = sample.pairs[index], turn_key(sample, index)
            query = draw_query(pair, sample_random)
            queries.append(self.single_turn(Content(query.text, sample.images + query.images), key))
            targets.append(self.single_turn(pair.target, key))
            negatives += self.hard_negatives(pair, key, sample_random)
        return DialoguePair(tuple(queries), tuple(targets), tuple(negatives))

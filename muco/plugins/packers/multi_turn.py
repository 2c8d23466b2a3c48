"""All pairs of an image in one pass: the packing that MuCo is named after."""

from __future__ import annotations

import random
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from muco.core.component import Feature
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.packer import Packer
from muco.core.sample import Content, Sample
from muco.plugins.packers.base import (
    PackerConfig,
    alone,
    draw_query,
    for_inference,
    hard_negatives,
    turn_key,
    user_turn,
)


class MultiTurn(Packer):
    """Put a sample's queries into one dialogue, its image at the head, and pay for the image once.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3: causal context, order per sample, targets as a
        dialogue are the paper's settings.
    """

    class Config(PackerConfig):
        context: Literal["causal", "isolated"] = "causal"
        """causal: a turn sees the image and the earlier turns (the paper). isolated: the image and
        itself, so that its embedding equals a single-turn pass."""
        targets: Literal["dialogue", "independent"] | None = None
        """dialogue: the targets are turns of a second dialogue (the paper). independent: each has one
        of its own. By default what goes with `context`; isolated implies independent."""
        order: Literal["per_sample", "per_batch", "fixed"] = "per_sample"
        """Of the turns: shuffled for each sample (the paper), one shuffle a batch, or as in the data."""
        max_turns: PositiveInt | None = None
        """At most this many turns of a sample, drawn anew at each visit; None takes all."""

        @model_validator(mode="after")
        def _isolated_means_independent(self) -> MultiTurn.Config:
            if self.context == "isolated" and self.targets == "dialogue":
                raise ValueError(
                    "`context: isolated` goes with `targets: independent`: a target that sees other "
                    "targets answers to no isolated query"
                )
            return self

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"isolated_turns" if config.context == "isolated" else "causal_context"})

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"independent_targets"} if _independent(config) else ())

    def __init__(self, config: Config) -> None:
        self.context: Literal["causal", "isolated"] = config.context
        self.independent = _independent(config)
        self.order = config.order
        self.max_turns = config.max_turns
        self.max_negatives = config.max_negatives
        self.system = config.system

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        chosen = self._turns(len(sample.pairs), batch_random, sample_random)
        keys = {index: turn_key(sample, index) for index in chosen}
        asked = [user_turn(draw_query(sample.pairs[index], sample_random), keys[index]) for index in chosen]
        queries = Dialogue(self.system, sample.images, tuple(asked), self.context)
        answers = [(sample.pairs[index].target, keys[index]) for index in chosen]
        if self.independent:
            targets = tuple(alone(target, key, system=self.system) for target, key in answers)
        else:
            said = tuple(user_turn(target, key) for target, key in answers)
            targets = (Dialogue(self.system, (), said),)
        negatives = [
            negative
            for index in chosen
            for negative in hard_negatives(
                sample.pairs[index],
                keys[index],
                system=self.system,
                most=self.max_negatives,
                draw=sample_random,
            )
        ]
        return DialoguePair((queries,), targets, tuple(negatives))

    def inference(self, content: Content) -> Dialogue:
        return for_inference(content, system=self.system)

    def _turns(self, num_turns: int, batch_random: random.Random, sample_random: random.Random) -> list[int]:
        """Return the pairs' indices in the order in which they are asked."""
        draw = {"per_sample": sample_random, "per_batch": batch_random, "fixed": None}[self.order]
        ranks = (draw or sample_random).sample(range(num_turns), num_turns)
        chosen = ranks[: self.max_turns]
        return chosen if draw else sorted(chosen)


def _independent(config: MultiTurn.Config) -> bool:
    return config.targets == "independent" or (config.targets is None and config.context == "isolated")

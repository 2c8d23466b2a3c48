"""All pairs of a sample in one dialogue: the packing that MuCo is named after."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from muco.core.component import Feature
from muco.core.dialogue import Dialogue, DialoguePair
from muco.core.sample import Sample
from muco.plugins.packers.base import BasePacker, PackerConfig, draw_query, turn_key, user_turn


class MultiTurn(BasePacker):
    """Put all queries of a sample into one dialogue after its image, which is encoded once.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3: causal context, order per sample, targets as a
        dialogue are the paper's settings.
    """

    class Config(PackerConfig):
        context: Literal["causal", "isolated"] = "causal"
        """causal: a turn sees the image and the earlier turns (the paper). isolated: a turn sees the image
        and itself, so its embedding equals that of a single-turn pass."""
        targets: Literal["dialogue", "independent"] | None = None
        """dialogue: the targets are turns of a second dialogue (the paper). independent: each target has
        its own dialogue. None: dialogue with `context: causal`, independent with `context: isolated`."""
        order: Literal["per_sample", "per_batch", "fixed"] = "per_sample"
        """Of the turns: shuffled for each sample (the paper), one shuffle a batch, or as in the data."""
        max_turns: PositiveInt | None = None
        """At most this many turns of a sample, drawn anew at each visit; None takes all."""
        line_breaks: Literal["template", "data"] = "template"
        """What ends a text in training. template: what the chat template writes, as in evaluation; in Qwen's
        it is a line break. data: a line break only if the text of the data has one, as in the public code."""

        @model_validator(mode="after")
        def _isolated_means_independent(self) -> MultiTurn.Config:
            if self.context == "isolated" and self.targets == "dialogue":
                raise ValueError(
                    "`context: isolated` needs `targets: independent`: isolated queries do not see each "
                    "other, so their targets must not either"
                )
            return self

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"isolated_turns" if config.context == "isolated" else "causal_context"})

    @classmethod
    def offers(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"independent_targets"} if _independent(config) else ())

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.context: Literal["causal", "isolated"] = config.context
        self.independent = _independent(config)
        self.order = config.order
        self.max_turns = config.max_turns
        self.line_breaks = config.line_breaks

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        indices = self._order(len(sample.pairs), batch_random, sample_random)
        pairs = [(sample.pairs[index], turn_key(sample, index)) for index in indices]
        turns = tuple(user_turn(draw_query(pair, sample_random), key) for pair, key in pairs)
        queries = Dialogue(self.system, sample.images, turns, self.context)
        if self.independent:
            targets = tuple(self.single_turn(pair.target, key) for pair, key in pairs)
        else:
            targets = (Dialogue(self.system, (), tuple(user_turn(pair.target, key) for pair, key in pairs)),)
        negatives = [
            dialogue for pair, key in pairs for dialogue in self.hard_negatives(pair, key, sample_random)
        ]
        sides = ((queries,), targets, tuple(negatives))
        if self.line_breaks == "data":
            sides = (tuple(map(_as_in_data, dialogues)) for dialogues in sides)
        return DialoguePair(*sides)

    def _order(self, num_pairs: int, batch_random: random.Random, sample_random: random.Random) -> list[int]:
        """Return the indices of the pairs that are packed, in the order of the turns."""
        rng = batch_random if self.order == "per_batch" else sample_random
        indices = rng.sample(range(num_pairs), num_pairs)[: self.max_turns]
        return sorted(indices) if self.order == "fixed" else indices


def _as_in_data(dialogue: Dialogue) -> Dialogue:
    """Return the dialogue with texts that end as in the data."""
    return replace(
        dialogue,
        turns=tuple(
            replace(turn, messages=tuple(replace(message, line_break=False) for message in turn.messages))
            for turn in dialogue.turns
        ),
    )


def _independent(config: MultiTurn.Config) -> bool:
    return config.targets == "independent" or (config.targets is None and config.context == "isolated")

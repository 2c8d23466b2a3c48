"""A pair twice: plain, and after reconstructing what was masked of its counterpart. Stage 2 of MuCo."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from muco.core.component import Feature
from muco.core.dialogue import Dialogue, DialoguePair, Message, Turn, TurnKey
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

REWRITE = "Please rewrite your last response in human-readable language."
PROMPTS = {
    "reconstruct": "Generate a response that first reconstructs your very last response by inferring any "
    "masked information, then acknowledges or rephrases the complete what I asked you, and finally "
    "integrates the Answer information seamlessly.",
    "rephrase": "Rephrase your very last response in your own words.",
    "none": "",
}
"""The first two texts are the public code's, as they stand there; that of `rephrase` is not public."""
CAPTION = "Image description: "

Share = Annotated[float, Field(ge=0, le=1)]


class Reconstruction(Packer):
    """Let each side of a pair answer a second time, having seen the other side with words masked.

    A query's dialogue goes on with its target, masked, as if the model had said it, and ends in a second
    embedding, of form 1; a target's goes on with its query. Both embeddings of a side are positives of
    both of the other. Only the first is used after training, and it sees nothing of the second turn.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3: single-turn adaptation.
    """

    class Config(PackerConfig):
        turns: Literal["one", "all"] = "one"
        """one: a pair drawn from each sample. all: every pair, the image encoded anew for each."""
        mask_ratio: Share = 0.5
        """Probability of each word of the counterpart to be masked; masks in a row become one."""
        full_mask_share: Share = 0.5
        """Probability of the whole counterpart to be one mask, whatever it holds."""
        prompt: Literal["reconstruct", "rephrase", "none"] = "reconstruct"
        """What is asked before the second embedding. none: nothing."""
        captions: bool = True
        """Put an image's caption in its place in the counterpart, where the sample has one. An image
        without, or with false any, is a mask."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"causal_context"})

    def __init__(self, config: Config) -> None:
        self.config = config
        self.system = config.system

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        queries, targets, negatives = [], [], []
        for index in draw_pairs(sample, self.config.turns, sample_random):
            pair, key = sample.pairs[index], turn_key(sample, index)
            asked = draw_query(pair, sample_random)
            captions = "\n".join(filter(None, (sample.caption, asked.caption)))
            query = Content(asked.text, sample.images + asked.images, captions)
            queries.append(self._twice(query, pair.target, key, sample_random))
            targets.append(self._twice(pair.target, query, key, sample_random))
            negatives += hard_negatives(
                pair, key, system=self.system, most=self.config.max_negatives, draw=sample_random
            )
        return DialoguePair(tuple(queries), tuple(targets), tuple(negatives))

    def inference(self, content: Content) -> Dialogue:
        return for_inference(content, system=self.system)

    def _twice(self, own: Content, counterpart: Content, key: TurnKey, draw: random.Random) -> Dialogue:
        """Return the side's plain turn and the one that reconstructs its counterpart."""
        messages = [Message("user", Content(REWRITE)), self._masked(counterpart, draw)]
        if prompt := PROMPTS[self.config.prompt]:
            messages.append(Message("user", Content(prompt)))
        first = alone(own, key, system=self.system)
        again = Turn(tuple(messages), replace(key, form_id=1))
        return replace(first, turns=(*first.turns, again))

    def _masked(self, content: Content, draw: random.Random) -> Message:
        if draw.random() < self.config.full_mask_share:
            return _blanked([None])
        words: list[str | None] = []
        if content.images and self.config.captions and content.caption:
            words += f"{CAPTION}{content.caption}\n{content.text}".strip("\n").split(" ")
        else:
            words += [None] * bool(content.images) + content.text.split(" ") * bool(content.text)
        ratio = self.config.mask_ratio
        return _blanked([None if draw.random() < ratio else word for word in words])


def _blanked(words: list[str | None]) -> Message:
    """Return what the assistant said, a blank for each run of words that are None."""
    text, blanks = "", list[int]()
    for place, word in enumerate(words):
        if word is None and place and words[place - 1] is None:
            continue
        text += " " * bool(place)
        if word is None:
            blanks.append(len(text))
        else:
            text += word
    return Message("assistant", Content(text), tuple(blanks))

"""Stage 2 of MuCo: each side of a pair is embedded again after reconstructing the masked other side."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from muco.core.component import Feature
from muco.core.dialogue import Dialogue, DialoguePair, Message, Turn, TurnKey
from muco.core.sample import Content, Sample
from muco.plugins.packers.base import BasePacker, PackerConfig, draw_pairs, draw_query, turn_key

REWRITE = "Please rewrite your last response in human-readable language."
PROMPTS = {
    "reconstruct": "Generate a response that first reconstructs your very last response by inferring any "
    "masked information, then acknowledges or rephrases the complete what I asked you, and finally "
    "integrates the Answer information seamlessly.",
    "rephrase": "Rephrase your very last response in your own words.",
    "none": "",
}
"""`REWRITE` and `reconstruct` have the public code's wording; the paper's `rephrase` is not public."""
CAPTION = "Image description: "

Share = Annotated[float, Field(ge=0, le=1)]


class Reconstruction(BasePacker):
    """Embed each side of a pair a second time, after it has seen the other side with words masked.

    A query's dialogue continues with its masked target as an assistant message and ends in a second
    embedding, of form 1. A target's dialogue continues with its masked query in the same way. Both embeddings
    of a side are positives of both of the other. Only the first is used after training; it does not see the
    second turn.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3: single-turn adaptation.
    """

    class Config(PackerConfig):
        turns: Literal["one", "all"] = "one"
        """one: a pair drawn from each sample. all: every pair, the image encoded anew for each."""
        mask_ratio: Share = 0.5
        """Probability that a word of the other side is masked; adjacent masks become one."""
        full_mask_share: Share = 0.5
        """Probability that the whole other side is replaced by one mask."""
        prompt: Literal["reconstruct", "rephrase", "none"] = "reconstruct"
        """The message before the second embedding. none: no message."""
        captions: bool = True
        """Write an image of the other side as its caption, if the sample has one. Without a caption, or with
        `captions: false`, the image is a mask."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return frozenset({"causal_context"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def pack(
        self, sample: Sample, *, batch_random: random.Random, sample_random: random.Random
    ) -> DialoguePair:
        queries, targets, negatives = [], [], []
        for index in draw_pairs(sample, self.config.turns, sample_random):
            pair, key = sample.pairs[index], turn_key(sample, index)
            drawn = draw_query(pair, sample_random)
            caption = "\n".join(filter(None, (sample.caption, drawn.caption)))
            query = Content(drawn.text, sample.images + drawn.images, caption)
            queries.append(self._two_turns(query, pair.target, key, sample_random))
            targets.append(self._two_turns(pair.target, query, key, sample_random))
            negatives += self.hard_negatives(pair, key, sample_random)
        return DialoguePair(tuple(queries), tuple(targets), tuple(negatives))

    def _two_turns(self, content: Content, other: Content, key: TurnKey, rng: random.Random) -> Dialogue:
        """Return a dialogue of the plain turn and the turn that reconstructs the other side."""
        messages = [Message("user", Content(REWRITE), line_break=False), self._masked(other, rng)]
        if prompt := PROMPTS[self.config.prompt]:
            messages.append(Message("user", Content(prompt), line_break=False))
        plain = self.single_turn(content, key)
        return replace(plain, turns=(*plain.turns, Turn(tuple(messages), replace(key, form_id=1))))

    def _masked(self, content: Content, rng: random.Random) -> Message:
        """Return the content as an assistant message with words masked."""
        if rng.random() < self.config.full_mask_share:
            return _masked_message([None])
        words: list[str | None] = []
        if content.images and self.config.captions and content.caption:
            words += _ended(f"{CAPTION}{content.caption}\n{content.text}").split(" ")
        else:
            words += [None] * bool(content.images) + _ended(content.text).split(" ") * bool(content.text)
        ratio = self.config.mask_ratio
        return _masked_message([None if rng.random() < ratio else word for word in words])


def _ended(text: str) -> str:
    """Return a text with one line break at its end, as in the public code; it belongs to the last word."""
    return text.rstrip("\n") + "\n"


def _masked_message(words: list[str | None]) -> Message:
    """Return an assistant message of the words, with one blank for each run of words that are None."""
    text, blanks = "", list[int]()
    for index, word in enumerate(words):
        if word is None and index and words[index - 1] is None:
            continue
        text += " " * bool(index)
        if word is None:
            blanks.append(len(text))
        else:
            text += word
    return Message("assistant", Content(text), tuple(blanks), line_break=False)

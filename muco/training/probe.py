"""The blind probe: how well a model finds the right targets of a batch if it sees none of its images.

N query turns, C candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from muco.core.dialogue import Dialogue, DialoguePair, Message
from muco.core.encoder import TurnEncoder
from muco.core.loss import Loss
from muco.core.packer import Packer
from muco.core.sample import Content, Sample
from muco.core.turns import TurnEmbeddings
from muco.core.video import Visual
from muco.training.batches import SideInputs, StepBatches

NUM_BATCHES = 8
_TIE = 1e-6
"""Cosine similarities that differ by less are equal: rounding depends on the position in a matrix."""


def blind_probe(encoder: TurnEncoder, loss: Loss, batches: StepBatches, *, start: int) -> dict[str, float]:
    """Return in-batch precision@1 of the training objective, over `NUM_BATCHES` batches.

    Candidates that tie at the top share the credit.

    Args:
        encoder: a trained one.
        loss: decides what a query is compared with.
        batches: of the training.
        start: the first step whose batch is taken.

    Returns:
        By metric. `probe/blind`: every image is replaced by one and the same picture. `probe/sighted`:
        nothing is replaced. `probe/chance`: the expected value of a random choice.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device).eval()
    whole = copy.copy(batches.chunked(None))
    whole.rank, whole.num_ranks = 0, 1
    blind = copy.copy(whole)
    blind.packer = OnePicture(whole.packer)
    sums = {"blind": 0.0, "sighted": 0.0, "chance": 0.0}
    num_queries = 0
    for step in range(start, start + NUM_BATCHES):
        for name, chosen in (("sighted", whole), ("blind", blind)):
            inputs = chosen[step]
            query, target = (_encode(encoder, side, device) for side in (inputs.queries, inputs.targets))
            credit_N, chance_N = precision_at_1(loss, query, target)
            sums[name] += float(credit_N.sum())
        sums["chance"] += float(chance_N.sum())
        num_queries += len(query)
    return {f"probe/{name}": value / max(num_queries, 1) for name, value in sums.items()}


def precision_at_1(loss: Loss, query: TurnEmbeddings, target: TurnEmbeddings) -> tuple[Tensor, Tensor]:
    """Return the credit of each query and that of a random choice, float [N] each."""
    candidates = loss.candidates(query, target)
    positive_NC, negative_NC = candidates.is_positive, candidates.is_negative
    scores_NC = candidates.scores.masked_fill(~(positive_NC | negative_NC), float("-inf"))
    top_NC = scores_NC >= scores_NC.amax(1, keepdim=True) - _TIE
    credit_N = (top_NC & positive_NC).sum(1) / (top_NC & (positive_NC | negative_NC)).sum(1)
    return credit_N, positive_NC.sum(1) / (positive_NC | negative_NC).sum(1)


@torch.no_grad()
def _encode(encoder: TurnEncoder, side: SideInputs, device: torch.device) -> TurnEmbeddings:
    vectors = torch.cat([encoder(chunk.to(device)).vectors for chunk in side.chunks])
    return TurnEmbeddings.join(vectors[side.row_index.to(device)], side.ids.to(device))


class OnePicture(Packer):
    """Replaces every image by the first picture that it packs.

    The turns keep their ids, so that positives and negatives stay what they are.
    """

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.picture: Visual | None = None

    def pack(self, sample: Sample, *, batch_random: Random, sample_random: Random) -> DialoguePair:
        """Pack a sample and replace its images."""
        pair = self.packer.pack(sample, batch_random=batch_random, sample_random=sample_random)
        sides = (pair.queries, pair.targets, pair.negatives)
        return DialoguePair(*(tuple(map(self._replaced, dialogues)) for dialogues in sides))

    def inference(self, content: Content) -> Dialogue:
        """Return the dialogue of a content, its images replaced."""
        return self._replaced(self.packer.inference(content))

    def _replaced(self, dialogue: Dialogue) -> Dialogue:
        turns = [replace(turn, messages=tuple(map(self._message, turn.messages))) for turn in dialogue.turns]
        return replace(dialogue, images=self._pictures(dialogue.images), turns=tuple(turns))

    def _message(self, message: Message) -> Message:
        content = message.content
        return replace(message, content=replace(content, images=self._pictures(content.images)))

    def _pictures(self, images: Sequence[Visual]) -> tuple[Visual, ...]:
        if images and self.picture is None:
            self.picture = images[0]
        return tuple(self.picture for _ in images if self.picture is not None)

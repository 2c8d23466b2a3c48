"""The FLOPs of a training step, as `muco.training.step` computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muco.core.layers import Lengths, Part
from muco.costs.count import Flops, count_part


@dataclass(frozen=True)
class StepFlops:
    """FLOPs by part of the step."""

    once: Mapping[str, Flops]
    """Each chunk encoded once, forward and back, and the loss."""
    twice: Mapping[str, int]
    """Forward passes that cached gradients add."""

    @property
    def model(self) -> int:
        """Forward and backward without anything computed again, all pairs of attention counted."""
        return sum(each.forward + each.backward for each in self.once.values())

    @property
    def hardware(self) -> int:
        """What is computed: `model`, what cached gradients and gradient checkpointing compute again."""
        return self.model + sum(self.twice.values()) + sum(each.recomputed for each in self.once.values())

    @property
    def scores(self) -> int:
        """What flash attention adds to `hardware`: scores that its backward pass computes again."""
        return sum(each.scores for each in self.once.values())

    @property
    def unmasked(self) -> int:
        """`model` with only those pairs of attention that the mask allows."""
        return self.model - sum(each.masked for each in self.once.values())


@dataclass(frozen=True)
class Chunks:
    """What some chunks have together."""

    lengths: Lengths
    number: int


def count_step(
    parts: Sequence[Part], chunks: Chunks, *, loss: Flops, twice: Chunks | None = None
) -> StepFlops:
    """Return the FLOPs of a step over chunks of queries and targets; see `count_loss` for `loss`.

    `twice` are the chunks that cached gradients encode twice. Image features are kept between the passes if
    nothing of what computes them is trained.
    """
    once = {part.name: count_part(part, chunks.lengths, calls=chunks.number) for part in parts}
    keeps_images = not any(part.trained for part in parts if part.computes_images)
    again = {
        part.name: count_part(part, twice.lengths, calls=twice.number).forward
        for part in parts
        if twice is not None and not (part.computes_images and keeps_images)
    }
    return StepFlops({**once, "loss": loss}, again)


def count_loss(num_queries: int, num_targets: int, embedding_dim: int, *, symmetric: bool) -> Flops:
    """Return the FLOPs of the similarities of all queries and targets, of all ranks.

    A loss that computes several such products, Matryoshka's for example, is counted as one.
    """
    product = 2 * num_queries * num_targets * embedding_dim * (2 if symmetric else 1)
    return Flops(forward=product, backward=2 * product)

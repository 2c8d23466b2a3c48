"""One training step: encode both sides, gather, score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muco.core.loss import Loss
from muco.core.turns import TurnEmbeddings
from muco.training.batches import SideInputs, StepInputs


@dataclass(frozen=True)
class StepLoss:
    """What one step's batch came to."""

    mean: Tensor
    """Scalar with gradient: the loss of all ranks' query turns, averaged; this rank's part of it."""
    num_turns: int
    """Query turns of all ranks."""
    counts: Mapping[str, Tensor]


def encode_side(encoder: nn.Module, side: SideInputs, device: torch.device) -> TurnEmbeddings:
    """Return the embeddings of a side's N turns, in the packer's order, with gradient."""
    parts = [encoder(chunk.to(device)).vectors for chunk in side.chunks]
    vectors = torch.cat(parts)[side.row_index.to(device)]
    return TurnEmbeddings.join(vectors, side.ids.to(device))


def forward_step(encoder: nn.Module, loss: Loss, inputs: StepInputs, device: torch.device) -> StepLoss:
    """Return the batch's loss; `encoder` is a `TurnEncoder`, wrapped or not.

    Raises:
        ValueError: a query turn has no positive or no negative.
    """
    queries = encode_side(encoder, inputs.queries, device)
    targets = encode_side(encoder, inputs.targets, device)
    terms = loss(queries, targets)
    num_turns = len(queries)
    return StepLoss(terms.per_turn.sum() / num_turns, num_turns, terms.counts)

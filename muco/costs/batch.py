"""The model FLOPs of real batches, for the log of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from muco.core.backbone import Backbone
from muco.core.encoder import TurnEncoder
from muco.core.layers import ModelLayers, join_lengths
from muco.core.turns import EncoderInputs
from muco.costs.count import Flops, count_part
from muco.costs.step import count_loss
from muco.model.build import Model


@dataclass(frozen=True)
class BatchFlops:
    """Counts forward and backward passes, all pairs of attention, nothing that is computed again."""

    layers: ModelLayers
    model: TurnEncoder
    symmetric: bool
    """Whether the loss compares the sides in both directions."""

    @classmethod
    def of(cls, model: Model) -> BatchFlops | None:
        """Return the counter of a model; None if its backbone does not say what it computes."""
        backbone, ref = model.encoder.backbone, model.settings.backbone
        if backbone.sizes is None:
            return None
        layers = cast("type[Backbone]", ref.cls).layers_of(ref.config, backbone.sizes)
        return layers and cls(layers, model.encoder, model.loss.symmetric)

    def encoder(self, chunks: Sequence[EncoderInputs]) -> int:
        """Return the FLOPs of encoding chunks, and of the way back."""
        lengths = join_lengths([self.layers.lengths_of(self.model.reading(chunk)) for chunk in chunks])
        return _both(*(count_part(part, lengths, calls=len(chunks)) for part in self.layers.parts))

    def loss(self, num_queries: int, num_targets: int) -> int:
        """Return the FLOPs of the loss over all processes."""
        dim = self.model.pooler.embedding_dim
        return _both(count_loss(num_queries, num_targets, dim, symmetric=self.symmetric))


def _both(*parts: Flops) -> int:
    return sum(part.forward + part.backward for part in parts)

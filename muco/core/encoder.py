"""The one module that a training step calls, and that DDP or FSDP wraps."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from muco.core.backbone import Backbone
from muco.core.pooler import Pooler
from muco.core.turns import EncoderInputs, ImageFeatures, TurnEmbeddings


class TurnEncoder(nn.Module):
    """A backbone and a pooler: chunks in, turn embeddings out."""

    def __init__(self, backbone: Backbone, pooler: Pooler) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooler = pooler

    def forward(self, inputs: EncoderInputs, images: ImageFeatures | None = None) -> TurnEmbeddings:
        """Return the embeddings of the chunk's N turns, in its order.

        The chunk is on this module's device; `images` are its image features, if they were computed before.
        """
        return self.pooler(self.backbone.encode(self.reading(inputs), images))

    def reading(self, inputs: EncoderInputs) -> EncoderInputs:
        """Return the chunk with the tokens that the pooler reads."""
        return replace(inputs, read_tokens=self.pooler.reads(inputs.spans))

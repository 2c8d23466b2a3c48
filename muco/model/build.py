"""Build an untrained encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from muco.config.recipe import ModelSettings
from muco.core.encoder import TurnEncoder
from muco.core.loss import Loss
from muco.model.folder import load_pretrained_pooler


@dataclass(frozen=True)
class Model:
    """What is trained: the encoder, and the loss where it has parameters."""

    settings: ModelSettings
    """Saved with the weights."""
    encoder: TurnEncoder
    loss: Loss


def build_encoder(settings: ModelSettings, *, texts: Iterable[str], seed: int) -> TurnEncoder:
    """Return an encoder whose random weights follow from `seed`, which is set as torch's seed.

    A backbone that trains its tokenizer trains it on `texts`. A backbone that is `pretrained` by a model
    folder brings the pooler of that folder along.
    """
    torch.manual_seed(seed)
    backbone = settings.backbone.cls.build(settings.backbone.config, texts=texts)
    encoder = TurnEncoder(backbone, settings.pooler.make(hidden_dim=backbone.hidden_dim))
    load_pretrained_pooler(settings, encoder)
    return encoder

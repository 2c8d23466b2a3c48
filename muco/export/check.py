"""Compare an exported folder's vectors, as another tool computes them, with muco's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError
from muco.core.packer import Packer
from muco.export.probes import Probes
from muco.export.readers import Reader

LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of one batch are to muco's."""

    reader: str
    kind: str
    number: int
    cosine: float
    """The lowest of the batch."""
    difference: float
    """The largest of any dimension."""


@torch.inference_mode()
def own_vectors(encoder: TurnEncoder, packer: Packer, probes: Sequence[Probes]) -> list[Tensor]:
    """Return muco's vectors of each batch, float32 [N, D] on the CPU, computed in float32 one by one."""
    device = next(encoder.parameters()).device
    encoder = encoder.float().eval()
    processor = encoder.backbone.processor
    dialogues = [[packer.inference(content) for content in probe.contents] for probe in probes]
    return [
        torch.cat([encoder(processor.prepare([each]).to(device)).vectors.float().cpu() for each in batch])
        for batch in dialogues
    ]


def compare(reader: Reader, probes: Sequence[Probes], expected: Sequence[Tensor]) -> list[Agreement]:
    """Return how near a reader's vectors are, by batch; raise MucoError for one below `LEAST_COSINE`."""
    agreements = [
        _agreement(reader.name, probe, _encode(reader, probe), own)
        for probe, own in zip(probes, expected, strict=True)
    ]
    wrong = [f"{each.kind} {each.cosine:.6f}" for each in agreements if not each.cosine >= LEAST_COSINE]
    if wrong:
        raise MucoError(
            f"the exported model gives other vectors in {reader.name} than in muco, so it was removed. "
            f"Lowest cosine: {', '.join(wrong)}; at least {LEAST_COSINE} is needed."
        )
    return agreements


def _encode(reader: Reader, probes: Probes) -> Tensor:
    try:
        return reader.encode(probes.contents)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise MucoError(
            f"{reader.name} cannot encode a batch of {probes.kind} with the exported model: {error}"
        ) from error


def _agreement(reader: str, probes: Probes, vectors: Tensor, expected: Tensor) -> Agreement:
    if vectors.shape != expected.shape:
        raise MucoError(f"{reader} gives vectors {list(vectors.shape)}, muco {list(expected.shape)}")
    cosine, difference = (vectors * expected).sum(1).min(), (vectors - expected).abs().max()
    return Agreement(reader, probes.kind, len(expected), float(cosine), float(difference))

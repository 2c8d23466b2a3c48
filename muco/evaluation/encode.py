"""Contents to vectors: each distinct one once, in chunks of like lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from muco.core.backbone import Cost
from muco.core.chunks import plan_chunks
from muco.core.encoder import TurnEncoder
from muco.core.errors import MucoError
from muco.core.packer import Packer
from muco.core.sample import Content

Track = Callable[[Iterable[list[int]], int], Iterable[list[int]]]
"""Shows that chunks go by: (chunks, their number) -> the same chunks."""


class Encoder:
    """A trained encoder and the words that it was trained with."""

    def __init__(self, encoder: TurnEncoder, packer: Packer, *, batch_tokens: int) -> None:
        self._encoder = encoder.eval()
        self._packer = packer
        self._budget = Cost(tokens=batch_tokens, patches=batch_tokens)
        self._device = next(encoder.parameters()).device

    @torch.inference_mode()
    def encode(self, contents: Sequence[Content], track: Track = lambda chunks, _: chunks) -> Tensor:
        """Return float32 [contents, D], unit length, on the CPU; equal contents share one vector.

        Raises:
            MucoError: a vector is not finite.
            DataError: an image that cannot be read.
        """
        places: dict[int, int] = {}
        rows = [places.setdefault(content.content_id, len(places)) for content in contents]
        distinct: list[Content] = [Content()] * len(places)
        for content, row in zip(contents, rows, strict=True):
            distinct[row] = content
        dialogues = [self._packer.inference(content) for content in distinct]
        processor = self._encoder.backbone.processor
        costs = [processor.count(dialogue) for dialogue in dialogues]
        plan = plan_chunks(costs, self._budget, padded=processor.padded)
        parts: list[Tensor] = []
        for chunk in track(plan, len(plan)):
            inputs = processor.collate([dialogues[place] for place in chunk])
            vectors = self._encoder(inputs.to(self._device)).vectors.float().cpu()
            strange = ~torch.isfinite(vectors).all(1)
            if strange.any():
                shown = distinct[chunk[int(strange.nonzero()[0])]]
                raise MucoError(
                    f"the embedding of {shown.text[:80]!r} with {len(shown.images)} images is not finite; "
                    "the weights are broken. Evaluate an earlier checkpoint, or train anew."
                )
            parts.append(vectors)
        order = torch.tensor([place for chunk in plan for place in chunk])
        return torch.cat(parts)[order.argsort()][torch.tensor(rows)]

"""One training step's gradients: encode both sides, gather, score, and go back, at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from muco.core.encoder import TurnEncoder
from muco.core.loss import Loss
from muco.core.turns import EncoderInputs, ImageFeatures, TurnEmbeddings
from muco.distributed.fsdp import Shards
from muco.distributed.ranks import Ranks
from muco.training.batches import SideInputs, StepInputs


@dataclass(frozen=True)
class StepLoss:
    """What one step's batch came to, over all ranks."""

    mean: float
    """The loss of all query turns, averaged, in nats."""
    num_turns: int
    """Query turns."""
    counts: Mapping[str, float]
    rates: Mapping[str, float]
    """Numbers of query turns."""


@dataclass(frozen=True)
class Stepper:
    """Leaves on every trained weight the gradient of the batch's mean loss."""

    encoder: TurnEncoder
    loss: Loss
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    shards: Shards = field(default_factory=Shards)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    cached: bool = False
    """Keep the activations of one chunk at a time, and encode every chunk twice."""
    offload_images: bool = False
    """Keep a frozen vision tower's features on the host between the passes, not on the device."""

    def __call__(self, inputs: StepInputs) -> StepLoss:
        """Add the batch's gradients to the weights; the caller clears them.

        Raises:
            ValueError: a query turn has no positive or no negative.
        """
        self.shards.gather()
        done = self._cached(inputs) if self.cached else self._plain(inputs)
        self.shards.release(self.encoder)
        self.ranks.sum_gradients(self.parameters())
        return done

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield the weights of the encoder and of the loss."""
        yield from self.encoder.parameters()
        yield from self.loss.parameters()

    def rehearse(self, chunk: EncoderInputs) -> int:
        """Go through one chunk as a step would, for its cost: weights, buffers and gradients stay.

        Returns:
            The bytes of image features that a cached step would keep of it on the device.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.encoder.buffers()]
        first = self._first_pass(chunk)
        images = first.images_on(self.device) if self.cached else None
        vectors = self._encode(chunk, images)
        vectors.backward(torch.zeros_like(vectors))
        for buffer, before in buffers:
            buffer.copy_(before)
        if not self.cached or first.images is None or self.offload_images:
            return 0
        return sum(tensor.nbytes for tensor in first.images.tensors)

    def _plain(self, inputs: StepInputs) -> StepLoss:
        sides = [
            self._joined([self._encode(chunk) for chunk in side.chunks], side)
            for side in (inputs.queries, inputs.targets)
        ]
        return self._score(*sides)

    def _cached(self, inputs: StepInputs) -> StepLoss:
        """The gradient of the embeddings first, then that of the weights, chunk by chunk.

        References:
            Gao et al. 2021, arXiv:2101.06983: GradCache.
        """
        firsts, sides = [], []
        for side in (inputs.queries, inputs.targets):
            passes = [self._first_pass(chunk) for chunk in side.chunks]
            sides.append(self._joined([each.vectors for each in passes], side))
            firsts += list(zip(side.chunks, passes, strict=True))
        done = self._score(*sides)
        for chunk, first in firsts:
            first.random.restore()
            again = self._encode(chunk, first.images_on(self.device))
            again.backward(first.vectors.grad)
        return done

    def _first_pass(self, chunk: EncoderInputs) -> _FirstPass:
        moved = chunk.to(self.device)
        with torch.no_grad():
            images = None
            if not any(weight.requires_grad for weight in self.encoder.backbone.image_parameters()):
                with self.autocast():
                    images = self.encoder.backbone.encode_images(moved)
            random = _RandomState.of(self.device)
            vectors = self._encode(moved, images)
        if images is not None and self.offload_images:
            images = images.to("cpu")
        return _FirstPass(vectors.requires_grad_(), random, images)

    def _encode(self, chunk: EncoderInputs, images: ImageFeatures | None = None) -> Tensor:
        """Return the chunk's embeddings, float32 or finer."""
        with self.autocast():
            vectors = self.encoder(chunk.to(self.device), images).vectors
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))

    def _joined(self, parts: list[Tensor], side: SideInputs) -> TurnEmbeddings:
        """Return the embeddings of a side's N turns, in the packer's order, with gradient."""
        parts = parts or [self._no_vectors()]
        vectors = torch.cat(parts)[side.row_index.to(self.device)]
        return TurnEmbeddings.join(vectors, side.ids.to(self.device))

    def _no_vectors(self) -> Tensor:
        """Return the embeddings of a rank without samples: it takes part in every exchange all the same."""
        dtype = torch.promote_types(next(self.encoder.parameters()).dtype, torch.float32)
        dim = self.encoder.pooler.embedding_dim
        return torch.zeros(0, dim, dtype=dtype, device=self.device, requires_grad=True)

    def _score(self, queries: TurnEmbeddings, targets: TurnEmbeddings) -> StepLoss:
        """Take the gradient of the mean loss of all ranks' query turns; this rank's part of it."""
        num_turns = self.ranks.sums({"turns": len(queries)}, self.device)["turns"]
        terms = self.loss(queries, self.ranks.gather(targets))
        mean = terms.per_turn.sum() / max(num_turns, 1)
        if self.loss.symmetric:
            mean = (mean + self._exchanged(queries, targets)) / 2
        mean.backward()
        sums = self.ranks.sums({**terms.counts, "mean": mean.detach()}, self.device)
        rates = self.ranks.sums(terms.rates, self.device)
        return StepLoss(sums.pop("mean"), int(num_turns), sums, rates)

    def _exchanged(self, queries: TurnEmbeddings, targets: TurnEmbeddings) -> Tensor:
        """Return this rank's part of the mean loss of the target turns against all queries."""
        targets = targets.select(~targets.is_negative)
        num_turns = self.ranks.sums({"turns": len(targets)}, self.device)["turns"]
        return self.loss(targets, self.ranks.gather(queries)).per_turn.sum() / max(num_turns, 1)


@dataclass(frozen=True)
class _FirstPass:
    """What the first pass over a chunk leaves for the second."""

    vectors: Tensor
    """Its gradient is filled by the loss."""
    random: _RandomState
    images: ImageFeatures | None

    def images_on(self, device: torch.device) -> ImageFeatures | None:
        return None if self.images is None else self.images.to(device)


@dataclass(frozen=True)
class _RandomState:
    """The generators that dropout draws from."""

    cpu: Tensor
    device: torch.device
    cuda: Tensor | None = field(default=None)

    @classmethod
    def of(cls, device: torch.device) -> _RandomState:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

"""Compute the gradients of one training step: encode both sides, gather them, score, run backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from muco.core.dialogue import Dialogue, Message, Turn, TurnKey
from muco.core.encoder import TurnEncoder
from muco.core.loss import Loss
from muco.core.sample import Content
from muco.core.turns import EncoderInputs, ImageFeatures, TurnEmbeddings
from muco.distributed.fsdp import Shards
from muco.distributed.gradients import backward_order
from muco.distributed.ranks import Ranks
from muco.model.batching import held_chunks
from muco.training.batches import SideInputs, StepInputs

LastBackward = Callable[[], AbstractContextManager[object]]
"""Holds the last backward pass of a step, in which the exchange of gradients starts."""
_FILLER = Dialogue("", (), (Turn((Message("user", Content("a")),), TurnKey(0, 0, 0, 0, 0)),))


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step's batch, over all ranks."""

    mean: float
    """Averaged over query turns, in nats."""
    num_turns: int
    """Query turns."""
    counts: Mapping[str, float]
    """What the loss counts, by name."""
    rates: Mapping[str, float]
    """Numbers of query turns, by name; divided by `num_turns`, they are rates."""


@dataclass(frozen=True)
class Stepper:
    """Adds the gradient of a batch's mean loss to every trained weight."""

    encoder: TurnEncoder
    loss: Loss
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    shards: Shards = field(default_factory=Shards)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    grad_cache: bool = False
    """Hold the activations of at most `held_tokens` at a time, and encode the other chunks twice."""
    held_tokens: int = 0
    """Tokens, or patches where a chunk has more of them; see `held_chunks`."""
    offload_images: bool = False
    """Between the two passes, hold a frozen vision tower's features on the host, not on the device."""

    def __call__(self, inputs: StepInputs) -> StepLoss:
        """Add the batch's gradients to the weights; the caller clears them after the update."""
        is_sharded = bool(self.shards.modules)
        exchange = self.ranks.gradient_sum(() if is_sharded else self._backward_order())
        last_backward = self.shards.reducing if is_sharded else exchange.during_backward
        with self.shards.step(self.encoder):
            run = self._backward_by_chunk if self.grad_cache else self._backward
            loss = run(inputs, last_backward)
        if is_sharded:
            exchange = self.ranks.gradient_sum(self._backward_order())  # of the weights that are not sharded
        exchange.finish()
        return loss

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield the weights of the encoder and of the loss."""
        yield from self.encoder.parameters()
        yield from self.loss.parameters()

    def _backward_order(self) -> list[nn.Parameter]:
        """Return the weights as the last backward pass reaches them; the loss's are reached before."""
        return [*backward_order(self.encoder), *self.loss.parameters()]

    def held(self, chunks: Sequence[EncoderInputs]) -> list[int]:
        """Return the indices of the chunks of a step whose activations are held until their backward pass."""
        if not self.grad_cache:
            return list(range(len(chunks)))
        return held_chunks([chunk.size for chunk in chunks], self.held_tokens)

    def dry_run(self, chunk: EncoderInputs) -> int:
        """Run a step's passes over one chunk to measure their memory; its gradients are zero.

        Return the bytes of image features that are on the device until the chunk's second pass.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.encoder.buffers()]
        try:
            first = self._first_pass(chunk)
            images = first.images_on(self.device) if self.grad_cache else None
            vectors = self._encode(chunk, images)
            with self.shards.reducing():
                vectors.backward(torch.zeros_like(vectors))
        finally:
            for buffer, saved in buffers:
                buffer.copy_(saved)
        if not self.grad_cache or first.images is None or self.offload_images:
            return 0
        return sum(tensor.nbytes for tensor in first.images.tensors)

    def _backward(self, inputs: StepInputs, last_backward: LastBackward) -> StepLoss:
        queries, targets = (
            self._in_order([self._encode(chunk) for chunk in side.chunks], side)
            for side in (inputs.queries, inputs.targets)
        )
        return self._score(queries, targets, last_backward)

    def _backward_by_chunk(self, inputs: StepInputs, last_backward: LastBackward) -> StepLoss:
        """Compute the gradient of the embeddings first, then of the weights, one chunk at a time (GradCache,
        Gao et al. 2021, arXiv:2101.06983). The chunks that fit into `held_tokens` are encoded once.
        """
        queries, targets = inputs.queries, inputs.targets
        chunks = [*queries.chunks, *targets.chunks]
        chunks += self._fillers(len(chunks))
        held = self.held(chunks)
        graphs, first_passes, vectors = dict[int, Tensor](), dict[int, _FirstPass](), list[Tensor]()
        for i, chunk in enumerate(chunks):  # in the order of a plain step, which decides the dropout masks
            if i in held:
                graphs[i] = self._encode(chunk)
                vectors.append(graphs[i].detach().requires_grad_())
            else:
                first_passes[i] = self._first_pass(chunk)
                vectors.append(first_passes[i].vectors)
        num_queries, num_targets = len(queries.chunks), len(targets.chunks)
        loss = self._score(
            self._in_order(vectors[:num_queries], queries),
            self._in_order(vectors[num_queries:][:num_targets], targets),
        )
        # The graphs first: their memory is free before a chunk is encoded again.
        order = [*held, *first_passes]
        for i in order:
            graph = graphs.pop(i) if i in graphs else self._second_pass(chunks[i], first_passes[i])
            gradient = torch.zeros_like(graph) if vectors[i].grad is None else vectors[i].grad
            with last_backward() if i == order[-1] else nullcontext():
                graph.backward(gradient)
        return loss

    def _fillers(self, num_chunks: int) -> list[EncoderInputs]:
        """Return the chunks of one short text that this rank encodes in addition to its `num_chunks`.

        Where layers are gathered one by one, all ranks must call them equally often. The turns of these
        chunks are not scored, and their gradient is zero.
        """
        if not self.shards.by_layer:
            return []
        num_missing = self.ranks.greatest(num_chunks) - num_chunks
        return [self.encoder.backbone.processor.prepare([_FILLER])] * num_missing

    def _first_pass(self, chunk: EncoderInputs) -> _FirstPass:
        chunk = chunk.to(self.device)
        with torch.no_grad():
            images = None
            if not any(weight.requires_grad for weight in self.encoder.backbone.image_parameters()):
                with self.autocast():
                    images = self.encoder.backbone.encode_images(chunk)
            random = torch.get_rng_state(), get_device_states(chunk.ids.sample_ids)
            vectors = self._encode(chunk, images)
        if images is not None and self.offload_images:
            images = images.to("cpu")
        return _FirstPass(vectors.requires_grad_(), random, images)

    def _second_pass(self, chunk: EncoderInputs, first: _FirstPass) -> Tensor:
        """Return the chunk's embeddings again, with gradient and with the dropout masks of the first pass."""
        cpu_state, device_states = first.random
        torch.set_rng_state(cpu_state)
        set_device_states(*device_states)
        return self._encode(chunk, first.images_on(self.device))

    def _encode(self, chunk: EncoderInputs, images: ImageFeatures | None = None) -> Tensor:
        """Return the embeddings of a chunk's turns, float32 or float64."""
        with self.autocast():
            vectors = self.encoder(chunk.to(self.device), images).vectors
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))

    def _in_order(self, chunk_vectors: list[Tensor], side: SideInputs) -> TurnEmbeddings:
        """Return the embeddings of a side's N turns, in the packer's order, with gradient."""
        vectors = torch.cat(chunk_vectors or [self._empty_vectors()])[side.row_index.to(self.device)]
        return TurnEmbeddings.join(vectors, side.ids.to(self.device))

    def _empty_vectors(self) -> Tensor:
        """Return the embeddings of a rank without samples, which takes part in every exchange too."""
        dtype = torch.promote_types(next(self.encoder.parameters()).dtype, torch.float32)
        dim = self.encoder.pooler.embedding_dim
        return torch.zeros(0, dim, dtype=dtype, device=self.device, requires_grad=True)

    def _score(
        self, queries: TurnEmbeddings, targets: TurnEmbeddings, backward: LastBackward = nullcontext
    ) -> StepLoss:
        """Run backward, within `backward`, from this rank's part of the mean loss; return the mean of all."""
        num_turns = self.ranks.sums({"turns": len(queries)}, self.device)["turns"]
        terms = self.loss(queries, self.ranks.gather(targets))
        mean = terms.per_turn.sum() / max(num_turns, 1)
        if self.loss.symmetric:
            mean = (mean + self._mean_with_sides_exchanged(queries, targets)) / 2
        with backward():
            mean.backward()
        sums = self.ranks.sums({**terms.counts, "mean": mean.detach()}, self.device)
        rates = self.ranks.sums(terms.rates, self.device)
        return StepLoss(sums.pop("mean"), int(num_turns), sums, rates)

    def _mean_with_sides_exchanged(self, queries: TurnEmbeddings, targets: TurnEmbeddings) -> Tensor:
        """Return this rank's part of the mean loss of its target turns against all ranks' queries."""
        targets = targets.select(~targets.is_negative)
        num_turns = self.ranks.sums({"turns": len(targets)}, self.device)["turns"]
        return self.loss(targets, self.ranks.gather(queries)).per_turn.sum() / max(num_turns, 1)


@dataclass(frozen=True)
class _FirstPass:
    """What the second pass over a chunk needs of the first."""

    vectors: Tensor
    """Leaves of the graph; backward from the loss sets their gradient."""
    random: tuple[Tensor, tuple[list[int], list[Tensor]]]
    """The states of the generators, of the CPU and of the devices, that dropout draws from."""
    images: ImageFeatures | None

    def images_on(self, device: torch.device) -> ImageFeatures | None:
        return None if self.images is None else self.images.to(device)

"""Before the first step: describe its batch, predict its memory, choose `train.chunk_tokens: auto`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from muco.core.errors import MucoError
from muco.core.printable import format_size
from muco.core.turns import EncoderInputs
from muco.distributed.ranks import Ranks
from muco.training.batches import SideInputs, StepBatches, StepInputs
from muco.training.memory import available_bytes, peak_bytes
from muco.training.step import Stepper

_MEMORY_SHARE = 0.8
"""The share of the free memory that `chunk_tokens: auto` uses."""
_MULTIPLE = 256
"""`chunk_tokens: auto` takes multiples of this."""
_CHUNKS_AT_ONCE = 2
"""For how many chunks `chunk_tokens: auto` counts the fixed memory: one is held, the next one is encoded."""


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes that a forward and backward pass over one chunk takes, linear in the chunk's size."""

    fixed: float
    """Of each chunk: with autocast, among others, its bfloat16 copies of the weights."""
    per_unit: float
    """A unit is a token or a patch, whichever the chunk has more of."""
    image_features_per_patch: float
    """Held on the device between the two passes of cached gradients."""

    def of(self, size: float) -> int:
        """Return the bytes of a chunk of `size` tokens or patches."""
        return int(self.fixed + self.per_unit * size)


@dataclass(frozen=True)
class StepMemory:
    """The peak memory of one process's step, in bytes."""

    weights: int
    """Weights, gradients and optimizer states."""
    activations: int
    """Of the chunks that are held at once, and what another one takes while it is encoded."""
    rest: int
    """Embeddings, image features, and on a CPU the batch's pixels."""

    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.activations + self.rest

    def __str__(self) -> str:
        sizes = map(format_size, (self.total(), self.weights, self.activations, self.rest))
        return "predicted peak memory {}: weights and optimizer {}, activations {}, the rest {}".format(
            *sizes
        )


def measure_chunks(stepper: Stepper, batches: StepBatches, singles: StepInputs) -> ChunkMemory | None:
    """Measure the memory of a small and a large chunk of a batch. Weights do not change.

    In `singles` each dialogue of the batch is a chunk of its own. Return None if no sample can be read, or if
    the longest dialogue needs more memory than the device has.
    """
    longest = _longest(singles)
    if not longest:
        return None
    # Where layers are gathered one by one, the other processes would wait for one that tries a smaller chunk.
    errors = () if stepper.shards.by_layer else (torch.OutOfMemoryError,)
    for size in (4 * longest, 2 * longest, longest):
        with suppress(*errors):
            return _measure(stepper, singles, batches.chunked(size)[singles.step])
    return None


def longest_fits(stepper: Stepper, memory: ChunkMemory | None, singles: StepInputs, state_bytes: int) -> bool:
    """Return whether the longest dialogue fits into the free memory; see `choose_chunk_tokens`."""
    if memory is None:
        return False
    return memory.of(_longest(singles)) <= _room(stepper, memory, singles, state_bytes)


def choose_chunk_tokens(
    stepper: Stepper, memory: ChunkMemory | None, singles: StepInputs, state_bytes: int
) -> int:
    """Return the largest `chunk_tokens` that fits into the free memory.

    In `singles` each dialogue of a batch is a chunk of its own; `state_bytes` is the size of the optimizers'
    states. Raise MucoError if the longest dialogue does not fit, or if `memory` is None for that reason.
    """
    longest, full_batch = _longest(singles), sum(chunk.size for chunk in _chunks(singles))
    if memory is None:
        raise _does_not_fit(longest, "It needs more memory than the device has")
    room = _room(stepper, memory, singles, state_bytes)
    if memory.of(longest) > room:
        needed, available = format_size(memory.of(longest)), format_size(max(room, 0))
        raise _does_not_fit(longest, f"It needs {needed} of memory, and {available} are available")
    largest = int((room - _CHUNKS_AT_ONCE * memory.fixed) / max(memory.per_unit, 1e-9))
    return max(longest, min(largest // _MULTIPLE, -(-full_batch // _MULTIPLE)) * _MULTIPLE)


def choose_held_tokens(
    stepper: Stepper, memory: ChunkMemory, singles: StepInputs, state_bytes: int, *, chunk_tokens: int
) -> int:
    """Return the largest `held_tokens` that fits into the free memory; see `choose_chunk_tokens`."""
    # Beside the chunks that are held, another one is encoded without gradient.
    room = _room(stepper, memory, singles, state_bytes) - memory.fixed
    num_chunks = max(int(room / memory.of(chunk_tokens)), 1)
    return num_chunks * chunk_tokens


def predict_memory(stepper: Stepper, memory: ChunkMemory, inputs: StepInputs, state_bytes: int) -> StepMemory:
    """Return the memory that a step on these inputs will take."""
    chunks = _chunks(inputs)
    held = stepper.held(chunks)
    activations = sum(memory.of(chunks[index].size) for index in held)
    if len(held) < len(chunks):
        activations += int(memory.fixed)  # of a chunk that is encoded without gradient beside those
    gradients = sum(weight.nbytes for weight in stepper.parameters() if weight.requires_grad)
    weights = sum(map(stepper.shards.bytes_held, stepper.parameters()))
    vectors = 8 * sum(len(side.ids) for side in _sides(inputs)) * stepper.encoder.pooler.embedding_dim
    features = memory.image_features_per_patch * sum(chunk.num_patches for chunk in chunks)
    on_cpu = stepper.device.type == "cpu"
    pixels = sum(each.nbytes for chunk in chunks for each in chunk.tensors.values()) if on_cpu else 0
    return StepMemory(weights + gradients + state_bytes, activations, int(vectors + features + pixels))


def describe_step(inputs: StepInputs, stepper: Stepper, ranks: Ranks) -> list[str]:
    """Return lines that describe a step's batch. All processes must call this: it sums over them."""
    queries, targets = _sides(inputs)
    counts = {
        "samples": len(inputs.samples),
        "pairs": len(queries.ids),
        "targets": len(targets.ids),
        "positives": _count_same_sample(queries, targets),
    }
    total = ranks.sums(counts, stepper.device)
    negatives = total["targets"] - total["positives"] / max(total["pairs"], 1)
    processes = f", over {ranks.world_size} processes" if ranks.world_size > 1 else ""
    chunks = _chunks(inputs)
    largest = max((chunk.size for chunk in chunks), default=0)
    tokens = sum(chunk.num_tokens for chunk in chunks)
    padding = sum(chunk.num_padding_tokens for chunk in chunks)
    num_twice = len(chunks) - len(stepper.held(chunks))
    passes = f"{num_twice} encoded twice" if stepper.grad_cache else "activations kept for all"
    return [
        f"a step: {total['samples']:,.0f} samples, {total['pairs']:,.0f} pairs, "
        f"{negatives:,.0f} negatives a query{processes}",
        f"{len(chunks)} chunks{' here' if processes else ''}, the largest of {largest:,} tokens or patches, "
        f"{passes}; {tokens:,} tokens, {padding / max(tokens + padding, 1):.0%} padding",
    ]


def _count_same_sample(queries: SideInputs, targets: SideInputs) -> int:
    """Count the pairs of a query and a target of one sample, without hard negatives."""
    num_targets = Counter(targets.ids.sample_ids[~targets.ids.is_negative].tolist())
    return sum(num_targets[sample] for sample in queries.ids.sample_ids.tolist())


def _does_not_fit(longest: int, problem: str) -> MucoError:
    return MucoError(
        f"train.chunk_tokens: the longest dialogue of the first batch has {longest:,} tokens or patches. "
        f"{problem}. Lower backbone.max_pixels or train.max_dialogue_tokens, freeze more of the backbone, or "
        "use a device with more memory."
    )


def _measure(stepper: Stepper, small: StepInputs, large: StepInputs) -> ChunkMemory:
    """Measure the chunks of the side that needs more memory."""
    pairs = zip(_sides(small), _sides(large), strict=True)
    fits = [_fit(stepper, *pair) for pair in pairs if all(side.chunks for side in pair)]
    return max(fits, key=lambda fit: fit.of(max(chunk.size for chunk in _chunks(large))))


def _fit(stepper: Stepper, small: SideInputs, large: SideInputs) -> ChunkMemory:
    """Fit a line to the memory of the largest chunk of each."""
    sizes, peaks = [], []
    feature_bytes = 0
    for chunk in (max(side.chunks, key=lambda chunk: chunk.size) for side in (small, large)):
        feature_bytes = stepper.dry_run(chunk)  # and what is allocated once is allocated now
        sizes.append(chunk.size)
        peaks.append(peak_bytes(stepper.device, lambda c=chunk: stepper.dry_run(c)))
    per_patch = feature_bytes / max(chunk.num_patches, 1)
    if sizes[1] < 1.5 * sizes[0]:  # too similar for a line through both
        return ChunkMemory(0, peaks[1] / sizes[1], per_patch)
    slope = max(peaks[1] - peaks[0], 0) / (sizes[1] - sizes[0])
    return ChunkMemory(max(0.0, peaks[0] - slope * sizes[0]), slope, per_patch)


def _longest(singles: StepInputs) -> int:
    return max((chunk.size for chunk in _chunks(singles)), default=0)


def _room(stepper: Stepper, memory: ChunkMemory, inputs: StepInputs, state_bytes: int) -> float:
    """Return the bytes that activations may take."""
    predicted = predict_memory(stepper, memory, inputs, state_bytes)
    weights = sum(map(stepper.shards.bytes_held, stepper.parameters()))  # these are in memory already
    other = predicted.total() - predicted.activations - weights
    return _MEMORY_SHARE * available_bytes(stepper.device) - other


def _sides(inputs: StepInputs) -> Sequence[SideInputs]:
    return (inputs.queries, inputs.targets)


def _chunks(inputs: StepInputs) -> list[EncoderInputs]:
    return [chunk for side in _sides(inputs) for chunk in side.chunks]

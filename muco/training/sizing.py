"""The arithmetic of a step before the first one: what is in it, and what memory it will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from muco.core.errors import MucoError
from muco.core.turns import EncoderInputs
from muco.distributed.ranks import Ranks
from muco.training.batches import SideInputs, StepBatches, StepInputs
from muco.training.memory import available_bytes, peak_bytes
from muco.training.step import Stepper

_SHARE = 0.8
"""Of the memory that is there, what `chunk_tokens: auto` plans to use."""
_ROUND = 256
"""It takes multiples of so many tokens."""


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes that encoding one chunk and going back through it takes: a line in the chunk's size."""

    fixed: float
    per_unit: float
    """A token or patch, whichever the chunk has more of."""
    kept_per_patch: float
    """A patch's image features, where they stay on the device between two passes."""

    def of(self, size: float) -> int:
        """Return the bytes of a chunk of `size` tokens or patches."""
        return int(self.fixed + self.per_unit * size)


@dataclass(frozen=True)
class StepMemory:
    """What one process's step holds at its peak, in bytes."""

    weights: int
    """Their gradients and the optimizers' states included."""
    chunks: int
    """One chunk, or all where gradients are not cached."""
    kept: int
    """Embeddings, image features, and on a CPU the batch's pixels."""

    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.chunks + self.kept

    def __str__(self) -> str:
        parts = f"weights and optimizer {_gib(self.weights)}, activations {_gib(self.chunks)}"
        return f"predicted peak memory {_gib(self.total())}: {parts}, the rest {_gib(self.kept)}"


def size_of(chunk: EncoderInputs) -> int:
    """Return what a budget bounds: tokens, padding included, or patches, whichever are more."""
    return max(chunk.num_tokens + chunk.num_padding_tokens, chunk.num_patches)


def rehearse(stepper: Stepper, batches: StepBatches, singles: StepInputs) -> ChunkMemory | None:
    """Return the memory of chunks, measured on two sizes of a step's batch; no weight changes.

    Args:
        stepper: will take the steps.
        batches: of the run.
        singles: a step's batch, each dialogue a chunk of its own.

    Returns:
        None where nothing of the batch can be read.
    """
    longest = max(map(size_of, _chunks(singles)), default=0)
    if not longest:
        return None
    large = batches.chunked(4 * longest)[singles.step]
    pairs = zip(_sides(singles), _sides(large), strict=True)
    lines = [_line(stepper, *pair) for pair in pairs if all(side.chunks for side in pair)]
    return max(lines, key=lambda line: line.of(4 * longest))


def choose_budget(stepper: Stepper, memory: ChunkMemory, singles: StepInputs, state_bytes: int) -> int:
    """Return the largest chunk that fits, in tokens or patches.

    Args:
        stepper: will take the steps.
        memory: of its chunks.
        singles: a step's batch, each dialogue a chunk of its own.
        state_bytes: what the optimizers keep.

    Raises:
        MucoError: one dialogue alone does not fit.
    """
    longest = max(map(size_of, _chunks(singles)))
    whole = max(sum(map(size_of, side.chunks)) for side in _sides(singles))
    held = predict(stepper, memory, singles, state_bytes)
    weights = sum(weight.nbytes for weight in stepper.parameters())
    room = _SHARE * available_bytes(stepper.device) - (held.total() - held.chunks - weights)
    if memory.of(longest) > room:
        raise MucoError(
            f"train.chunk_tokens: the longest dialogue of the first batch, {longest:,} tokens or patches, "
            f"takes {_gib(memory.of(longest))}, and {_gib(max(room, 0))} are there. Lower "
            "backbone.max_pixels, freeze more of the backbone, or take a larger device."
        )
    fits = int((room - memory.fixed) / max(memory.per_unit, 1e-9))
    return max(longest, min(fits // _ROUND, -(-whole // _ROUND)) * _ROUND)


def predict(stepper: Stepper, memory: ChunkMemory, inputs: StepInputs, state_bytes: int) -> StepMemory:
    """Return what a step on these inputs will hold."""
    chunks = _chunks(inputs)
    sizes = [size_of(chunk) for chunk in chunks]
    activations = memory.of(max(sizes)) if stepper.cached else memory.of(sum(sizes))
    gradients = sum(weight.nbytes for weight in stepper.parameters() if weight.requires_grad)
    weights = sum(weight.nbytes for weight in stepper.parameters())
    vectors = 8 * sum(len(side.ids) for side in _sides(inputs)) * stepper.encoder.pooler.embedding_dim
    features = memory.kept_per_patch * sum(chunk.num_patches for chunk in chunks)
    on_host = stepper.device.type == "cpu"
    pixels = sum(each.nbytes for chunk in chunks for each in chunk.tensors.values()) if on_host else 0
    return StepMemory(weights + gradients + state_bytes, activations, int(vectors + features + pixels))


def describe(inputs: StepInputs, stepper: Stepper, ranks: Ranks) -> list[str]:
    """Return the batch's arithmetic in words; every process calls this, as numbers are summed over them."""
    queries, targets = _sides(inputs)
    mine = {
        "samples": len(inputs.samples),
        "pairs": len(queries.ids),
        "targets": len(targets.ids),
        "own": _own_targets(queries, targets),
    }
    found = ranks.sums(mine, stepper.device)
    negatives = found["targets"] - found["own"] / max(found["pairs"], 1)
    processes = f", over {ranks.world_size} processes" if ranks.world_size > 1 else ""
    chunks = _chunks(inputs)
    largest = max(map(size_of, chunks), default=0)
    tokens = sum(chunk.num_tokens for chunk in chunks)
    padding = sum(chunk.num_padding_tokens for chunk in chunks)
    passes = "each encoded twice" if stepper.cached else "activations kept for all"
    return [
        f"a step: {found['samples']:,.0f} samples, {found['pairs']:,.0f} pairs, "
        f"{negatives:,.0f} negatives a query{processes}",
        f"{len(chunks)} chunks{' here' if processes else ''}, the largest of {largest:,} tokens or patches, "
        f"{passes}; {tokens:,} tokens, {padding / max(tokens + padding, 1):.0%} padding",
    ]


def _own_targets(queries: SideInputs, targets: SideInputs) -> int:
    """Return how many pairs of a query and a target are of one sample, the target being no negative."""
    of_sample = Counter(targets.ids.sample_ids[~targets.ids.is_negative].tolist())
    return sum(of_sample[sample] for sample in queries.ids.sample_ids.tolist())


def _line(stepper: Stepper, small: SideInputs, large: SideInputs) -> ChunkMemory:
    """Return the line through the largest chunk of each."""
    points = []
    kept = 0
    for chunk in (max(side.chunks, key=size_of) for side in (small, large)):
        kept = stepper.rehearse(chunk)
        points.append((size_of(chunk), peak_bytes(stepper.device, lambda c=chunk: stepper.rehearse(c))))
    (size, least), (greater, most) = points
    per_patch = kept / max(chunk.num_patches, 1)
    if greater == size:
        return ChunkMemory(0, least / size, per_patch)
    slope = max(most - least, 0) / (greater - size)
    return ChunkMemory(max(0.0, least - slope * size), slope, per_patch)


def _sides(inputs: StepInputs) -> Sequence[SideInputs]:
    return (inputs.queries, inputs.targets)


def _chunks(inputs: StepInputs) -> list[EncoderInputs]:
    return [chunk for side in _sides(inputs) for chunk in side.chunks]


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"

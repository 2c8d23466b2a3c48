"""Count the FLOPs of layers: 2 x m x n x k for each matrix product, nothing for all else.

Attention counts every pair of a query and a key of a sequence, as most tools do; `masked` are those that the
mask excludes. Not counted: softmax, norms, activations, embedding lookups, the pooler, the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

from muco.core.layers import Block, Lengths, Linear, Part


@dataclass(frozen=True)
class Flops:
    """FLOPs of one pass forward and back."""

    forward: int = 0
    backward: int = 0
    recomputed: int = 0
    """By gradient checkpointing, in the backward pass."""
    masked: int = 0
    """To subtract from `forward` plus `backward` for the pairs that the attention mask excludes."""
    scores: int = 0
    """Of attention scores that flash attention computes again in the backward pass."""

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
            self.masked + other.masked,
            self.scores + other.scores,
        )

    def times(self, factor: int) -> Flops:
        """Return the FLOPs of `factor` such passes."""
        return Flops(*(factor * each for each in astuple(self)))


def count_part(part: Part, lengths: Lengths, *, calls: int = 1) -> Flops:
    """Return the FLOPs of a part of a model for so many chunks (`calls`), of these lengths together."""
    total, needs_gradient = Flops(), part.input_gradient
    for block in part.blocks:
        trains = any(each.trained or each.rank for each in block.linears)
        total += _count_layer(block, lengths, calls, needs_gradient)
        needs_gradient = needs_gradient or trains
        total += _count_layer(block, lengths, calls, needs_gradient).times(block.repeats - 1)
    return total


def _count_layer(block: Block, lengths: Lengths, calls: int, input_gradient: bool) -> Flops:
    """Return the FLOPs of one of a block's layers, whose input may need a gradient; see `count_part`."""
    of_block = lengths.of.get(block.rows, ())
    rows = {each: sum(lengths.of.get(each.rows or block.rows, of_block)) for each in block.linears}
    steps = list(_gradients(block, input_gradient))
    forward = sum(_forward(each, rows[each], calls) for each, _, _ in steps)
    backward = sum(_backward(each, rows[each], needs) for each, needs, _ in steps)
    has_gradient = block.used and any(after for _, _, after in steps)
    attention, excluded = _attention(block, lengths)
    qkv_gradient = input_gradient or any(
        each.reads_input and (each.trained or each.rank) for each in block.linears
    )
    factor = 2 if qkv_gradient and block.used else 0
    again = block.checkpointed and has_gradient
    last = block.linears[-1]
    return Flops(
        forward=forward + attention,
        backward=(backward if block.used else 0) + factor * attention,
        recomputed=forward + attention - _not_recomputed(last, rows[last], lengths) if again else 0,
        masked=(1 + factor) * excluded,
        scores=factor * attention // 4,
    )


def _gradients(block: Block, input_gradient: bool) -> Iterator[tuple[Linear, bool, bool]]:
    """Yield each product with whether its input and its output need a gradient."""
    state = input_gradient
    for linear in block.linears:
        before = input_gradient if linear.reads_input else state
        after = before or linear.trained or linear.rank > 0
        state = state or after
        yield linear, before, after


def _forward(linear: Linear, rows: int, calls: int) -> int:
    both = linear.inputs + linear.outputs
    of_rows = rows * (linear.base_calls * linear.inputs * linear.outputs + linear.rank * both)
    of_calls = calls * linear.inputs * linear.rank * both if linear.dora and rows else 0
    return 2 * (of_rows + of_calls)


def _backward(linear: Linear, rows: int, needs_input: bool) -> int:
    weight = linear.inputs * linear.outputs
    products = linear.base_calls * weight * needs_input + weight * linear.trained
    # Of the adapter: both weights, what is between them, and the input.
    adapter = linear.rank * (linear.inputs + 2 * linear.outputs + linear.inputs * needs_input)
    return 2 * rows * (products + adapter)


def _not_recomputed(last: Linear, rows: int, lengths: Lengths) -> int:
    """Return the FLOPs after the last tensor that the backward pass reads, where torch stops.

    It is the input of the last product, or the index that puts the rows of this product among the others.
    """
    if last.dora or last.rows in lengths.of:
        return 0
    return 2 * rows * last.outputs * (last.rank or last.inputs)


def _attention(block: Block, lengths: Lengths) -> tuple[int, int]:
    """Return the FLOPs of scores and sums over all pairs, and of the pairs that the mask excludes."""
    if not block.attention_dim:
        return 0, 0
    name = block.attends_within or block.rows
    pairs = sum(length**2 for length in lengths.of.get(name, ()))
    excluded = pairs - lengths.visible_pairs.get(name, pairs)
    return 4 * block.attention_dim * pairs, 4 * block.attention_dim * excluded

"""A shuffled order in which any position is computed at once, without shuffling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_BLOCKS = 16
"""Stretches of neighbours that a window is made of."""
_MASK_64 = (1 << 64) - 1


def permute(positions: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Return where `positions` land in a pseudo-random permutation of range(`size`).

    A Feistel network over the smallest even number of bits that holds `size`, walked until the
    value falls inside the range: a bijection, with memory and time independent of `size`.

    Args:
        positions: int64, each in range(`size`).
        size: number of elements, at least one.
        seed: any integer; another seed gives another permutation.

    References:
        Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains": cycle walking.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [np.uint64(_mix(seed * _ROUNDS + turn)) for turn in range(_ROUNDS)]
    values = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def permute_in_windows(
    positions: NDArray[np.int64], size: int, *, window: int, seed: int
) -> NDArray[np.int64]:
    """Return where `positions` land in a permutation that stays within windows of neighbours.

    The elements are cut into blocks of `window / 16`, the blocks are shuffled, and the elements of each 16
    blocks in a row are shuffled among themselves: any `window` positions in a row lie in two windows, so in
    32 stretches at most. Where the cutting begins depends on the seed; what is left of the last block comes
    last.

    Args:
        positions: int64, each in range(`size`).
        size: number of elements, at least one.
        window: elements shuffled together, rounded down to whole blocks; 16 at least.
        seed: any integer; another seed gives another permutation.
    """
    block = max(1, window // _BLOCKS)
    shift = _mix(seed) % size
    whole = size // block * block
    places = positions.copy()
    span = block * _BLOCKS
    for number in np.unique(positions // span).tolist():
        first, last = number * span, min((number + 1) * span, whole)
        inside = (positions >= first) & (positions < last)
        if inside.any():
            own = permute(positions[inside] - first, last - first, seed=_mix(seed) + number + 1)
            blocks = permute((first + own) // block, whole // block, seed=seed)
            places[inside] = blocks * block + own % block
    rest = positions >= whole
    if rest.any():
        places[rest] = whole + permute(positions[rest] - whole, size - whole, seed=seed)
    return (places + shift) % size


def _feistel(values: NDArray[np.uint64], half: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << shift) | right


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix(value: int) -> int:
    value = (value * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & _MASK_64
    return int(_scramble(np.array([value], dtype=np.uint64))[0])

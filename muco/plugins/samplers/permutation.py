"""Pseudo-random permutations in which each position is computed on its own, without shuffling a list."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_BLOCKS = 16
"""Blocks of neighbours in a window."""
_MASK_64 = (1 << 64) - 1
_Bits = Any
"""An int below 2**64, or a uint64 array."""


def permute(positions: NDArray[np.int64], size: int, *, seed: int) -> NDArray[np.int64]:
    """Return where `positions` land in a pseudo-random permutation of range(`size`).

    A Feistel network over the smallest even number of bits that holds `size`, applied until the value is
    inside the range. This is a bijection; memory and time do not depend on `size`.

    Args:
        positions: int64, each in range(`size`).
        size: number of elements, at least one.
        seed: any integer; another seed gives another permutation.

    References:
        Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains": cycle walking.
    """
    half, keys = _half(size), _keys(seed)
    values = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def permute_one(position: int, size: int, *, seed: int) -> int:
    """Return where one position lands; see `permute`. Without arrays, which cost more than one number."""
    half, keys = _half(size), _keys(seed)
    value = _feistel(position, half, keys)
    while value >= size:
        value = _feistel(value, half, keys)
    return value


def permute_in_windows(
    positions: NDArray[np.int64], size: int, *, window: int, seed: int
) -> NDArray[np.int64]:
    """Return where `positions` land in a permutation that keeps neighbours in the same window.

    The elements are cut into blocks of `window / 16`, the blocks are shuffled, and the elements of every 16
    consecutive blocks are shuffled together. Any `window` consecutive positions lie in two windows, so in at
    most 32 blocks. The seed decides where the first block begins. Elements after the last whole block come
    last.

    Args:
        positions: int64, each in range(`size`).
        size: number of elements, at least one.
        window: number of elements shuffled together, at least 16; rounded down to whole blocks.
        seed: any integer; another seed gives another permutation.
    """
    block = max(1, window // _BLOCKS)
    shift = _mix(seed) % size
    whole = size // block * block
    landed = positions.copy()
    span = block * _BLOCKS
    for index in np.unique(positions // span).tolist():
        first, last = index * span, min((index + 1) * span, whole)
        inside = (positions >= first) & (positions < last)
        if inside.any():
            own = permute(positions[inside] - first, last - first, seed=_mix(seed) + index + 1)
            blocks = permute((first + own) // block, whole // block, seed=seed)
            landed[inside] = blocks * block + own % block
    rest = positions >= whole
    if rest.any():
        landed[rest] = whole + permute(positions[rest] - whole, size - whole, seed=seed)
    return (landed + shift) % size


@lru_cache(maxsize=1024)
def _keys(seed: int) -> tuple[int, ...]:
    return tuple(_mix(seed * _ROUNDS + index) for index in range(_ROUNDS))


def _half(size: int) -> int:
    """Return half of the bits that hold numbers below `size`."""
    return max(1, ((size - 1).bit_length() + 1) // 2)


def _feistel(values: _Bits, half: int, keys: Sequence[int]) -> _Bits:
    mask = (1 << half) - 1
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << half) | right


def _scramble(values: _Bits) -> _Bits:
    """The finalizer of SplitMix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB & _MASK_64
    return values ^ (values >> 31)


def _mix(value: int) -> int:
    return _scramble((value * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & _MASK_64)

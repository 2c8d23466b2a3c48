"""Embeddings read block by block, from memory or from files that are larger than it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Vectors(Protocol):
    """Rows of unit length, read as float32."""

    @property
    def dim(self) -> int:
        """D, the embedding size."""
        ...

    def __len__(self) -> int: ...

    def block(self, first: int, stop: int) -> Tensor:
        """Return rows `first` to before `stop`; float32, on the CPU, not to be changed."""
        ...

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows at `rows`, int64; float32, on the CPU."""
        ...


class TensorVectors:
    """Rows of a tensor [N, D] of any float dtype, on the CPU."""

    def __init__(self, rows_ND: Tensor) -> None:
        self._rows = rows_ND

    @property
    def dim(self) -> int:
        """D, the embedding size."""
        return self._rows.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def block(self, first: int, stop: int) -> Tensor:
        """Return rows `first` to before `stop`."""
        return self._rows[first:stop].float()

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows at `rows`."""
        return self._rows[rows].float()


def as_vectors(rows: Vectors | Tensor) -> Vectors:
    """Return the rows of a tensor as `Vectors`; `Vectors` as they are."""
    return TensorVectors(rows) if isinstance(rows, Tensor) else rows

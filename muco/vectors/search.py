"""Search a store of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from muco.core.errors import DataError
from muco.evaluation.search.search import top_k
from muco.vectors.store import VectorStore


@dataclass(frozen=True)
class Hit:
    """One item that a search returns."""

    id: str
    score: float
    """The cosine of query and item."""
    text: str | None
    image: str | None
    """The absolute path."""


def search(store: VectorStore, query_1D: NDArray[np.float32], k: int) -> list[Hit]:
    """Return the k nearest items of a store, the best first; equal scores in the order of the store.

    `query_1D` is float32 [1, D], unit length, of the store's model. `k` is at least 1; a smaller store gives
    fewer. Raise DataError if a vector of the store is not finite.
    """
    if k < 1:
        raise ValueError(f"k={k}: ask for at least one item")
    pool = torch.from_numpy(store.vectors)
    try:
        scores, rows = top_k(torch.from_numpy(query_1D), pool, min(k, len(pool)))
    except ValueError:
        raise DataError(f"{store.path}: damaged: a vector is not finite; encode the inputs again") from None
    nearest = [store.rows[row] for row in rows[0].tolist()]
    return [
        Hit(row.id, score, row.text, row.image and str(Path(store.metadata.root, row.image)))
        for row, score in zip(nearest, scores[0].tolist(), strict=True)
    ]

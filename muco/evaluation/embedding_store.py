"""Embeddings on disk, by content id.

A store is a folder. `about.json` holds what its vectors depend on. Each process that writes has a part of its
own, two files that only grow: `0000.vectors`, rows of D numbers, and `0000.rows`, the content id of each row
and a checksum of id and vector, written after the vectors. A row counts once both files have it, so a process
that is killed loses only what it had not appended yet. Vectors are mapped into memory, not read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.errors import DataError, MucoError
from muco.evaluation.search.vectors import TensorVectors
from muco.io.atomic import open_append, write_errors, write_text
from muco.io.lock import locked
from muco.io.untrusted import parse_json, read_file

StoreDtype = Literal["float32", "float16"]
"""How a number is stored; a search reads float32 from either."""

_ROW = np.dtype([("content_id", "<i8"), ("checksum", "<u4")])
_FORMAT = 2


@dataclass(frozen=True)
class StoredVectors:
    """Some rows of a store, in any order; they are read from its parts on use."""

    parts: Sequence[TensorVectors]
    rows: NDArray[np.int64]
    """Row numbers over all parts, one after the other."""
    dim: int

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, first: int, stop: int) -> Tensor:
        """Return rows `first` to before `stop`; float32."""
        return self._read(self.rows[first:stop])

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows at `rows`, float32."""
        return self._read(self.rows[rows.numpy()])

    def _read(self, rows: NDArray[np.int64]) -> Tensor:
        vectors, begin = torch.empty(len(rows), self.dim), 0
        for part in self.parts:
            in_part = (rows >= begin) & (rows < begin + len(part))
            if in_part.all() and len(rows) and (np.diff(rows) == 1).all():
                return part.block(int(rows[0]) - begin, int(rows[-1]) + 1 - begin)
            if in_part.any():
                vectors[torch.from_numpy(in_part)] = part.take(torch.from_numpy(rows[in_part] - begin))
            begin += len(part)
        return vectors


class EmbeddingStore:
    """A folder of embeddings of one model. As a context manager it writes one part."""

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, Any],
        *,
        dim: int,
        dtype: StoreDtype = "float32",
        part: int = 0,
    ) -> None:
        """Open a store, or make one in a folder of its own.

        `metadata` is all that the vectors depend on, as JSON data; each process that writes needs a `part` of
        its own. Raise MucoError if about.json is damaged or has other metadata, or is not writable.
        """
        self.folder, self.dim, self.dtype = folder, dim, np.dtype(dtype)
        self._part = part
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._opened = ExitStack()
        self._check_metadata({"format": _FORMAT, "dim": dim, "dtype": dtype, "depends_on": metadata})
        self._ids = np.empty(0, dtype=np.int64)
        self._parts: list[TensorVectors] = []
        self._checked: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opened, write_errors(f"{self.folder}: embeddings"):
            try:
                opened.enter_context(locked(self._name("lock"), wait=False))
            except MucoError as error:
                raise MucoError(
                    f"{self.folder}: another process is writing these embeddings: {error}. Wait for it, or "
                    "stop it."
                ) from None
            rows, vectors = (
                opened.enter_context(open_append(self._name(kind))) for kind in ("rows", "vectors")
            )
            self.refresh()
            num_rows = self._checked[self._name("rows").name]
            vectors.truncate(num_rows * self._row_bytes)
            rows.truncate(num_rows * _ROW.itemsize)
            self._files = (vectors, rows)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files = None
        self._opened.close()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, content_ids: Sequence[int], vectors_ND: Tensor) -> None:
        """Append float32 vectors by the ids of their contents; `find` sees them after `refresh`."""
        assert self._files is not None, "a store is written within `with`"
        vectors = vectors_ND.numpy().astype(self.dtype)
        records = np.empty(len(vectors), dtype=_ROW)
        records["content_id"] = content_ids
        records["checksum"] = list(map(_checksum, records["content_id"], vectors))
        with write_errors(f"{self.folder}: embeddings"):
            for file, array in zip(self._files, (vectors, records), strict=True):
                file.write(array.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def refresh(self) -> None:
        """Read what all processes have written so far; raise DataError if a new row has a wrong checksum."""
        parts = [self._read_part(file) for file in sorted(self.folder.glob("*.rows"))]
        self._ids = np.concatenate([np.empty(0, dtype=np.int64), *(ids for ids, _ in parts)])
        self._parts = [vectors for _, vectors in parts]
        self._order = np.argsort(self._ids, kind="stable")

    def find(self, content_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each content, int64; -1 if the store does not have it."""
        if not len(self._ids):
            return np.full(len(content_ids), -1, dtype=np.int64)
        positions = np.searchsorted(self._ids, content_ids, sorter=self._order)
        rows = self._order[np.minimum(positions, len(self._ids) - 1)]
        return np.where(self._ids[rows] == content_ids, rows, -1)

    def vectors(self, content_ids: NDArray[np.int64]) -> StoredVectors:
        """Return the vectors of contents, all of which the store must have."""
        rows = self.find(content_ids)
        assert (rows >= 0).all(), "a vector is missing"
        return StoredVectors(tuple(self._parts), rows, self.dim)

    @property
    def _row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    def _name(self, kind: str) -> Path:
        return self.folder / f"{self._part:04d}.{kind}"

    def _check_metadata(self, metadata: dict[str, Any]) -> None:
        """Write about.json, or compare it."""
        path = self.folder / "about.json"
        try:
            with write_errors(f"{self.folder}: embeddings"):
                self.folder.mkdir(parents=True, exist_ok=True)
                stored = parse_json(read_file(path)) if path.exists() else None
                if stored is None:
                    write_text(path, json.dumps(metadata, indent=1) + "\n")
        except ValueError as error:
            raise DataError(
                f"{path}: damaged: {error}. Remove {self.folder}; its contents are then embedded again."
            ) from None
        if stored not in (None, json.loads(json.dumps(metadata))):
            raise MucoError(
                f"{self.folder} holds embeddings of another model, or of another version of muco. Remove it "
                "or choose another folder."
            )

    def _read_part(self, file: Path) -> tuple[NDArray[np.int64], TensorVectors]:
        vectors_file = file.with_suffix(".vectors")
        if not file.is_file():
            raise DataError(f"{file} is not a regular file. Remove it.")
        size = vectors_file.stat().st_size if vectors_file.is_file() else 0
        num_rows = min(file.stat().st_size // _ROW.itemsize, size // self._row_bytes)
        records = np.fromfile(file, dtype=_ROW, count=num_rows)
        rows = np.empty((0, self.dim), dtype=self.dtype)
        if num_rows:
            # Copy on write: torch takes only writable arrays, and the file must not change.
            rows = np.memmap(vectors_file, dtype=self.dtype, mode="c", shape=(num_rows, self.dim))
        for row in range(self._checked.get(file.name, 0), num_rows):
            if _checksum(records["content_id"][row], rows[row]) != records["checksum"][row]:
                raise DataError(
                    f"{vectors_file}: row {row} is damaged: its checksum differs. Remove {file.name} and "
                    f"{vectors_file.name} there; their contents are then embedded again."
                )
        self._checked[file.name] = num_rows
        return records["content_id"].astype(np.int64), TensorVectors(torch.from_numpy(rows))


def _checksum(content_id: np.int64, vector: NDArray[Any]) -> int:
    """Return a checksum by which a vector cannot be taken for that of another content."""
    return zlib.crc32(vector.tobytes(), zlib.crc32(content_id.tobytes()))

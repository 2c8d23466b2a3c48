"""Embeddings on disk: found again by what was embedded, never used half-written, mapped rather than read.

A store is a folder. `about.json` says what its vectors depend on. Each process that writes has a part of its
own, two files that only grow: `0000.vectors`, rows of D numbers, and `0000.rows`, which gives each row's
content id and checksum and is written after it. A row counts once both hold it, so a process that is killed
loses what it had not appended yet, and nothing else.
"""

from __future__ import annotations

import fcntl
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
from muco.io.atomic import write_text

StoreDtype = Literal["float32", "float16"]
"""How a number is kept; a search reads float32 from either."""

_ROW = np.dtype([("content_id", "<i8"), ("checksum", "<u4")])
_FORMAT = 1


class MappedVectors:
    """Rows of one array, most often a file mapped into memory."""

    def __init__(self, rows_ND: NDArray[Any]) -> None:
        self._rows = rows_ND

    @property
    def dim(self) -> int:
        """D, the embedding size."""
        return self._rows.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def block(self, first: int, stop: int) -> Tensor:
        """Return rows `first` to before `stop`; float32, not copied where they lie so."""
        return torch.from_numpy(self._rows[first:stop]).float()

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows at `rows`, float32."""
        return torch.from_numpy(self._rows[rows.numpy()]).float()


@dataclass(frozen=True)
class StoredVectors:
    """Some rows of a store, in any order; its parts are read where they lie."""

    parts: Sequence[MappedVectors]
    rows: NDArray[np.int64]
    """Rows of the parts laid end to end."""
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
        found, begin = torch.empty(len(rows), self.dim), 0
        for part in self.parts:
            here = (rows >= begin) & (rows < begin + len(part))
            if here.all() and len(rows) and (np.diff(rows) == 1).all():
                return part.block(int(rows[0]) - begin, int(rows[-1]) + 1 - begin)
            if here.any():
                found[torch.from_numpy(here)] = part.take(torch.from_numpy(rows[here] - begin))
            begin += len(part)
        return found


class EmbeddingStore:
    """A folder of embeddings that all depend on the same things; a context manager that writes one part."""

    def __init__(
        self, folder: Path, about: dict[str, Any], *, dim: int, dtype: StoreDtype = "float32", part: int = 0
    ) -> None:
        """Open or make a store.

        Args:
            folder: the store's own.
            about: all that the vectors depend on, as plain data.
            dim: D, the embedding size.
            dtype: how a number is kept.
            part: which part this process writes; no two may write the same.

        Raises:
            DataError: a file that is not what was written.
            MucoError: another process writes this part; or the store depends on other things.
        """
        self.folder, self.dim, self.dtype = folder, dim, np.dtype(dtype)
        self._part = part
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._say_about({"format": _FORMAT, "dim": dim, "dtype": dtype, "depends_on": about})
        self._ids = np.empty(0, dtype=np.int64)
        self._parts: list[MappedVectors] = []
        self._checked: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            rows = opened.enter_context(self._opened("rows"))
            try:
                fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise MucoError(
                    f"{self.folder}: another process is writing these embeddings. Wait for it, or stop it."
                ) from None
            vectors = opened.enter_context(self._opened("vectors"))
            self.refresh()
            whole = self._checked[self._name("rows").name]
            vectors.truncate(whole * self._row_bytes)
            rows.truncate(whole * _ROW.itemsize)
            self._files = (vectors, rows)
            opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files or ():
            file.close()
        self._files = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, content_ids: Sequence[int], vectors_ND: Tensor) -> None:
        """Append vectors, float32 on the CPU, under the ids of what they embed; `refresh` shows them.

        Raises:
            MucoError: the disk does not take them.
        """
        assert self._files is not None, "a store is written within `with`"
        kept = vectors_ND.numpy().astype(self.dtype)
        records = np.empty(len(kept), dtype=_ROW)
        records["content_id"] = content_ids
        records["checksum"] = [zlib.crc32(row.tobytes()) for row in kept]
        try:
            for file, written in zip(self._files, (kept, records), strict=True):
                file.write(written.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MucoError(f"{self.folder}: embeddings cannot be written: {error}") from error

    def refresh(self) -> None:
        """Read what all processes have written so far; checksums of new rows are compared.

        Raises:
            DataError: a row is not what was written.
        """
        ids: list[NDArray[np.int64]] = []
        self._parts = []
        for file in sorted(self.folder.glob("*.rows")):
            found_ids, vectors = self._read_part(file)
            ids.append(found_ids)
            self._parts.append(vectors)
        self._ids = np.concatenate([np.empty(0, dtype=np.int64), *ids])
        self._order = np.argsort(self._ids, kind="stable")

    def find(self, content_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each content; -1 where it has none."""
        if not len(self._ids):
            return np.full(len(content_ids), -1, dtype=np.int64)
        places = np.searchsorted(self._ids, content_ids, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._ids) - 1)]
        return np.where(self._ids[rows] == content_ids, rows, -1)

    def vectors(self, content_ids: NDArray[np.int64]) -> StoredVectors:
        """Return the contents' vectors, all of which are there."""
        rows = self.find(content_ids)
        assert (rows >= 0).all(), "a vector is missing"
        return StoredVectors(tuple(self._parts), rows, self.dim)

    def everything(self) -> tuple[NDArray[np.int64], StoredVectors]:
        """Return the content ids and the vectors of all rows."""
        return self._ids, StoredVectors(tuple(self._parts), np.arange(len(self._ids)), self.dim)

    @property
    def _row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    def _opened(self, kind: str) -> BinaryIO:
        try:
            return open(self._name(kind), "ab")
        except OSError as error:
            raise MucoError(f"{self.folder}: embeddings cannot be kept here: {error}") from error

    def _name(self, kind: str) -> Path:
        return self.folder / f"{self._part:04d}.{kind}"

    def _say_about(self, about: dict[str, Any]) -> None:
        path = self.folder / "about.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if found is None:
                write_text(path, json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise MucoError(f"{self.folder}: embeddings cannot be kept here: {error}") from error
        except ValueError as error:
            raise DataError(
                f"{path}: damaged: {error}. Remove {self.folder}; what it holds is embedded again."
            ) from None
        if found not in (None, json.loads(json.dumps(about))):
            raise MucoError(f"{self.folder} holds embeddings of another model; remove it or take another")

    def _read_part(self, file: Path) -> tuple[NDArray[np.int64], MappedVectors]:
        stored = file.with_suffix(".vectors")
        size = stored.stat().st_size if stored.is_file() else 0
        whole = min(file.stat().st_size // _ROW.itemsize, size // self._row_bytes)
        records = np.fromfile(file, dtype=_ROW, count=whole)
        rows = np.empty((0, self.dim), dtype=self.dtype)
        if whole:
            # Copy on write: the file stays as it is, and torch takes only arrays that may be written to.
            rows = np.memmap(stored, dtype=self.dtype, mode="c", shape=(whole, self.dim))
        for place in range(self._checked.get(file.name, 0), whole):
            if zlib.crc32(rows[place].tobytes()) != records["checksum"][place]:
                raise DataError(
                    f"{stored}: row {place} is not what was written: the file is damaged. Remove {file.name} "
                    f"and {stored.name} there; what they hold is embedded again."
                )
        self._checked[file.name] = whole
        return records["content_id"].astype(np.int64), MappedVectors(rows)

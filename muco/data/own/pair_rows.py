"""The rows of a data set of one's own that have a pair, and which of them share images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.data.own.layout import OwnData
from muco.io.columns import PairColumns, embedded_image, has_image, image_list, image_name, pair_from
from muco.io.tables import Row


@dataclass(frozen=True)
class PairRow:
    """A row that has a pair."""

    values: dict[str, Any]
    keys: tuple[bytes, ...]
    """Hashes of its images, or of its query if it has none: rows that share one stay together."""


class PairRows:
    """The rows of a data set that have a pair, whose images are there; read anew each time."""

    def __init__(self, data: OwnData, columns: PairColumns) -> None:
        self.data, self.columns = data, columns
        self.files = data.files
        self.skipped: dict[str, str] = {}
        self.embedded = False
        self.locations: dict[str, str] = {}
        """Where the image of each name is."""
        self._sizes: dict[str, int] = {}
        self._hashes: dict[str, bytes] = {}
        self._by_size: dict[int, list[str]] = {}
        sides = (columns.query_image, columns.target_image)
        self._images = [name for name in sides if name]
        self.image_columns = [name for name in (*sides, columns.negative_image) if name]
        """The columns of images, those of hard negatives too."""
        self._measure()

    def __iter__(self) -> Iterator[PairRow]:
        for row in self._good_rows():
            values = {name: row.values.get(name) for name in self.columns.used() if name in row.values}
            yield PairRow(values, tuple(self._keys(values)))

    def common_folder(self) -> Path | None:
        """Return the deepest folder that all image files are in; None if some are in archives."""
        paths = list(self.locations.values())
        if not paths or not all(map(os.path.isfile, paths)):
            return None
        return Path(os.path.commonpath([os.path.dirname(path) for path in paths]) or ".")

    def relative(self, values: dict[str, Any], root: Path | None) -> dict[str, Any]:
        """Return the values with image paths relative to a folder; unchanged without one."""
        if root is None:
            return values
        changed = dict(values)
        for column in self.image_columns:
            if has_image(value := values.get(column)):
                paths = [self._path(each, root) for each in image_list(value) if has_image(each)]
                changed[column] = paths if isinstance(value, list) or len(paths) > 1 else paths[0]
        return changed

    def _path(self, value: Any, root: Path) -> str:
        return Path(os.path.relpath(self.locations[image_name(value)], root)).as_posix()

    def _measure(self) -> None:
        """Find all images, and which have the size of another: only these need be compared."""
        for row in self.data.rows():
            try:
                self._check(row)
            except (DataError, ValueError) as error:
                self.skipped[row.location] = str(error)
        for name, size in self._sizes.items():
            self._by_size.setdefault(size, []).append(name)

    def _good_rows(self) -> Iterator[Row]:
        return (row for row in self.data.rows() if row.location not in self.skipped)

    def _check(self, row: Row) -> None:
        def unread(value: Any) -> EncodedImage:
            return EncodedImage(embedded_image(value) or image_name(value).encode())

        pair_from(self.columns, row.checked().values, unread)
        for value in self._values_of(row.values, self.image_columns):
            if embedded_image(value):
                self.embedded = True
            elif (name := image_name(value)) not in self._sizes:
                self._sizes[name] = self.files.size(name)
                self.locations[name] = self.files.location(name)

    def _values_of(self, values: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
        for name in names:
            yield from filter(has_image, image_list(values.get(name)))

    def _keys(self, values: Mapping[str, Any]) -> Iterator[bytes]:
        images = list(self._values_of(values, self._images))
        if not images:
            yield _hash(repr(values.get(self.columns.query_text or "")).encode())
        for value in images:
            data = embedded_image(value)
            yield _hash(data) if data else self._image_hash(image_name(value))

    def _image_hash(self, name: str) -> bytes:
        """Return equal hashes for equal images; a file is read only if another has its size."""
        if name not in self._hashes:
            size = self._sizes[name]
            data = self.files.image(name).data if len(self._by_size[size]) > 1 else str(size).encode()
            self._hashes[name] = _hash(data)
        return self._hashes[name]


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()

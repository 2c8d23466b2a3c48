"""Contents that lie in files: tables of texts and image paths, and images in folders or zip archives."""

from __future__ import annotations

import ast
import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, overload

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content

TABLES = (".jsonl", ".parquet", ".csv")


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines, parquet or CSV file, in order.

    Raises:
        DataError: it is not there, or not what its name says.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as file:
                yield from (
                    json_row(path, number, line) for number, line in enumerate(file, 1) if line.strip()
                )
        else:
            raise DataError(f"{path}: read are {', '.join(TABLES)}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text: {error}") from None


def json_row(path: Path, number: int, line: str | bytes) -> dict[str, Any]:
    """Return a line of JSON as a mapping; raise DataError naming file and line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: must be a mapping, not {str(row)[:40]!r}")
    return row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from None


def strings(value: Any) -> list[str] | None:
    """Return a list of strings that is given as one, or as a Python or JSON literal of one; else None."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(value, list | tuple) or not all(
        each is None or isinstance(each, str) for each in value
    ):
        return None
    return [each or "" for each in value]


class ImageFiles:
    """Images by the paths that a table gives them, below a few folders or inside zip archives."""

    def __init__(self, places: Iterable[Path], *, also: Mapping[str, str] | None = None) -> None:
        """Note where to look, in order.

        Args:
            places: folders and .zip files; those that are not there are passed over.
            also: parts of paths and what they may stand for, `images/` for `image-tasks/`, say.
        """
        self.places = [place for place in places if place.is_dir() or zipfile.is_zipfile(place)]
        self._also = dict(also or {})
        self._zips: dict[Path, tuple[zipfile.ZipFile, frozenset[str]]] = {}

    def check(self, paths: Iterable[str], *, told: str) -> None:
        """Raise DataError where an image is not there; `told` says how to get it."""
        missing = [path for path in dict.fromkeys(paths) if self._find(path) is None]
        if missing:
            looked = ", ".join(map(str, self.places)) or "no folder of images"
            raise DataError(
                f"{len(missing):,} images are missing, {missing[0]!r} the first; looked in {looked}. {told}"
            )

    def read(self, path: str) -> EncodedImage:
        """Return an image as it is; raise DataError where it is missing, empty or no image."""
        found = self._find(path)
        if found is None:
            raise DataError(f"image {path!r} is missing; looked in {', '.join(map(str, self.places))}")
        place, name = found
        data = self._zip(place)[0].read(name) if place.is_file() else (place / name).read_bytes()
        if not data:
            raise DataError(f"image {place / name} is empty (0 bytes)")
        image = EncodedImage(data)
        try:
            _ = image.size
        except DataError as error:
            raise DataError(f"image {place / name}: {error}") from None
        return image

    def _find(self, path: str) -> tuple[Path, str] | None:
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts or PurePosixPath(path).is_absolute():
            raise DataError(f"image path {path!r}: it must lie below the folder of images")
        plain = "/".join(parts)
        names = [plain, *(plain.replace(old, new) for old, new in self._also.items() if old in plain)]
        for place in self.places:
            for name in names:
                if name in self._zip(place)[1] if place.is_file() else (place / name).is_file():
                    return place, name
        return None

    def _zip(self, place: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
        if place not in self._zips:
            opened = zipfile.ZipFile(place)
            self._zips[place] = (opened, frozenset(opened.namelist()))
        return self._zips[place]


class FileContents(Sequence[Content]):
    """Contents made when they are asked for, so that no more images are in memory than are in use."""

    def __init__(self, rows: Sequence[tuple[str, str]], images: ImageFiles) -> None:
        """Take (text, image path) of each; an empty path for none."""
        self._rows = rows
        self._images = images

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Content: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Content]: ...
    def __getitem__(self, index: int | slice) -> Content | Sequence[Content]:
        if isinstance(index, slice):
            return FileContents(self._rows[index], self._images)
        text, path = self._rows[index]
        return Content(text, (self._images.read(path),) if path else ())

"""What `muco data generate` reads: images of folders, archives or tables, in an order that never changes."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from muco.core.errors import DataError, MucoError
from muco.core.ids import stable_id
from muco.generate.spool import Spool
from muco.io.archives import PLAIN, zip_entries
from muco.io.image_files import ImageFiles, is_image
from muco.io.table_text import text_of
from muco.io.tables import Row, kind_of, rows
from muco.io.tar import is_plain_file, tar_files


@dataclass(frozen=True)
class Item:
    """One image to ask about."""

    image: str
    """The name that the table holds: a path below the root, a member of an archive, or a URL."""
    caption: str = ""
    """A given caption; stage 1 is not asked."""


@dataclass(frozen=True)
class Selection:
    """Which of the images are asked about."""

    part: tuple[int, int] = (1, 1)
    """Part i of n, from 1. The name of an image decides which part it is in."""
    sample: int | None = None
    """So many of them, chosen by their names."""
    limit: int | None = None
    """The first so many."""

    def of(self, items: Iterator[Item]) -> Iterator[Item]:
        """Return the chosen items, in their order."""
        number, count = self.part
        own = (item for item in items if count == 1 or stable_id(item.image) % count == number - 1)
        if self.sample is not None:
            numbered = ((stable_id("sample", item.image), index, item) for index, item in enumerate(own))
            chosen = heapq.nsmallest(self.sample, numbered, key=lambda it: it[:2])
            own = (item for _, _, item in sorted(chosen, key=lambda it: it[1]))
        return islice(own, self.limit)


class Inputs:
    """The images below a path, each once, and where to read them."""

    def __init__(
        self,
        path: Path,
        *,
        images: Path | None = None,
        column: str = "image",
        captions: Path | None = None,
        selection: Selection | None = None,
    ) -> None:
        """Take a folder, an archive or a table.

        Args:
            path: the folder, searched recursively, archives in it too; a zip or tar; or a table.
            images: the folder or archive that a table's image paths start from; None for the table's own.
            column: of the image paths, in `path` if it is a table and in `captions`.
            captions: a table with the columns `column` and `caption`.
            selection: None for all.

        Raises:
            DataError: a path is missing, or a table lacks a column.
        """
        for given in filter(None, (path, images)):
            if not given.exists():
                raise DataError(f"{given}: no such file or folder")
        self.path = path
        self.is_table = path.is_file() and bool(kind_of(path))
        if path.is_file() and not self.is_table and not path.name.lower().endswith(PLAIN):
            raise DataError(f"{path}: no folder, table, zip or tar")
        self.root = images or (path.parent if self.is_table else path)
        self.images = ImageFiles([self.root], decoding="faithful")
        self._column, self._selection = column, selection or Selection()
        self.captions_path = captions
        self._captions = _captions_of(captions, column) if captions else None
        self.num_without_caption = 0
        """Images that the last pass left out because the captions file has none for them."""

    def __iter__(self) -> Iterator[Item]:
        """Yield the chosen items, always in the same order and in bounded memory."""
        yield from self._selection.of(self._all())

    def count(self) -> int:
        """Return the number of chosen items; raise DataError if there is none."""
        if number := sum(1 for _ in self):
            return number
        if self._captions is None or not self.num_without_caption:
            raise DataError(f"{self.path}: no image in it, or none that was chosen")
        image = next(self._images()).image
        raise DataError(
            f"{self.captions_path}: no caption for any chosen image of {self.path}. That has names such as "
            f"{image!r}, the captions have names such as {self._captions.any_name()!r}"
        )

    def _images(self) -> Iterator[Item]:
        return self._of_table() if self.is_table else map(Item, _images_at(self.path))

    def _all(self) -> Iterator[Item]:
        self.num_without_caption = 0
        for item in self._images():
            if self._captions is None:
                yield item
            elif caption := self._captions.get(item.image):
                yield replace(item, caption=caption)
            else:
                self.num_without_caption += 1

    def _of_table(self) -> Iterator[Item]:
        with closing(Spool()) as names:
            for row in _rows_with(self.path, self._column):
                name = row.text(self._column)
                if name and names.add(name):
                    yield Item(name, row.text("caption"))


def _captions_of(path: Path, column: str) -> Spool:
    captions = Spool()
    is_empty = True
    for row in _rows_with(path, column, "caption"):
        if caption := row.text("caption"):
            captions.add(row.text(column), caption)
            is_empty = False
    if is_empty:
        raise DataError(f"{path}: no row has a caption")
    return captions


def _rows_with(path: Path, *columns: str) -> Iterator[Row]:
    """Yield the rows of a table; raise DataError if one cannot be read or lacks a column."""
    for row in rows(path):
        if row.fault:
            raise DataError(f"{path}, {row.position}: {row.fault}")
        if missing := [name for name in columns if name not in row.values]:
            hint = ". Name the column of images: --column" if missing[0] != "caption" else ""
            names = ", ".join(row.values)
            raise DataError(f"{path}, {row.position}: no column {missing[0]!r}. Columns: {names}{hint}")
        yield row


def _images_at(path: Path) -> Iterator[str]:
    """Yield the names of the images in a folder and in its archives, or in one archive."""
    if path.is_file():
        yield from _members(path)
        return
    for parent, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(path).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for file in sorted(files):
            name = prefix + file
            if is_image(file):
                yield text_of(name, f"the file name {name!a}")
            elif file.lower().endswith(PLAIN) and not file.startswith("."):
                yield from _members(Path(parent, file))


def _members(path: Path) -> Iterator[str]:
    if path.name.lower().endswith(".zip"):
        yield from (it.filename for it in zip_entries(path) if is_image(Path(it.filename).name))
        return
    yield from (it.name for it in tar_files(path) if is_plain_file(it) and is_image(Path(it.name).name))


def part_of(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n`; raise MucoError if it is none."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise MucoError(f"--part {text}: write i/n with i from 1 to n, as in --part 2/8")
    return int(first), int(second)


def part_path(path: Path, part: Sequence[int]) -> Path:
    """Return the table of a part: `x-2-of-8.jsonl`."""
    number, count = part
    return path if count == 1 else path.with_name(f"{path.stem}-{number}-of-{count}{path.suffix}")

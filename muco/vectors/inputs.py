"""What `muco encode` reads: the images in a folder, or the rows of a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from muco.core.errors import DataError, did_you_mean
from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.io.columns import embedded_image, has_image, image_name
from muco.io.image_files import ImageFiles, is_image
from muco.io.spool import BytesSpool
from muco.io.table_text import text_of
from muco.io.tables import rows as table_rows
from muco.io.tables import tables_below
from muco.vectors.store import Row


@dataclass(frozen=True)
class Columns:
    """The columns of a table of inputs."""

    id: str | None = None
    """Names an item; None numbers the rows from 1."""
    text: str | None = None
    """None for `text`, if the table has such a column."""
    image: str | None = None
    """Image paths; None for `image`, if the table has such a column."""


@dataclass(frozen=True)
class Inputs:
    """Items to encode, and where their images are."""

    rows: Sequence[Row]
    faults: dict[str, str]
    """Items that cannot be read: where each is, and why."""
    root: Path
    """The folder that image paths start from."""
    images: ImageFiles
    instruction: str = ""
    embedded: BytesSpool = field(default_factory=BytesSpool)
    """The images that a table holds itself, by the ids of their rows."""

    def content(self, row: Row) -> Content:
        """Return what a row says; raise DataError if its image is missing or cannot be read."""
        if (data := self.embedded.get(row.id)) is not None:
            image = EncodedImage(data).decoded_as(self.images.decoding)
            return Content(self.instruction + (row.text or ""), (image,))
        return self.images.content(self.instruction + (row.text or ""), row.image or "")

    def digest(self) -> str:
        """Return a hash of the rows and, if a row has an image, of names, sizes and times of all images."""
        digest = blake2b(digest_size=8)
        for row in self.rows:
            digest.update(repr((row.id, row.text, row.image)).encode())
            if (data := self.embedded.get(row.id)) is not None:
                digest.update(blake2b(data).digest())
        revision = self.images.revision() if any(row.image for row in self.rows) else ""
        return f"{digest.hexdigest()}-{revision}"


def read_inputs(path: Path, columns: Columns, *, images: Path | None = None, instruction: str = "") -> Inputs:
    """Return the items of a folder of images, searched recursively, or of a table.

    Args:
        path: the folder; or a JSONL, CSV, TSV, JSON, Parquet or Arrow file; or a folder of such files and no
            images, as `datasets` saves them.
        columns: of a table.
        images: the folder or archive that a table's image paths start from; None for the table's folder.
        instruction: put before every text as it is.

    Raises:
        DataError: it is missing, has no item, or lacks a column; or its path or the instruction is not valid
            Unicode.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    embedded = BytesSpool()
    root = path if path.is_dir() else path.parent
    rows, faults = _images_below(path) if path.is_dir() else ([], {})
    tables = [path] if path.is_file() else [] if rows or faults else tables_below(path)[0]
    if tables:
        rows, faults = _rows_of(path, tables, columns, embedded)
        root = images or root
    if not rows:
        first = "".join(f". {where}: {why}" for where, why in list(faults.items())[:1])
        what = "image or table in it" if path.is_dir() else "row to read"
        raise DataError(f"{path}: nothing to encode: no {what}{first}")
    root = Path(text_of(str(root.absolute()), f"the path {str(root)!a}"))
    instruction = text_of(instruction, "the instruction")
    return Inputs(rows, faults, root, ImageFiles([root], decoding="faithful"), instruction, embedded)


def _images_below(folder: Path) -> tuple[list[Row], dict[str, str]]:
    """Return the images in a folder and its folders, sorted by name, and those whose name is not Unicode.

    Hidden files and folders are left out, and links to folders are not followed.
    """
    rows: list[Row] = []
    faults: dict[str, str] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files if is_image(name)):
            name = path.relative_to(folder).as_posix()
            try:
                rows.append(Row(text_of(name, "the file name"), None, name))
            except DataError as error:
                faults[ascii(name)] = str(error)
    return sorted(rows, key=lambda row: row.id), faults


def _rows_of(
    path: Path, tables: Sequence[Path], columns: Columns, embedded: BytesSpool
) -> tuple[list[Row], dict[str, str]]:
    """Return the items of tables, and why rows cannot be read; images in the tables go to `embedded`."""
    rows: dict[str, Row] = {}
    faults: dict[str, str] = {}
    seen: dict[str, None] = {}
    for number, row in enumerate((row for table in tables for row in table_rows(table)), start=1):
        seen.update(dict.fromkeys(row.values))
        try:
            values = row.checked()
            image = values.values.get(columns.image or "image")
            data = embedded_image(image)
            item = Row(
                id=values.text(columns.id) if columns.id else str(number),
                text=values.text(columns.text or "text") or None,
                image=image_name(image) if data is None and has_image(image) else None,
            )
            _check(item, data, rows, columns, list(values.values))
        except DataError as error:
            faults[row.location] = str(error)
            continue
        rows[item.id] = item
        if data is not None:
            embedded.add(item.id, data)
    for name in filter(None, (columns.id, columns.text, columns.image)):
        if name not in seen:
            near = did_you_mean(name, list(seen))
            raise DataError(f"{path}: no row has a column {name!r}.{near} Columns: {', '.join(seen)}")
    return list(rows.values()), faults


def _check(
    item: Row, data: bytes | None, rows: dict[str, Row], columns: Columns, names: Sequence[str]
) -> None:
    if not item.id:
        raise DataError(f"no id in column {columns.id!r}")
    if item.id in rows:
        raise DataError(f"a second row with id {item.id!r}")
    if not (item.text or item.image or data):
        text, image = columns.text or "text", columns.image or "image"
        raise DataError(
            f"neither text in column {text!r} nor an image path in column {image!r}. Columns: "
            f"{', '.join(names)}. Name yours with --text and --image"
        )

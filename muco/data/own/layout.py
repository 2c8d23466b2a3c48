"""Find the rows and the images of a data set of one's own: a table, or a folder `class/image.jpg`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.data.own.guess import VIDEO_HINT, image_names, is_video
from muco.io.image_files import ImageFiles, is_image
from muco.io.tables import Row, rows, tables_below

_ROWS_SAMPLED = 500
_NAMES_TRIED = 50


@dataclass(frozen=True)
class OwnData:
    """The rows of a data set, and where their images are."""

    path: Path
    tables: Sequence[Path]
    """Empty for a folder of classes."""
    root: Path
    """The folder that image names start from."""

    def rows(self) -> Iterator[Row]:
        """Yield all rows; those of a folder of classes have the columns `image` and `label`."""
        if self.tables:
            yield from (replace(row, file=table.name) for table in self.tables for row in rows(table))
            return
        for number, name in enumerate(_image_names_below(self.path)):
            yield Row("image", number, {"image": name, "label": Path(name).parent.name})

    def sample(self) -> list[Mapping[str, Any]]:
        """Return the values of the first rows that can be read."""
        return _sample(self.rows())

    @property
    def files(self) -> ImageFiles:
        """The images, as they are on disk."""
        return ImageFiles([self.root])


def find_data(path: Path, images: Path | None) -> OwnData:
    """Return the rows and images at a path; raise DataError if there are none.

    The path is a table, a folder of tables, or a folder with a folder of images for each class. `images` is
    where image names start from; None looks for them in the table's folder, in its folders, and in the
    working folder.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    tables = [path] if path.is_file() else tables_below(path)[0]
    if not tables:
        names = _image_names_below(path)
        if not any("/" in name for name in names):
            raise DataError(
                f"{path}: give a table, or a folder with a folder of images for each class; "
                f"{_what_is_there(path, len(names))}"
            )
        return OwnData(path, (), path)
    values = _sample(row for table in tables for row in rows(table))
    if not values:
        raise DataError(f"{path}: no row that can be read")
    folder = path if path.is_dir() else path.parent
    return OwnData(path, tables, images or _root_of(values, folder))


def exists_in(files: ImageFiles) -> Callable[[str], bool]:
    """Return a function that says whether an image of a name is there."""

    @cache
    def exists(name: str) -> bool:
        try:
            files.size(name)
        except DataError:
            return False
        return True

    return exists


def _sample(every: Iterator[Row]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for row in every:
        if not row.fault:
            found.append(row.values)
        if len(found) == _ROWS_SAMPLED:
            break
    return found


def _root_of(values: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Return the folder below which most of the images are; the nearest of several."""
    names = [name for row in values for value in row.values() for name in image_names(value)][:_NAMES_TRIED]
    inner = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    roots = [folder, *inner, Path(".")] if names else [folder]
    if absolute := [os.path.dirname(name) for name in names if os.path.isabs(name)]:
        roots.append(Path(os.path.commonpath(absolute)))
    return max(roots, key=lambda root: sum(map(exists_in(ImageFiles([root])), names)))


def _what_is_there(folder: Path, num_images: int) -> str:
    if num_images:
        return f"{num_images:,} images are directly in it, not in folders"
    num_videos = len(_names_below(folder, is_video))
    return f"there are {num_videos:,} videos. {VIDEO_HINT}" if num_videos else "there are none of both"


def _image_names_below(folder: Path) -> list[str]:
    return _names_below(folder, is_image)


def _names_below(folder: Path, is_one: Callable[[str], bool]) -> list[str]:
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if is_one(name)]
    return sorted(names)

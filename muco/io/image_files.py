"""Images by the names that tables give them: plain files, or members of zip and tar archives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from muco.core.errors import DataError
from muco.core.ids import url_name
from muco.core.image import EncodedImage
from muco.core.sample import Content
from muco.io.archives import COMPRESSED, PLAIN, Archives, Member, stem_of
from muco.io.lazy import LazyContents

TextAndImage = tuple[str, str]
"""A content as tables have it: a text and the name of an image, either of them empty for none."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
"""What files of a folder of images end in."""


class ImageFiles:
    """Finds and reads images below some folders, where they lie or straight out of archives.

    Names come from strangers: one that would leave its folder is refused.
    """

    def __init__(self, places: Sequence[Path], *, also: Mapping[str, str] | None = None) -> None:
        """Note where to look, in order.

        Args:
            places: folders, and archives; an archive is looked into after all folders.
            also: parts of names and what they may stand for, `images/` for `image-tasks/`, say.
        """
        self.places = places
        self._also = dict(also or {})

    @cached_property
    def _plain(self) -> Archives:
        """Looked for when a plain file is first missed."""
        return Archives(self._below(PLAIN))

    @cached_property
    def _compressed(self) -> Archives:
        """Looked into when an image is missing there, too; one that was written as a plain tar is not."""
        plain = {path.with_suffix("") for path in self._plain.paths}
        found = self._below(COMPRESSED)
        return Archives([path for path in found if path.parent / stem_of(path) not in plain])

    def _below(self, suffixes: tuple[str, ...]) -> list[Path]:
        return sorted({path for place in self.places for path in _files(place, suffixes)})

    def image(self, name: str) -> EncodedImage:
        """Return the image of that name; raise DataError where it is missing, cannot be read or is none."""
        found = self._found(name)
        try:
            data = found.read_bytes() if isinstance(found, Path) else found[0].read(found[1])
        except OSError as error:
            raise DataError(f"image {name}: {error}") from error
        if not data:
            raise DataError(f"image {name} is empty")
        image = EncodedImage(data)
        try:
            _ = image.size
        except DataError as error:
            raise DataError(f"image {name}: {error}") from None
        return image

    def size(self, name: str) -> int:
        """Return the bytes of the image of that name; raise DataError where there is none."""
        found = self._found(name)
        return found.stat().st_size if isinstance(found, Path) else found[1].size

    def names_in(self, name: str) -> list[str]:
        """Return the names of the images in the folder of that name, in order; those of an archive too.

        Raises:
            DataError: there is no such folder, no image in it, or it cannot be read.
        """
        try:
            for folder in self._names(name):
                for found in self._folders(folder):
                    if images := sorted(each for each in set(found) if _is_image(each)):
                        return [f"{folder}/{each}" for each in images]
        except OSError as error:
            raise DataError(f"folder {name}: {error}") from error
        raise DataError(f"no folder {name} of images (they end in {', '.join(_IMAGES)})")

    def _folders(self, name: str) -> Iterator[list[str]]:
        """Yield what lies in each folder of that name, then in the archives."""
        for place in self.places:
            # As for files: the name may be none that a folder can have.
            if os.path.isdir(place / name):
                yield os.listdir(place / name)
        for archives in (self._plain, self._compressed):
            yield archives.names_in(name)

    def check(self, names: Iterable[str], *, told: str) -> None:
        """Raise DataError where images are missing; `told` says how to get them."""
        missing = [name for name in dict.fromkeys(filter(None, names)) if self._find(name) is None]
        if missing:
            raise DataError(f"{len(missing):,} images are missing; {self._missing(missing[0])}. {told}")

    def contents(self, rows: Sequence[TextAndImage]) -> LazyContents:
        """Return the contents of some rows."""
        return LazyContents(lambda place: self.content(*rows[place]), range(len(rows)))

    def content(self, text: str, name: str) -> Content:
        """Return a text with its image, if it names one."""
        return Content(text, (self.image(name),) if name else ())

    def _found(self, name: str) -> Path | tuple[Archives, Member]:
        found = self._find(name)
        if found is None:
            raise DataError(self._missing(name))
        return found

    def _find(self, name: str) -> Path | tuple[Archives, Member] | None:
        names = self._names(name)
        for place in self.places:
            for each in names:
                # Some names are too long for a file, or lead in a circle.
                if os.path.isfile(place / each):
                    return place / each
        for archives in (self._plain, self._compressed):
            for each in names:
                if (member := archives.find(each)) is not None:
                    return archives, member
        return None

    def _names(self, name: str) -> list[str]:
        """Return the names that a file may have; raise DataError where one leads out of its folder."""
        plain = url_name(name) if name.startswith(("http://", "https://")) else name
        inside = PurePosixPath(plain)
        if inside.is_absolute() or ".." in inside.parts or "\0" in name:
            raise DataError(f"image {name!r} would lie outside its folder")
        plain = str(inside)
        return [plain, *(plain.replace(old, new) for old, new in self._also.items() if old in plain)]

    def _missing(self, name: str) -> str:
        there = [str(place) for place in self.places if place.exists()]
        if not there:
            return f"image {name} is missing: {self.places[0]} is not there"
        number = len(self._plain.paths) + len(self._compressed.paths)
        return f"image {name} is missing below {', '.join(there)}, {number} archives looked into"


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGES) and not name.startswith(".")


def _files(place: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files at or below a place with one of the suffixes, by name, none of a folder whose name
    begins with a dot.
    """
    if place.is_file() and place.name.endswith(suffixes):
        yield place
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(suffixes))

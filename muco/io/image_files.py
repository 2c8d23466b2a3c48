"""Find and read images by the names in tables: files, or members of zip and tar archives."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os.path import expanduser
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field

from muco.core.errors import DataError
from muco.core.ids import url_name
from muco.core.image import EncodedImage, ImageDecoding
from muco.core.sample import Content
from muco.io.archives import COMPRESSED, PLAIN, Archives, Member, stem_of
from muco.io.digest import digest_of_states
from muco.io.lazy import LazyContents
from muco.io.tar import is_macos_file

TextAndImage = tuple[str, str]
"""A text and the name of an image; either is empty if there is none."""

_PLAIN = "`plain`: Pillow's `convert('RGB')`, as in the public code; `faithful`: as viewers show an image."
PublicDecoding = Annotated[ImageDecoding, Field(description=_PLAIN)]
"""How the images of a public data set are decoded."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class ImageFiles:
    """Reads images below some folders, as files or directly out of zip and tar archives.

    A name is a path relative to a folder, or a URL that was downloaded. It is not trusted: one that would
    lead out of its folder is a DataError. A file is preferred to a member of an archive. If two archives hold
    different files of the name, that is a DataError. An archive that cannot be read at all is a MucoError.

    `near` is the folder of the table that has the name, relative to the paths. Files and archives in and
    below it are searched first, then those of its parent, up to the paths.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        aliases: Mapping[str, str] | None = None,
        decoding: ImageDecoding = "plain",
    ) -> None:
        """Take folders and archives to search, archives below the folders too; nothing is opened yet.

        `aliases` are parts of names and what may stand in their stead, such as `images/` -> `image-tasks/`.
        """
        self.paths = paths
        self.decoding: ImageDecoding = decoding
        self._aliases = dict(aliases or {})

    @classmethod
    def below(cls, path: str | None, folder: Path, *, decoding: ImageDecoding = "plain") -> ImageFiles:
        """Return the images below `path`, or below `folder` if it is None; `~` is the home folder."""
        return cls([Path(expanduser(path)) if path else folder], decoding=decoding)

    def image(self, name: str, *, near: str = "") -> EncodedImage:
        """Return the image of a name; raise DataError if it is missing, unreadable, empty or no image."""
        source = self._require(name, near)
        try:
            data = source.read_bytes() if isinstance(source, Path) else source[0].read(source[1])
        except OSError as error:
            raise DataError(f"image {_short(name)}: {error}") from error
        if not data:
            raise DataError(f"image {_short(name)} is empty")
        image = EncodedImage(data, _short(name))
        _ = image.size
        return image.decoded_as(self.decoding)

    def images(self, name: str) -> tuple[EncodedImage, ...]:
        """Return the image of a name, or nothing if the name is empty; raises as `image` does."""
        return (self.image(name),) if name else ()

    def size(self, name: str, *, near: str = "") -> int:
        """Return the size of an image's file in bytes; raise DataError if it is missing."""
        source = self._require(name, near)
        return source.stat().st_size if isinstance(source, Path) else source[1].size

    def location(self, name: str, *, near: str = "") -> str:
        """Return the path of an image's file, or of its archive and its name there; raises as `size` does."""
        source = self._require(name, near)
        return str(source) if isinstance(source, Path) else source[0].location(source[1])

    def names_in(self, name: str, *, near: str = "") -> list[str]:
        """Return the images in a folder, on disk or in an archive, sorted; raise DataError without any."""
        try:
            for folder in self._names(name):
                for files in self._listings(folder, near):
                    if images := sorted(filter(is_image, set(files))):
                        return [f"{folder}/{image}" for image in images]
        except OSError as error:
            raise DataError(f"folder {_short(name)}: {error}") from error
        raise DataError(f"no folder {_short(name)} of images (they end in {', '.join(_IMAGE_SUFFIXES)})")

    def check(self, names: Iterable[str], *, hint: str) -> None:
        """Raise DataError if images are missing; `hint` ends the message and says how to get them."""
        missing = [name for name in dict.fromkeys(filter(None, names)) if self._find(name, "") is None]
        if missing:
            raise DataError(f"{len(missing):,} images are missing; {self._missing(missing[0])}. {hint}")

    def content(self, text: str, name: str) -> Content:
        """Return a text with its image, if the name is not empty; raises as `image` does."""
        return Content(text, self.images(name))

    def contents(self, rows: Sequence[TextAndImage]) -> LazyContents:
        """Return the contents of rows; the image of a row is read each time that its content is used."""
        return LazyContents(lambda index: self.content(*rows[index]), range(len(rows)))

    def revision(self) -> str:
        """Return a hash of names, sizes and times of all images and archives, but for muco's shards."""
        return digest_of_states(
            (os.path.relpath(path, root), path) for root in self.paths for path in _images_and_archives(root)
        )

    @cached_property
    def _plain(self) -> Archives:
        return Archives(self._below(PLAIN))

    @cached_property
    def _compressed(self) -> Archives:
        """Compressed archives without a decompressed copy beside them; searched last."""
        plain = {path.with_suffix("") for path in self._plain.paths}
        paths = self._below(COMPRESSED)
        return Archives([path for path in paths if path.parent / stem_of(path) not in plain])

    def _archives(self) -> Iterator[Archives]:
        yield self._plain
        yield self._compressed

    def _below(self, suffixes: tuple[str, ...]) -> list[Path]:
        return sorted({file for path in self.paths for file in _files(path, suffixes)})

    def _levels(self, near: str) -> Iterator[tuple[Sequence[Path], Sequence[Path] | None]]:
        """Yield the folders to search, nearest first, and those that the archives must lie below."""
        parts = PurePosixPath(near).parts
        for number in range(len(parts), 0, -1):
            folders = [path.joinpath(*parts[:number]) for path in self.paths]
            yield folders, folders
        yield self.paths, None

    def _listings(self, folder: str, near: str) -> Iterator[list[str]]:
        """Yield the names of the files in each folder of that name, then in the archives."""
        for paths, below in self._levels(near):
            for path in paths:
                if os.path.isdir(path / folder):
                    yield os.listdir(path / folder)
            for archives in self._archives():
                yield archives.names_in(folder, below=below)

    def _require(self, name: str, near: str) -> Path | tuple[Archives, Member]:
        source = self._find(name, near)
        if source is None:
            raise DataError(self._missing(name))
        return source

    def _find(self, name: str, near: str) -> Path | tuple[Archives, Member] | None:
        names = self._names(name)
        for paths, below in self._levels("" if os.path.isabs(name) else near):
            for path in paths:
                for each in names:
                    # os.path.isfile is False for names that are too long and for circular links.
                    if os.path.isfile(path / each):
                        return path / each
            for archives in self._archives():
                for each in names:
                    if (member := archives.find(each, below=below)) is not None:
                        return archives, member
        return None

    def _names(self, name: str) -> list[str]:
        """Return the names that a file may have; raise DataError if one leads out of its folder."""
        if name.startswith("data:"):
            raise DataError("an image is a data: URL, which is not read: write it to a file and name that")
        plain = PurePosixPath(url_name(name) if name.startswith(("http://", "https://")) else name)
        if plain.is_absolute() and ".." not in plain.parts:
            plain = self._relative(plain)
        if ".." in plain.parts or "\0" in name:
            raise DataError(f"image {_short(name)!r} would lie outside its folder")
        # A disk may hold the name in another Unicode normal form than the table.
        forms = [str(plain), *(unicodedata.normalize(form, str(plain)) for form in ("NFC", "NFD"))]
        names = list(dict.fromkeys(forms))
        return names + [
            name.replace(old, new) for name in names for old, new in self._aliases.items() if old in name
        ]

    def _relative(self, path: PurePosixPath) -> PurePosixPath:
        """Return an absolute path relative to the folder above it; raise DataError if it is in none."""
        roots = [root for each in self.paths for root in (os.path.abspath(each), os.path.realpath(each))]
        for root in roots:
            if path.is_relative_to(root):
                return path.relative_to(root)
        raise DataError(
            f"image {_short(str(path))!r} would lie outside its folder: an absolute path must be below "
            f"{roots[0]}; set `images` to a folder above it, or write paths relative to that folder"
        )

    def _missing(self, name: str) -> str:
        existing = [str(path) for path in self.paths if path.exists()]
        if not existing:
            return f"image {_short(name)} is missing: {self.paths[0]} does not exist"
        num_archives = len(self._plain.paths) + len(self._compressed.paths)
        folders = ", ".join(existing)
        above = next((path.parent for path in self.paths if os.path.isfile(path.parent / name)), None)
        hint = "" if above is None else f". It is in {above}: set `images` to this folder"
        return f"image {_short(name)} is missing below {folders}; {num_archives} archives were searched{hint}"


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def is_image(name: str) -> bool:
    """Return whether a file of that name is an image to read; hidden files are not."""
    return name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")


def _files(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files at or below a path with one of the suffixes; none in hidden folders, none of macOS."""
    walked = (Path(folder, name) for folder, names in _folders(path) for name in names)
    named = (file for file in (path, *walked) if file.name.endswith(suffixes))
    yield from (file for file in named if file.is_file() and not is_macos_file(file.name))


def _folders(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder at or below a path, except hidden ones, and its files, sorted."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(names)


def _images_and_archives(path: Path) -> Iterator[Path]:
    """Yield the images and archives at or below a path, except in hidden folders and in folders of shards."""
    suffixes = (*_IMAGE_SUFFIXES, *PLAIN, *COMPRESSED)
    if path.is_file():
        yield path
    for folder, names in _folders(path):
        if "index.json" not in names:
            files = (Path(folder, name) for name in names if name.lower().endswith(suffixes))
            yield from (file for file in files if file.is_file())

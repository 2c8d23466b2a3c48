"""Images by the names that tables give them: plain files, or members of zip and tar archives."""

from __future__ import annotations

import os
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from uuid import uuid4

from muco.core.errors import DataError
from muco.core.folders import cache_folder
from muco.core.ids import url_name
from muco.core.image import EncodedImage

MAX_FILE_BYTES = 2**28
"""Larger files are no images that we read."""

_ARCHIVES = (".zip", ".tar")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.gz.part-00")
_ROOTS = frozenset({".", "images"})
"""Folders at the head of a name that an archive may leave out."""
_STORED, _DEFLATED = 0, 8
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
"""What files of a folder of images end in."""
_LOCAL_HEADER = struct.Struct("<26xHH")


@dataclass(frozen=True)
class Member:
    """A file in an archive, where its bytes begin or its local header does."""

    archive: int
    name: str
    offset: int
    stored: int
    """Bytes in the archive."""
    size: int
    """Bytes of the file."""
    method: int
    crc: int | None
    """Of the file; None in a tar, which has none."""


class ImageFiles:
    """Finds and reads images below some folders, where they lie or straight out of archives.

    Archives are listed once, in an index in the cache folder. Names come from strangers: one that
    would leave its folder is refused.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder if folder.is_dir() else folder.parent for folder in folders]
        self._files: dict[int, int] = {}
        self._index: sqlite3.Connection | None = None

    @cached_property
    def archives(self) -> list[Path]:
        """Those below the folders, looked for when a plain file is first missed."""
        return sorted({path for folder in self.folders for path in _files(folder, _ARCHIVES)})

    @cached_property
    def _packed(self) -> Path | None:
        """A compressed archive below the folders: what is missing may lie in it."""
        return next((path for folder in self.folders for path in _files(folder, _COMPRESSED)), None)

    def image(self, name: str) -> EncodedImage:
        """Return the image of that name; raise DataError where there is none or it cannot be read."""
        path = self._path(name)
        try:
            data = path.read_bytes() if path is not None else self._read(self._member(name))
        except OSError as error:
            raise DataError(f"image {name}: {error}") from error
        if not data:
            raise DataError(f"image {name} is empty")
        return EncodedImage(data)

    def size(self, name: str) -> int:
        """Return the bytes of the image of that name; raise DataError where there is none."""
        path = self._path(name)
        return path.stat().st_size if path is not None else self._member(name).size

    def names_in(self, name: str) -> list[str]:
        """Return the names of the images in the folder of that name, in order; those of an archive too.

        Raises:
            DataError: there is no such folder, or no image in it.
        """
        inside = self._inside(name)
        for folder in self.folders:
            if (folder / inside).is_dir():
                found = sorted(path.name for path in (folder / inside).iterdir() if _is_image(path.name))
                break
        else:
            found = self._packed_in(inside)
        if not found:
            raise DataError(f"no folder {name} of images (they end in {', '.join(_IMAGES)})")
        return [f"{inside}/{each}" for each in found]

    def _packed_in(self, inside: PurePosixPath) -> list[str]:
        """Return the names of the images that a folder of an archive holds, in order."""
        if not self.archives:
            return []
        self._index = self._index or _open_index(self.archives)
        # All that begins with the folder's name and a stroke: the next character ends the range.
        range_ = (f"{inside.name}/", f"{inside.name}0")
        found = self._index.execute("SELECT name FROM members WHERE tail >= ? AND tail < ?", range_)
        paths = [PurePosixPath(name) for (name,) in found]
        depth = len(inside.parts)
        return sorted(
            {
                path.name
                for path in paths
                if path.parts[-1 - depth : -1] == inside.parts and _is_image(path.name)
            }
        )

    def _inside(self, name: str) -> PurePosixPath:
        """Return a name below a folder; raise DataError where it would leave it."""
        inside = PurePosixPath(_plain(name))
        if inside.is_absolute() or ".." in inside.parts or "\0" in name:
            raise DataError(f"image {name!r} would lie outside its folder")
        return inside

    def _path(self, name: str) -> Path | None:
        inside = self._inside(name)
        paths = (folder / inside for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    def _member(self, name: str) -> Member:
        wanted = PurePosixPath(_plain(name)).parts
        if self.archives:
            self._index = self._index or _open_index(self.archives)
            found = self._index.execute(
                "SELECT archive, name, offset, stored, size, method, crc FROM members WHERE tail IN (?, ?)",
                (_tail(wanted), wanted[-1]),
            )
            fitting = [member for member in (Member(*row) for row in found) if self._fits(member, wanted)]
            if fitting:
                return max(fitting, key=lambda it: (_common(it.name, wanted), -it.archive))
        raise DataError(self._missing(name))

    def _fits(self, member: Member, wanted: Sequence[str]) -> bool:
        """Say whether a member is the file wanted: its name, but for folders at the head.

        Of the name wanted the archive may leave out roots and what it is called itself; on its own
        side it may put any folders before it.
        """
        common = _common(member.name, wanted)
        left_out = set(wanted[: len(wanted) - common])
        more = len(PurePosixPath(member.name).parts) - common
        if left_out:
            return not more and left_out <= _ROOTS | {self.archives[member.archive].stem}
        return True

    def _missing(self, name: str) -> str:
        places = ", ".join(map(str, self.folders))
        told = f"image {name} is missing below {places}, {len(self.archives)} archives looked into"
        packed = self._packed
        if packed is None:
            return told
        stem = packed.name.split(".tar")[0]
        parts = f"{stem}.tar.gz.part-*" if ".part-" in packed.name else packed.name
        return (
            f"{told}. {packed.name} is compressed, so that no image can be read out of it alone: "
            f"write it once without, `cat {parts} | gunzip > {stem}.tar`, in {packed.parent}"
        )

    def _read(self, member: Member) -> bytes:
        path = self.archives[member.archive]
        if member.size > MAX_FILE_BYTES:
            raise DataError(f"{path}: {member.name} has {member.size:,} bytes; no image is so large")
        file = self._open(member.archive)
        offset = member.offset
        if member.crc is not None:
            header = os.pread(file, _LOCAL_HEADER.size, offset)
            if len(header) < _LOCAL_HEADER.size:
                raise DataError(f"{path} is cut short")
            offset += _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
        data = os.pread(file, member.stored, offset)
        if len(data) != member.stored:
            raise DataError(f"{path} is cut short within {member.name}")
        if member.method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
            except zlib.error as error:
                raise DataError(f"{path}: {member.name} is broken: {error}") from None
        elif member.method != _STORED:
            raise DataError(f"{path}: {member.name} is packed by a method not read, {member.method}")
        if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
            raise DataError(f"{path}: {member.name} is not what the archive's list says")
        return data

    def _open(self, archive: int) -> int:
        if archive not in self._files:
            if len(self._files) >= 64:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[archive] = os.open(self.archives[archive], os.O_RDONLY)
        return self._files[archive]


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGES) and not name.startswith(".")


def _plain(name: str) -> str:
    """Return a name as files are named; a URL's is its hash."""
    return url_name(name) if name.startswith(("http://", "https://")) else name


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below a folder with one of the suffixes, by name, none of a folder whose name
    begins with a dot.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if name.endswith(suffixes))


def _tail(parts: Sequence[str]) -> str:
    return "/".join(parts[-2:])


def _common(name: str, wanted: Sequence[str]) -> int:
    """Return how many parts two names share at their ends."""
    count = 0
    for ours, theirs in zip(reversed(PurePosixPath(name).parts), reversed(wanted), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _open_index(archives: Sequence[Path]) -> sqlite3.Connection:
    """Return the list of what the archives hold, made now unless it was made before."""
    digest = blake2b(digest_size=8)
    for path in archives:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    place = cache_folder() / "archives" / f"{digest.hexdigest()}.sqlite"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{uuid4().hex}.partial")
        try:
            _write_index(beside, archives)
            beside.rename(place)
        finally:
            beside.unlink(missing_ok=True)
    return sqlite3.connect(f"file:{place}?mode=ro&immutable=1", uri=True)


def _write_index(place: Path, archives: Sequence[Path]) -> None:
    with closing(sqlite3.connect(place)) as index:
        index.execute("PRAGMA synchronous = OFF")
        index.execute(
            "CREATE TABLE members (tail TEXT, archive INT, name TEXT, offset INT, stored INT, size INT, "
            "method INT, crc INT)"
        )
        for number, path in enumerate(archives):
            listed = _zip_members(number, path) if path.suffix == ".zip" else _tar_members(number, path)
            index.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _lines(listed))
        index.execute("CREATE INDEX tails ON members (tail)")
        index.commit()


def _lines(members: Iterable[Member]) -> Iterator[tuple[object, ...]]:
    for it in members:
        tail = _tail(PurePosixPath(it.name).parts)
        yield tail, it.archive, it.name, it.offset, it.stored, it.size, it.method, it.crc


def _zip_members(number: int, path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and not entry.flag_bits & 1:
                    yield Member(
                        number,
                        entry.filename,
                        entry.header_offset,
                        entry.compress_size,
                        entry.file_size,
                        entry.compress_type,
                        entry.CRC,
                    )
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: no zip archive that can be read: {error}. Fetch it anew.") from error


def _tar_members(number: int, path: Path) -> Iterator[Member]:
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (entry := archive.next()) is not None:
                if entry.isreg() and not entry.issparse():
                    if entry.offset_data + entry.size > length:
                        raise DataError(f"{path} is cut short within {entry.name}. Fetch it anew.")
                    yield Member(number, entry.name, entry.offset_data, entry.size, entry.size, _STORED, None)
                # tarfile keeps every member it has seen.
                archive.members = []  # type: ignore[assignment]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: no tar archive that can be read: {error}. Fetch it anew.") from error

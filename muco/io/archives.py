"""Files inside zip and tar archives, listed once and read where they lie."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sqlite3
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from muco.core.errors import DataError, MucoError
from muco.io.cache import cached_database, cached_file
from muco.io.tar import tar_files

MAX_FILE_BYTES = 2**28
"""Larger files are no images that we read."""

PLAIN = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.gz.part-00")
"""Out of which no file can be read alone: they are written to the cache folder once, as a plain tar."""

_HEADS = frozenset({".", "images", "image-tasks", "eval_images", "MMEB"})
"""Folders at the head of a name that say nothing."""
_STORED, _DEFLATED = 0, 8
_LOCAL_HEADER = struct.Struct("<26xHH")
_BLOCK_BYTES = 2**22
_SPARE_BYTES = 2**30
"""Left free on the disk of the cache folder."""


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


class Archives:
    """The files in some archives, by name. The list of them is made once and kept in the cache folder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take archives of the kinds in `PLAIN` and `COMPRESSED`; nothing is opened yet."""
        self.paths = paths
        self._files: dict[int, int] = {}

    def find(self, name: str) -> Member | None:
        """Return the file of that name, but for folders at the head.

        The archive may put any folders before the name. It may leave out, or have instead, folders that
        say nothing and those called like itself. Of several the one that agrees in most folders is taken,
        in the first archive, and of one name twice in an archive the later one, as tar and zip have it.

        Raises:
            MucoError: an archive cannot be listed, or not be decompressed. This is no matter of one file.
        """
        wanted = PurePosixPath(name).parts
        if not self.paths or not wanted:
            return None
        found = self._index.execute(
            "SELECT archive, name, offset, stored, size, method, crc FROM members WHERE tail IN (?, ?)",
            ("/".join(wanted[-2:]), wanted[-1]),
        )
        fitting = [member for member in (Member(*row) for row in found) if self._fits(member, wanted)]
        return max(fitting, key=lambda it: (_common(it.name, wanted), -it.archive, it.offset), default=None)

    def names_in(self, folder: str) -> list[str]:
        """Return the names of the files in the folder of that name, which is found as `find` finds a file.

        Raises:
            DataError: an archive has several such folders, which agree in equally many parts of the name.
        """
        wanted = PurePosixPath(folder).parts
        if not self.paths or not wanted:
            return []
        # All that begins with the folder's name and a stroke: the next character ends the range.
        range_ = (f"{wanted[-1]}/", f"{wanted[-1]}0")
        empty = {*_HEADS, *map(stem_of, self.paths)}
        others = " OR instr(tail, '/') = 0" if wanted[-1] in empty else ""
        found = self._index.execute(
            "SELECT archive, name, offset, stored, size, method, crc FROM members "
            f"WHERE (tail >= ? AND tail < ?){others}",
            range_,
        )
        folders: dict[tuple[int, int], dict[str, list[str]]] = {}
        for member in (Member(*row) for row in found):
            path = PurePosixPath(member.name)
            inside = (*wanted, path.name)
            if self._fits(member, inside):
                rank = _common(member.name, inside), -member.archive
                folders.setdefault(rank, {}).setdefault(str(path.parent), []).append(path.name)
        if not folders:
            return []
        rank = max(folders)
        if len(folders[rank]) > 1:
            told = " and ".join(sorted(folders[rank])[:2])
            raise DataError(f"{self.paths[-rank[1]]}: {folder} may be {told}; name more of its folders")
        return next(iter(folders[rank].values()))

    def read(self, member: Member) -> bytes:
        """Return a file; raise DataError where the archive is cut short or broken."""
        path = self.paths[member.archive]
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

    @cached_property
    def _plain(self) -> list[Path]:
        """The archives themselves; in the place of a compressed one, what was written of it."""
        return [path if path.suffix in PLAIN else _written(path) for path in self.paths]

    @cached_property
    def _index(self) -> sqlite3.Connection:
        return cached_database(
            f"archives/{_digest(self.paths)}.sqlite",
            lambda beside: _write_index(beside, self.paths, self._plain),
        )

    def _fits(self, member: Member, wanted: Sequence[str]) -> bool:
        common = _common(member.name, wanted)
        if common == len(wanted):
            return True
        nothing = {*_HEADS, stem_of(self.paths[member.archive])}
        theirs = PurePosixPath(member.name).parts
        return nothing.issuperset((*wanted[: len(wanted) - common], *theirs[: len(theirs) - common]))

    def _open(self, archive: int) -> int:
        if archive not in self._files:
            if len(self._files) >= 64:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[archive] = os.open(self._plain[archive], os.O_RDONLY)
        return self._files[archive]


def stem_of(path: Path) -> str:
    """Return what an archive is called: `photos` of `photos.tar.gz.part-00`."""
    ending = next((each for each in (*COMPRESSED, *PLAIN) if path.name.endswith(each)), "")
    return path.name.removesuffix(ending)


def command_for(path: Path) -> str:
    """Return the command that writes a compressed archive without compression, beside it."""
    packed = f"{stem_of(path)}.tar.gz.part-*" if ".part-" in path.name else path.name
    return f"cd {path.parent} && cat {packed} | gunzip > {stem_of(path)}.tar"


def _parts(path: Path) -> list[Path]:
    """Return the files of an archive that may be cut into several."""
    return sorted(path.parent.glob(f"{stem_of(path)}.tar.gz.part-*")) if ".part-" in path.name else [path]


def _common(name: str, wanted: Sequence[str]) -> int:
    """Return how many parts two names share at their ends."""
    count = 0
    for ours, theirs in zip(reversed(PurePosixPath(name).parts), reversed(wanted), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _digest(paths: Iterable[Path]) -> str:
    digest = blake2b(digest_size=8)
    for path in (part for each in paths for part in _parts(each)):
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _written(path: Path) -> Path:
    """Return the plain tar of a compressed one, in the cache folder."""
    return cached_file(
        f"archives/{stem_of(path)}-{_digest([path])}.tar", lambda beside: _decompress(path, beside)
    )


def _decompress(path: Path, to: Path) -> None:
    parts = _parts(path)
    packed = sum(part.stat().st_size for part in parts)
    told = f"{path} is compressed, {packed / 2**30:,.1f} GiB: it is written once without, below {to.parent}"
    print(told, file=sys.stderr, flush=True)
    try:
        with ExitStack() as stack:
            joined = _Joined(stack.enter_context(open(part, "rb")) for part in parts)
            source = stack.enter_context(gzip.GzipFile(fileobj=io.BufferedReader(joined)))
            target = stack.enter_context(open(to, "wb"))
            written = 0
            while True:
                free = shutil.disk_usage(to.parent).free - _SPARE_BYTES
                if max(packed - written, _BLOCK_BYTES) > free:
                    raise MucoError(
                        f"{path} is compressed, and {to.parent} has no room for it without. Name a folder "
                        f"that has in $MUCO_CACHE, or write it elsewhere: {command_for(path)}"
                    )
                block = source.read(_BLOCK_BYTES)
                if not block:
                    return
                target.write(block)
                written += len(block)
    except (EOFError, OSError, zlib.error) as error:
        raise MucoError(f"{path} cannot be decompressed: {error}. Fetch it anew.") from error


class _Joined(io.RawIOBase):
    """Open files one after the other as one."""

    def __init__(self, files: Iterable[io.BufferedReader]) -> None:
        super().__init__()
        self._files = list(files)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while self._files:
            if number := self._files[0].readinto(buffer):
                return number
            self._files.pop(0)
        return 0


def _write_index(place: Path, named: Sequence[Path], plain: Sequence[Path]) -> None:
    with closing(sqlite3.connect(place)) as index:
        index.execute("PRAGMA synchronous = OFF")
        index.execute(
            "CREATE TABLE members (tail TEXT, archive INT, name TEXT, offset INT, stored INT, size INT, "
            "method INT, crc INT)"
        )
        for number, (path, file) in enumerate(zip(named, plain, strict=True)):
            listed = _zip_members(number, file) if file.suffix == ".zip" else _tar_members(number, file)
            lines = _lines(listed, {*_HEADS, stem_of(path)})
            index.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?)", lines)
        index.execute("CREATE INDEX tails ON members (tail)")
        index.commit()


def _lines(members: Iterable[Member], nothing: set[str]) -> Iterator[tuple[object, ...]]:
    for it in members:
        *folders, name = PurePosixPath(it.name).parts or ("",)
        tail = "/".join((*folders[-1:], name)) if set(folders) - nothing else name
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
        raise MucoError(f"{path}: no zip archive that can be read: {error}. Fetch it anew.") from error


def _tar_members(number: int, path: Path) -> Iterator[Member]:
    try:
        for entry in tar_files(path):
            yield Member(number, entry.name, entry.offset_data, entry.size, entry.size, _STORED, None)
    except DataError as error:
        raise MucoError(f"{error}. Fetch it anew.") from error

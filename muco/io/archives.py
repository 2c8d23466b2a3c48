"""Read files out of zip and tar archives without unpacking them."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sqlite3
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, pairwise, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from muco.core.errors import DataError, MucoError
from muco.core.printable import format_size, printable
from muco.io.cache import cache_folder, cached_database, cached_file
from muco.io.digest import digest_of_states
from muco.io.tar import is_macos_file, is_plain_file, tar_files

MAX_FILE_BYTES = 2**28
"""Larger files are not read."""

PLAIN = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.gz.part-00")
"""Decompressed once, to a plain tar in the cache folder: a single file cannot be read out of them."""

_GENERIC = frozenset({".", "images", "image-tasks", "eval_images", "MMEB"})
"""Leading folders of a name that need not agree with the table's name."""
_STORED, _DEFLATED, _ENCRYPTED, _LINK = 0, 8, -1, -2
"""Methods: those of zip, and two that are never read."""
_UNREADABLE = {
    _ENCRYPTED: "encrypted; unpack the archive with its password",
    _LINK: "a link or a sparse file; unpack the archive",
}
_MAX_INTEGER = 2**62
"""Larger offsets and sizes, which only a broken zip has, do not fit the database."""
_LOCAL_HEADER = struct.Struct("<26xHH")
_UTF8 = 0x800
"""The flag of a zip's entry that says that its name is UTF-8."""
_VERSION = 2
"""Of the lists in the cache folder."""
_BLOCK_BYTES = 2**22
_SPARE_BYTES = 2**30
"""Free space to leave on the disk of the cache folder."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    archive: int
    """Index of the archive in `Archives.paths`."""
    name: str
    offset: int
    """Where its bytes begin in a tar, or its local header in a zip."""
    stored: int
    """Size in the archive, in bytes."""
    size: int
    """Size of the file, in bytes."""
    method: int
    """Compression method, as zip numbers it, or a negative number if the file cannot be read."""
    crc: int | None
    """Check sum of the file; None in a tar."""


class Archives:
    """The files in some archives, by name. They are listed once, in a database in the cache folder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take archives with suffixes of `PLAIN` and `COMPRESSED`; nothing is opened yet."""
        self.paths = paths
        self._files: dict[int, int] = {}

    def find(self, name: str, *, below: Sequence[Path] | None = None) -> Member | None:
        """Return the file of a name; None if there is none. Leading folders may differ.

        The archive may have any folders before the name. Generic folders and those named like the archive may
        be missing or differ. Of several matches the one that agrees in most folders is returned. Of one name
        twice in an archive the later file counts, as in tar and zip. The Unicode normal form does not matter.
        Only archives below one of the folders `below` are searched; None for all. Raise DataError if two
        archives hold different files that match equally well, MucoError if one cannot be read.
        """
        parts = PurePosixPath(_normal(name)).parts
        if not self.paths or not parts:
            return None
        members = self._members("tail IN (?, ?)", ("/".join(parts[-2:]), parts[-1]), below)
        matches = [it for it in members if self._matches(it, parts)]
        most = max((_common(it.name, parts) for it in matches), default=0)
        best = {
            it.archive: it
            for it in sorted(matches, key=lambda it: (it.archive, it.offset))
            if _common(it.name, parts) == most
        }
        if not best:
            return None
        first, *others = best.values()
        for other in others:
            if not self._is_same(first, other):
                two = f"{self.paths[first.archive]} and {self.paths[other.archive]}"
                raise DataError(f"{two} hold different images {name}; name more of its folders")
        return first

    def names_in(self, folder: str, *, below: Sequence[Path] | None = None) -> list[str]:
        """Return the file names in a folder, matched as by `find`; raise DataError if several match."""
        parts = PurePosixPath(_normal(folder)).parts
        if not self.paths or not parts:
            return []
        # All tails that begin with `NAME/`: `0` is the character after `/`.
        condition, bounds = "(tail >= ? AND tail < ?)", (f"{parts[-1]}/", f"{parts[-1]}0")
        if parts[-1] in {*_GENERIC, *map(stem_of, self.paths)}:
            condition += " OR instr(tail, '/') = 0"
        folders: dict[tuple[int, int], dict[str, list[str]]] = {}
        for member in self._members(condition, bounds, below):
            path = PurePosixPath(member.name)
            inside = (*parts, path.name)
            if self._matches(member, inside):
                rank = _common(member.name, inside), -member.archive
                folders.setdefault(rank, {}).setdefault(str(path.parent), []).append(path.name)
        if not folders:
            return []
        rank = max(folders)
        if len(folders[rank]) > 1:
            two = " and ".join(sorted(folders[rank])[:2])
            raise DataError(f"{self.paths[-rank[1]]}: {folder} may be {two}; name more of its folders")
        return next(iter(folders[rank].values()))

    def read(self, member: Member) -> bytes:
        """Return the bytes of a file; raise DataError if it is too large, or the archive is broken there."""
        path = self.paths[member.archive]
        if member.method in _UNREADABLE:
            raise DataError(f"{path}: {member.name} is {_UNREADABLE[member.method]}")
        num_bytes = max(member.size, member.stored)
        if num_bytes > MAX_FILE_BYTES:
            raise DataError(f"{path}: {member.name} has {num_bytes:,} bytes, over {MAX_FILE_BYTES:,}")
        file = self._open(member.archive)
        offset = member.offset
        if member.crc is not None:
            header = os.pread(file, _LOCAL_HEADER.size, offset).ljust(_LOCAL_HEADER.size, b"\0")
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
            raise DataError(f"{path}: {member.name} has compression method {member.method}, unknown here")
        if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
            raise DataError(f"{path}: {member.name} does not have the listed size and check sum")
        return data

    def location(self, member: Member) -> str:
        """Return the path of a file's archive and its name there."""
        return f"{self.paths[member.archive]}: {member.name}"

    @cached_property
    def _plain(self) -> list[Path]:
        """The archives, each compressed one replaced by its decompressed copy."""
        return [path if path.suffix in PLAIN else _decompressed(path) for path in self.paths]

    @cached_property
    def _index_name(self) -> str:
        return f"archives/{_VERSION}-{_digest(self.paths)}.sqlite"

    @cached_property
    def _index(self) -> sqlite3.Connection:
        return cached_database(self._index_name, lambda index: _write_index(index, self.paths, self._plain))

    def _members(
        self, condition: str, values: Sequence[str], below: Sequence[Path] | None
    ) -> Iterator[Member]:
        """Yield the files that fulfil an SQL condition, in archives below one of the folders."""
        columns = "archive, name, offset, stored, size, method, crc"
        query = f"SELECT {columns} FROM members WHERE {condition} ORDER BY archive, offset"
        try:
            rows = self._index.execute(query, values).fetchall()
        except sqlite3.DatabaseError:
            # The list in the cache folder is damaged: it is made again.
            del self._index
            (cache_folder() / self._index_name).unlink(missing_ok=True)
            rows = self._index.execute(query, values).fetchall()
        for member in (Member(*row) for row in rows):
            path = self.paths[member.archive]
            if below is None or any(path.is_relative_to(folder) for folder in below):
                yield member

    def _is_same(self, one: Member, other: Member) -> bool:
        """Return whether two members have the same bytes."""
        if one.size != other.size or None not in (one.crc, other.crc):
            return (one.size, one.crc) == (other.size, other.crc)
        return self.read(one) == self.read(other)

    def _matches(self, member: Member, parts: Sequence[str]) -> bool:
        """Return whether the names agree, apart from leading folders that may differ."""
        common = _common(member.name, parts)
        if common == len(parts):
            return True
        others = PurePosixPath(member.name).parts
        differing = (*parts[: len(parts) - common], *others[: len(others) - common])
        return {*_GENERIC, stem_of(self.paths[member.archive])}.issuperset(differing)

    def _open(self, archive: int) -> int:
        if archive not in self._files:
            if len(self._files) >= 64:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[archive] = os.open(self._plain[archive], os.O_RDONLY)
        return self._files[archive]


def stem_of(path: Path) -> str:
    """Return an archive's name without suffixes: `photos` for `photos.tar.gz.part-00`."""
    ending = next((each for each in (*COMPRESSED, *PLAIN) if path.name.endswith(each)), "")
    return path.name.removesuffix(ending)


def command_for(path: Path) -> str:
    """Return the command that decompresses an archive beside itself."""
    packed = f"{stem_of(path)}.tar.gz.part-*" if ".part-" in path.name else path.name
    return f"cd {path.parent} && cat {packed} | gunzip > {stem_of(path)}.tar"


def _parts(path: Path) -> list[Path]:
    """Return the files of an archive, which may be split into several."""
    if ".part-" not in path.name:
        return [path]
    return sorted(part for part in path.parent.glob(f"{stem_of(path)}.tar.gz.part-*") if part.is_file())


def _common(name: str, parts: Sequence[str]) -> int:
    """Return how many parts two names share at their ends."""
    pairs = zip(reversed(PurePosixPath(name).parts), reversed(parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _normal(name: str) -> str:
    """Return a name in one Unicode normal form; macOS writes another. Bytes that are not UTF-8 become `?`."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "replace").decode()


def _digest(paths: Iterable[Path]) -> str:
    return digest_of_states((part.resolve(), part) for path in paths for part in _parts(path))


def _decompressed(path: Path) -> Path:
    """Return the plain tar of a compressed one, in the cache folder."""
    name = f"archives/{stem_of(path)}-{_digest([path])}.tar"
    return cached_file(name, lambda partial: _decompress(path, partial))


def _decompress(path: Path, to: Path) -> None:
    parts = _parts(path)
    num_bytes = sum(part.stat().st_size for part in parts)
    message = f"{path} is compressed, {format_size(num_bytes)}: it is decompressed once, to {to.parent}"
    print(printable(message), file=sys.stderr, flush=True)
    try:
        with ExitStack() as stack:
            joined = _Joined(stack.enter_context(open(part, "rb")) for part in parts)
            source = stack.enter_context(gzip.GzipFile(fileobj=io.BufferedReader(joined)))
            target = stack.enter_context(open(to, "wb"))
            written = 0
            for block in chain([b""], iter(partial(source.read, _BLOCK_BYTES), b"")):
                written += target.write(block)
                free = shutil.disk_usage(to.parent).free - _SPARE_BYTES
                if max(num_bytes - written, _BLOCK_BYTES) > free:
                    raise MucoError(
                        f"{path} is compressed, and the disk of {to.parent} has no room to decompress it. "
                        f"Set $MUCO_CACHE to a larger one, or decompress it elsewhere: {command_for(path)}"
                    )
    except (EOFError, OSError, zlib.error) as error:
        raise MucoError(f"{path} cannot be decompressed: {error}. Download it again.") from error


class _Joined(io.RawIOBase):
    """Concatenated files as one."""

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


def _write_index(index: sqlite3.Connection, paths: Sequence[Path], plain: Sequence[Path]) -> None:
    index.execute(
        "CREATE TABLE members (tail TEXT, archive INT, name TEXT, offset INT, stored INT, size INT, "
        "method INT, crc INT)"
    )
    for number, (path, file) in enumerate(zip(paths, plain, strict=True)):
        members = _zip_members(number, file) if file.suffix == ".zip" else _tar_members(number, file)
        generic = {*_GENERIC, stem_of(path)}
        rows = ((_tail(member.name, generic), *vars(member).values()) for member in members)
        index.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    index.execute("CREATE INDEX tails ON members (tail)")


def _tail(path: str, generic: set[str]) -> str:
    """Return a file's name with its folder, or without if all its folders are generic."""
    *folders, name = PurePosixPath(path).parts or ("",)
    return "/".join((*folders[-1:], name)) if set(folders) - generic else name


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the entries of a zip; raise MucoError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    # zipfile raises NotImplementedError for an archive of a version that it does not know.
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise MucoError(f"{path}: no zip archive that can be read: {error}. Download it again.") from error


def _zip_members(number: int, path: Path) -> Iterator[Member]:
    entries = zip_entries(path)
    by_offset = sorted(entries, key=lambda it: it.header_offset)
    for it, following in pairwise(by_offset):
        if it.header_offset + _LOCAL_HEADER.size + it.compress_size > following.header_offset:
            names = f"{it.filename} and {following.filename}"
            raise MucoError(f"{path}: {names} overlap, as in a zip bomb; the archive is not read")
    for it in entries:
        name = _zip_name(it)
        if it.is_dir() or is_macos_file(name):
            continue
        method = _ENCRYPTED if it.flag_bits & 1 else it.compress_type
        offset, stored, size = (
            min(each, _MAX_INTEGER) for each in (it.header_offset, it.compress_size, it.file_size)
        )
        yield Member(number, name, offset, stored, size, method, it.CRC)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Return the file's name. Many programs write UTF-8 without the flag that says so."""
    try:
        name = entry.filename if entry.flag_bits & _UTF8 else entry.filename.encode("cp437").decode()
    except UnicodeError:
        name = entry.filename
    return _normal(name)


def _tar_members(number: int, path: Path) -> Iterator[Member]:
    try:
        for it in tar_files(path):
            method = _STORED if is_plain_file(it) else _LINK
            yield Member(number, _normal(it.name), it.offset_data, it.size, it.size, method, None)
    except DataError as error:
        raise MucoError(f"{error}. Download it again.") from error

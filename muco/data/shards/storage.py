"""Where shards lie: a folder, or a URL whose shards are kept in a cache of bounded size."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from muco.core.errors import DataError, MucoError
from muco.data.shards.index import INDEX_JSON, INDEX_ROWS, Shard, ShardIndex, read_index
from muco.io.cache import cache_folder
from muco.io.lock import locked

_TRIES, _FIRST_WAIT_SECONDS = 4, 0.5
_BLOCK_BYTES = 2**22


class LocalPlace:
    """A folder of shards."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder

    def index(self) -> ShardIndex:
        """Return the index; every shard is there in its length."""
        return read_index(self.folder)

    def open(self, shard: Shard) -> int:
        """Return a descriptor of the shard's file."""
        return os.open(self.folder / shard.file, os.O_RDONLY)


class RemotePlace:
    """A URL that fsspec knows; a shard is fetched whole when it is first read, and the least used removed."""

    def __init__(self, url: str, max_bytes: int) -> None:
        self.name = url
        self.max_bytes = max_bytes
        key = blake2b(url.encode(), digest_size=8).hexdigest()
        self.folder = cache_folder() / "remote" / key

    def index(self) -> ShardIndex:
        """Return the index, fetched anew; a cache of other shards is emptied."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".index.lock"):
            fresh = self._bytes(INDEX_JSON)
            path = self.folder / INDEX_JSON
            if not path.is_file() or path.read_bytes() != fresh:
                for old in self.folder.glob("shard-*.tar"):
                    old.unlink()
                self._put(INDEX_ROWS, self._bytes(INDEX_ROWS))
                self._put(INDEX_JSON, fresh)
        index = read_index(self.folder, shards_elsewhere=True)
        largest = max(index.shards, key=lambda shard: shard.num_bytes)
        if largest.num_bytes > self.max_bytes:
            raise DataError(
                f"{self.name}: {largest.file} has {largest.num_bytes / 2**30:.2f} GiB, more than the cache "
                "may hold; raise cache_gib"
            )
        return index

    def open(self, shard: Shard) -> int:
        """Return a descriptor of the shard in the cache, fetched and checked first where it is not there."""
        path = self.folder / f"shard-{blake2b(shard.file.encode(), digest_size=8).hexdigest()}.tar"
        while True:
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY)
                os.utime(file)
                return file
            with locked(self.folder / f".{path.stem}.lock"):
                if not path.exists():
                    self._fetch(shard, path)

    def _fetch(self, shard: Shard, path: Path) -> None:
        with locked(self.folder / ".room.lock"):
            self._make_room(shard.num_bytes)
        # One process at a time fetches a shard, so what a killed one left is written over.
        beside = self.folder / f".{path.stem}.partial"
        try:
            digest = self._download(shard.file, beside)
            if digest != shard.blake2b:
                raise DataError(f"{self.name}/{shard.file} is not what its index says, by its checksum")
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the shards that were opened longest ago until another one fits."""
        kept = sorted((path.stat().st_mtime_ns, path) for path in self.folder.glob("shard-*.tar"))
        total = sum(path.stat().st_size for _, path in kept)
        for _, path in kept:
            if total + num_bytes <= self.max_bytes:
                return
            total -= path.stat().st_size
            path.unlink()

    def _bytes(self, name: str) -> bytes:
        return self._patiently(name, lambda system, path: system.cat_file(path))

    def _download(self, name: str, to: Path) -> str:
        """Write the file and return its digest."""

        def copy(system: Any, path: str) -> str:
            digest = blake2b(digest_size=16)
            with system.open(path, "rb") as source, open(to, "wb") as target:
                while block := source.read(_BLOCK_BYTES):
                    digest.update(block)
                    target.write(block)
            return digest.hexdigest()

        return self._patiently(name, copy)

    def _patiently(self, name: str, read: Any) -> Any:
        """Read, again after a while where the line fails."""
        for attempt in range(_TRIES):
            try:
                system, path = _file_system(self.name)
                return read(system, f"{path.rstrip('/')}/{name}")
            except FileNotFoundError:
                raise DataError(f"{self.name}: no {name} there") from None
            except MucoError:
                raise
            # Each kind of storage raises errors of its own.
            except Exception as error:
                if attempt + 1 == _TRIES:
                    told = f"{type(error).__name__}: {error}"
                    raise DataError(f"{self.name}/{name} cannot be read: {told}") from error
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    def _put(self, name: str, data: bytes) -> None:
        beside = self.folder / f".{uuid4().hex}.partial"
        beside.write_bytes(data)
        beside.rename(self.folder / name)


Place = LocalPlace | RemotePlace


def place_of(name: str | Path, *, cache_bytes: int) -> Place:
    """Return the place that a recipe names: a folder, or a URL of one.

    Raises:
        MucoError: a URL that runs a program, or is a chain of them.
    """
    text = str(name)
    check_place(text)
    if "://" not in text:
        return LocalPlace(Path(text).expanduser())
    if text.startswith("file://"):
        return LocalPlace(Path(text.removeprefix("file://")))
    return RemotePlace(text, cache_bytes)


def check_place(text: str) -> None:
    """Raise MucoError where a name of shards would run a program when opened."""
    if re.match(r"\s*pipe:", text, re.IGNORECASE) or "::" in text:
        raise MucoError(f"{text}: `pipe:` and chained URLs (`::`) are refused; name a folder or a plain URL")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MucoError(f"{url}: {error}") from None

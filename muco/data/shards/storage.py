"""Where shards are stored: in a folder, or at a URL with a cache of bounded size."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from muco.core.errors import DataError, MucoError
from muco.core.printable import format_size
from muco.data.shards.index import INDEX_JSON, INDEX_ROWS, Shard, ShardIndex, read_index
from muco.io.atomic import atomic_path, write_bytes
from muco.io.cache import cache_errors, cache_folder
from muco.io.digest import digest_of
from muco.io.lock import locked

_TRIES, _FIRST_WAIT_SECONDS = 4, 0.5
Result = TypeVar("Result")


class LocalStorage:
    """A folder of shards."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder

    def index(self) -> ShardIndex:
        """Return the index; every shard is there with its size."""
        return read_index(self.folder)

    def open(self, shard: Shard) -> int:
        """Return a descriptor of the shard's file."""
        return os.open(self.folder / shard.file, os.O_RDONLY)


class RemoteStorage:
    """A URL that fsspec opens. A shard is fetched whole on first use; the least recently used are removed."""

    def __init__(self, url: str, max_bytes: int) -> None:
        self.name = url
        self.max_bytes = max_bytes
        key = blake2b(url.encode(), digest_size=8).hexdigest()
        self.folder = cache_folder() / "remote" / key

    def index(self) -> ShardIndex:
        """Fetch and return the index; where it has changed, the cached shards are removed."""
        with cache_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / ".index.lock"):
                fetched = self._fetch_bytes(INDEX_JSON)
                path = self.folder / INDEX_JSON
                if not path.is_file() or path.read_bytes() != fetched:
                    for old in self.folder.glob("shard-*.tar"):
                        old.unlink()
                    write_bytes(self.folder / INDEX_ROWS, self._fetch_bytes(INDEX_ROWS))
                    write_bytes(path, fetched)
        index = read_index(self.folder, shards_elsewhere=True)
        largest = max(index.shards, key=lambda shard: shard.num_bytes)
        if largest.num_bytes > self.max_bytes:
            raise DataError(
                f"{self.name}: {largest.file} has {format_size(largest.num_bytes)}, more than the cache "
                "may hold; raise cache_gib"
            )
        return index

    def open(self, shard: Shard) -> int:
        """Return a descriptor of the shard in the cache; fetch and check the shard first if it is missing."""
        path = self.folder / f"shard-{blake2b(shard.file.encode(), digest_size=8).hexdigest()}.tar"
        while True:
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY)
                os.utime(file)
                return file
            with cache_errors(path), locked(self.folder / f".{path.stem}.lock"):
                if not path.exists():
                    self._fetch_shard(shard, path)

    def _fetch_shard(self, shard: Shard, path: Path) -> None:
        with locked(self.folder / ".room.lock"):
            self._make_room(shard.num_bytes)
        with atomic_path(path) as partial:
            self._with_retries(shard.file, lambda system, path: system.get_file(path, str(partial)))
            if digest_of(partial) != shard.blake2b:
                raise DataError(f"{self.name}/{shard.file} does not have the checksum in its index")

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used shards until another one fits."""
        cached = sorted((path.stat().st_mtime_ns, path) for path in self.folder.glob("shard-*.tar"))
        total = sum(path.stat().st_size for _, path in cached)
        for _, path in cached:
            if total + num_bytes <= self.max_bytes:
                return
            total -= path.stat().st_size
            path.unlink()

    def _fetch_bytes(self, name: str) -> bytes:
        return self._with_retries(name, lambda system, path: system.cat_file(path))

    def _with_retries(self, name: str, read: Callable[[Any, str], Result]) -> Result:
        """Return `read(file system, path of the file)`; retry with growing waits where it fails."""
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
                    message = f"{type(error).__name__}: {error}"
                    raise DataError(f"{self.name}/{name} cannot be read: {message}") from error
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
        raise AssertionError("unreachable")


Storage = LocalStorage | RemoteStorage


def storage_of(location: str | Path, *, cache_bytes: int) -> Storage:
    """Return the storage at a location of a recipe: a folder, or the URL of one.

    Raise MucoError for a URL that runs a program, or is a chain of them.
    """
    text = str(location)
    check_location(text)
    if "://" not in text:
        return LocalStorage(Path(expanduser(text)))
    if text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    return RemoteStorage(text, cache_bytes)


def check_location(text: str) -> None:
    """Raise MucoError where opening the location of shards would run a program."""
    if re.match(r"\s*pipe:", text, re.IGNORECASE) or "::" in text:
        raise MucoError(f"{text}: `pipe:` and chained URLs (`::`) are refused; name a folder or a plain URL")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MucoError(f"{url}: {error}") from None

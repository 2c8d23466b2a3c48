"""Fetching images by URL into tar files: politely, going on where it stopped, and nowhere private."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import sqlite3
import tarfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from muco.core.errors import DataError, MucoError
from muco.core.ids import url_name
from muco.core.image import EncodedImage
from muco.data.prepare.resize import Limits

JOURNAL_FILE, FAILURES_FILE = "downloads.sqlite", "failures.jsonl"

_END = b"\0" * (2 * tarfile.BLOCKSIZE)
_MAX_TAR_BYTES = 2**30
_MOST_REDIRECTS = 5
_REDIRECTS, _LATER = (301, 302, 303, 307, 308), (408, 429, 500, 502, 503, 504)
_BLOCK_BYTES = 2**16
_COMMIT_EVERY = 64
_HIDES_IPV4 = tuple(
    ipaddress.ip_network(prefix)
    for prefix in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 addresses that lead to IPv4 ones, private ones among them."""


@dataclass(frozen=True)
class DownloadLimits:
    """What a download takes of others and of this machine."""

    concurrency: int = 32
    """Requests at a time."""
    per_host: int = 4
    """Of them to one host."""
    tries: int = 4
    """For each URL, where the line fails or the server asks to come again."""
    first_wait_seconds: float = 1.0
    """Before the second try; twice as long before each further one."""
    longest_wait_seconds: float = 60.0
    """Also where a server asks for more."""
    timeout_seconds: float = 60.0
    """For one try."""
    max_bytes: int = 32 * 2**20
    """Larger files are refused."""
    max_pixels: int = 50_000_000
    """Larger images are refused."""
    max_shorter_side_pixels: int | None = None
    """Images whose shorter side is longer are kept reduced to it."""
    allowed_hosts: frozenset[str] = frozenset()
    """May have private or loopback addresses."""


@dataclass
class Fetched:
    """What a download did."""

    num_new: int = 0
    num_had: int = 0
    num_failed: int = 0


class RefusedError(Exception):
    """Why a URL was not fetched, though asking again would not help."""


class RetryableError(Exception):
    """Why a try failed that may succeed later."""

    def __init__(self, reason: str, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


class PrivateAddressError(OSError):
    """A connection to an address that is not on the public internet."""


def download(urls: Iterable[str], folder: Path, manners: DownloadLimits) -> Fetched:
    """Fetch images into `images-000000.tar` and so on below a folder, each under the hash of its URL.

    Started again, it fetches what is missing. `failures.jsonl` names what could not be had, and why.

    Args:
        urls: http and https; a URL that comes again is fetched once.
        folder: made where it is missing.
        manners: limits.

    Raises:
        MucoError: aiohttp is missing, or the folder cannot be written.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise MucoError("downloading needs aiohttp: pip install 'muco[data]'") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(_Store(folder)) as store:
            try:
                asyncio.run(_Downloader(manners, store).run(urls))
            finally:
                store.commit()
            store.finish()
            return store.fetched
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{folder}: the images cannot be written: {error}") from error


class _Store:
    """The tars, and a list of what lies in them that a kill does not outdate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched = Fetched()
        self._db = sqlite3.connect(folder / JOURNAL_FILE, isolation_level=None, timeout=0)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            self._db.execute("CREATE TABLE IF NOT EXISTS had (name TEXT PRIMARY KEY) WITHOUT ROWID")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS failed (url TEXT PRIMARY KEY, reason TEXT, tries INT)"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS tars (number INTEGER PRIMARY KEY, size INT)")
            # What failed before is tried again.
            self._db.execute("DELETE FROM failed")
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise DataError(f"{folder}: another download writes there ({error})") from None
        last = self._db.execute("SELECT number, size FROM tars ORDER BY number DESC LIMIT 1").fetchone()
        self._number, self._size = last or (0, 0)
        # A killed process may have begun a tar that the list does not know.
        (folder / _tar_name(self._number + 1)).unlink(missing_ok=True)
        self._file = self._open()

    def has(self, url: str) -> bool:
        found = self._db.execute("SELECT 1 FROM had WHERE name = ?", (url_name(url),)).fetchone()
        self.fetched.num_had += found is not None
        return found is not None

    def put(self, url: str, data: bytes) -> None:
        entry = tarfile.TarInfo(url_name(url))
        entry.size, entry.mode = len(data), 0o644
        block = entry.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
        self._file.write(block)
        self._size += len(block)
        self._db.execute("INSERT OR IGNORE INTO had VALUES (?)", (url_name(url),))
        self.fetched.num_new += 1
        if self.fetched.num_new % _COMMIT_EVERY == 0:
            self.commit()
        if self._size >= _MAX_TAR_BYTES:
            self._file.write(_END)
            self.commit()
            self._file.close()
            self._number, self._size = self._number + 1, 0
            self._file = self._open()

    def fail(self, url: str, reason: str, tries: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO failed VALUES (?, ?, ?)", (url, reason, tries))
        self.fetched.num_failed += 1

    def commit(self) -> None:
        """Let the list follow the tar, once that is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._db.execute("INSERT OR REPLACE INTO tars VALUES (?, ?)", (self._number, self._size))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def finish(self) -> None:
        self._file.write(_END)
        with open(self.folder / FAILURES_FILE, "w", encoding="utf-8") as file:
            for url, reason, tries in self._db.execute("SELECT url, reason, tries FROM failed ORDER BY url"):
                file.write(json.dumps({"url": url, "reason": reason, "tries": tries}) + "\n")

    def close(self) -> None:
        self._file.close()
        self._db.close()

    def _open(self) -> Any:
        """Return the tar to go on with, cut back to what the list knows."""
        path = self.folder / _tar_name(self._number)
        path.touch()
        os.truncate(path, self._size)
        return open(path, "ab")


@dataclass
class _Downloader:
    manners: DownloadLimits
    store: _Store
    _asked: set[bytes] = field(default_factory=set)

    async def run(self, urls: Iterable[str]) -> None:
        places = asyncio.Semaphore(2 * self.manners.concurrency)
        async with self._session(guarded=True) as guarded, self._session(guarded=False) as free:
            self._sessions = {True: guarded, False: free}
            try:
                async with asyncio.TaskGroup() as tasks:
                    for url in urls:
                        if self.store.has(url) or (key := bytes.fromhex(url_name(url))) in self._asked:
                            continue
                        self._asked.add(key)
                        await places.acquire()
                        tasks.create_task(self._one(url)).add_done_callback(lambda _: places.release())
            except ExceptionGroup as group:
                # The others were cancelled for the first one's sake.
                raise group.exceptions[0] from None

    @asynccontextmanager
    async def _session(self, *, guarded: bool) -> AsyncIterator[Any]:
        import aiohttp

        connector = aiohttp.TCPConnector(
            limit=self.manners.concurrency,
            limit_per_host=self.manners.per_host,
            socket_factory=_public_socket if guarded else None,
        )
        timeout = aiohttp.ClientTimeout(total=self.manners.timeout_seconds)
        agent = {"User-Agent": f"muco/{version('muco')}", "Accept": "image/*"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=agent) as session:
            yield session

    async def _one(self, url: str) -> None:
        """Fetch a URL, with patience, and store the image or the reason why there is none."""
        wait, reason, tries = self.manners.first_wait_seconds, "", 0
        for tries in range(1, self.manners.tries + 1):
            try:
                data = await self._try(url)
                self.store.put(url, await asyncio.to_thread(self._kept, data))
                return
            except (RefusedError, DataError) as error:
                reason = str(error)
                break
            except RetryableError as error:
                reason = str(error)
                if tries < self.manners.tries:
                    await asyncio.sleep(
                        min(max(wait, error.after_seconds), self.manners.longest_wait_seconds)
                    )
                    wait *= 2
        self.store.fail(url, reason, tries)

    async def _try(self, url: str) -> bytes:
        """Return the bytes at a URL, having followed it from host to host."""
        import aiohttp

        try:
            for _ in range(_MOST_REDIRECTS + 1):
                answer = await self._get(url)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
            raise RefusedError(f"more than {_MOST_REDIRECTS} redirects")
        except (aiohttp.InvalidURL, ValueError) as error:
            raise RefusedError(f"no URL: {error}") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddressError) or PrivateAddressError.__name__ in str(error):
                raise RefusedError(f"{urlsplit(url).hostname} is at a private or loopback address") from None
            raise RetryableError(f"no connection: {error}") from None
        except TimeoutError:
            raise RetryableError(f"no answer within {self.manners.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from None

    async def _get(self, url: str) -> bytes | str:
        """Return the body, or where a redirect leads."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RefusedError(f"only http and https are fetched, not {url[:80]}")
        session = self._sessions[parts.hostname not in self.manners.allowed_hosts]
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS and "Location" in answer.headers:
                return answer.headers["Location"]
            if answer.status in _LATER:
                raise RetryableError(f"status {answer.status}", _seconds(answer.headers.get("Retry-After")))
            if answer.status != 200:
                raise RefusedError(f"status {answer.status}")
            return await self._body(answer)

    async def _body(self, answer: Any) -> bytes:
        most = self.manners.max_bytes
        if (answer.content_length or 0) > most:
            raise RefusedError(f"{answer.content_length:,} bytes; at most {most:,} are fetched")
        body = bytearray()
        async for block in answer.content.iter_chunked(_BLOCK_BYTES):
            body += block
            if len(body) > most:
                raise RefusedError(f"more than {most:,} bytes")
        return bytes(body)

    def _kept(self, data: bytes) -> bytes:
        """Return what is kept of a file; raise DataError where it is no whole image within the bounds."""
        image = EncodedImage(data)
        width, height = image.size
        if width * height > self.manners.max_pixels:
            raise DataError(
                f"image of {width} x {height} pixels; at most {self.manners.max_pixels:,} are kept"
            )
        image.decode()
        return Limits(max_shorter_side_pixels=self.manners.max_shorter_side_pixels).fit(image).data


def _tar_name(number: int) -> str:
    return f"images-{number:06d}.tar"


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet."""
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found.is_site_local or any(found in network for network in _HIDES_IPV4):
            return False
    return found.is_global and not found.is_multicast


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address that a name led to; every connection passes here, redirects too."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PrivateAddressError(f"{PrivateAddressError.__name__}: {address[0]}")
    return socket.socket(family, kind, protocol)


def _seconds(text: str | None) -> float:
    """Return how long a server asks to wait; a date is not read."""
    return float(text) if text is not None and text.isdecimal() else 0.0

"""Downloading images by URL into tar files, within limits, restartable, and from public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from muco.core.errors import DataError, MucoError
from muco.core.ids import url_name
from muco.core.image import EncodedImage
from muco.core.printable import printable
from muco.data.prepare.resize import Limits
from muco.data.shards.format import TAR_END, tar_entry
from muco.io.atomic import write_errors, write_text

JOURNAL_FILE, FAILURES_FILE = "downloads.sqlite", "failures.jsonl"

_MAX_TAR_BYTES = 2**30
_MAX_REDIRECTS = 5
_REDIRECT_STATUSES, _RETRY_STATUSES = (301, 302, 303, 307, 308), (408, 429, 500, 502, 503, 504)
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
_BLOCK_BYTES = 2**16
_COMMIT_EVERY = 64
_TABLES = """
CREATE TABLE IF NOT EXISTS had (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failed (url TEXT PRIMARY KEY, reason TEXT, tries INT);
CREATE TABLE IF NOT EXISTS tars (number INTEGER PRIMARY KEY, size INT);
DELETE FROM failed; -- URLs that failed before are tried again
"""
_HIDES_IPV4 = tuple(
    ipaddress.ip_network(prefix)
    for prefix in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 ranges that map to IPv4 addresses, which may be private."""


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of a download."""

    concurrency: int = 32
    """Requests at a time."""
    per_host: int = 4
    """Requests at a time to one host."""
    tries: int = 4
    """For each URL, where the connection fails or the server asks to retry."""
    first_wait_seconds: float = 1.0
    """Wait before the second try; it doubles with each further one."""
    longest_wait_seconds: float = 60.0
    """Upper bound of a wait, even if a server asks for a longer one."""
    timeout_seconds: float = 60.0
    """Limit of one try."""
    max_bytes: int = 32 * 2**20
    """Larger files are refused."""
    max_pixels: int = 50_000_000
    """Larger images are refused."""
    max_shorter_side_pixels: int | None = None
    """Images with a longer shorter side are reduced to it."""
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts that may have private or loopback addresses."""


@dataclass
class Fetched:
    """Numbers of URLs."""

    num_new: int = 0
    num_had: int = 0
    """Fetched before."""
    num_failed: int = 0


class RefusedError(Exception):
    """A URL was not fetched, and a retry would not help."""


class RetryableError(Exception):
    """A try failed, and a retry may succeed."""

    def __init__(self, reason: str, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


class PrivateAddressError(OSError):
    """An address is not on the public internet."""


def download(urls: Iterable[str], folder: Path, limits: DownloadLimits) -> Fetched:
    """Fetch images into `images-000000.tar` and so on in a folder, each named by the hash of its URL.

    Started again, it fetches what is missing. `failures.jsonl` lists the URLs that failed, and why. Repeated
    URLs are fetched once. Raise MucoError if aiohttp is missing, or the folder cannot be written.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise MucoError("downloading needs aiohttp: pip install 'muco[data]'") from None
    with write_errors(f"{folder}: the images"):
        folder.mkdir(parents=True, exist_ok=True)
        with closing(_Store(folder)) as store:
            try:
                asyncio.run(_Downloader(limits, store).run(urls))
            finally:
                store.commit()
            store.finish()
            return store.fetched


class _Store:
    """The tars, and a SQLite list of their members, which is at most as new as the tars after a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched = Fetched()
        self._db = sqlite3.connect(folder / JOURNAL_FILE, isolation_level=None, timeout=0)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            self._db.executescript(_TABLES)
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise DataError(f"{folder}: another download is writing to it ({error})") from None
        last = self._db.execute("SELECT number, size FROM tars ORDER BY number DESC LIMIT 1").fetchone()
        self._number, self._size = last or (0, 0)
        if not (isinstance(self._size, int) and self._size >= 0 <= self._number):
            raise DataError(f"{folder / JOURNAL_FILE} is damaged; remove {folder} to start over")
        # A killed process may have started a tar that is not in the list yet.
        (folder / _tar_name(self._number + 1)).unlink(missing_ok=True)
        self._file = self._open()

    def has(self, url: str) -> bool:
        num_had = len(self._db.execute("SELECT 1 FROM had WHERE name = ?", (url_name(url),)).fetchall())
        self.fetched.num_had += num_had
        return num_had > 0

    def put(self, url: str, data: bytes) -> None:
        entry = tar_entry(url_name(url), data)
        self._file.write(entry)
        self._size += len(entry)
        self._db.execute("INSERT OR IGNORE INTO had VALUES (?)", (url_name(url),))
        self.fetched.num_new += 1
        if self.fetched.num_new % _COMMIT_EVERY == 0:
            self.commit()
        if self._size >= _MAX_TAR_BYTES:
            self._file.write(TAR_END)
            self.commit()
            self._file.close()
            self._number, self._size = self._number + 1, 0
            self._file = self._open()

    def fail(self, url: str, reason: str, tries: int) -> None:
        # A server decides parts of the reason, and SQLite refuses lone surrogates.
        values = (printable(url), printable(reason), tries)
        self._db.execute("INSERT OR REPLACE INTO failed VALUES (?, ?, ?)", values)
        self.fetched.num_failed += 1

    def commit(self) -> None:
        """Flush the tar to the disk, then commit the list."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._db.execute("INSERT OR REPLACE INTO tars VALUES (?, ?)", (self._number, self._size))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def finish(self) -> None:
        self._file.write(TAR_END)
        failed = self._db.execute("SELECT url, reason, tries FROM failed ORDER BY url")
        lines = [json.dumps({"url": url, "reason": why, "tries": tries}) + "\n" for url, why, tries in failed]
        write_text(self.folder / FAILURES_FILE, "".join(lines))

    def close(self) -> None:
        self._file.close()
        self._db.close()

    def _open(self) -> Any:
        """Open the last tar, cut back to what the list has."""
        path = self.folder / _tar_name(self._number)
        path.touch()
        os.truncate(path, self._size)
        return open(path, "ab")


@dataclass
class _Downloader:
    limits: DownloadLimits
    store: _Store
    _requested: set[bytes] = field(default_factory=set)

    async def run(self, urls: Iterable[str]) -> None:
        slots = asyncio.Semaphore(2 * self.limits.concurrency)
        async with self._session(guarded=True) as guarded, self._session(guarded=False) as free:
            self._sessions = {True: guarded, False: free}
            try:
                async with asyncio.TaskGroup() as tasks:
                    for url in urls:
                        if printable(url) != url:
                            self.store.fail(url, "not a URL: it holds control characters", 0)
                            continue
                        if self.store.has(url) or (key := bytes.fromhex(url_name(url))) in self._requested:
                            continue
                        self._requested.add(key)
                        await slots.acquire()
                        tasks.create_task(self._fetch(url)).add_done_callback(lambda _: slots.release())
            except ExceptionGroup as group:
                raise group.exceptions[0] from None  # the first one; it cancelled the other tasks

    @asynccontextmanager
    async def _session(self, *, guarded: bool) -> AsyncIterator[Any]:
        import aiohttp

        connector = aiohttp.TCPConnector(
            limit=self.limits.concurrency,
            limit_per_host=self.limits.per_host,
            socket_factory=_public_socket if guarded else None,
        )
        timeout = aiohttp.ClientTimeout(total=self.limits.timeout_seconds)
        agent = {"User-Agent": f"muco/{version('muco')}", "Accept": "image/*"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=agent) as session:
            yield session

    async def _fetch(self, url: str) -> None:
        """Fetch a URL, with retries, and store the image or why there is none."""
        # aiohttp-retry cannot replace this loop. It retries requests, not bodies that break off. It counts
        # the tries of each redirect separately. It keeps the connection while it waits, which uses up
        # `per_host`. It decides by the type of an error: a private address has that of a lost connection.
        wait = self.limits.first_wait_seconds
        for tries in range(1, self.limits.tries + 1):
            try:
                data = await self._try(url)
                self.store.put(url, await asyncio.to_thread(self._checked, data))
                return
            except (RefusedError, DataError) as error:
                self.store.fail(url, str(error), tries)
                return
            except RetryableError as error:
                if tries == self.limits.tries:
                    self.store.fail(url, str(error), tries)
                    return
                await asyncio.sleep(min(max(wait, error.after_seconds), self.limits.longest_wait_seconds))
                wait *= 2

    async def _try(self, url: str) -> bytes:
        """Return the bytes at a URL; follow redirects, each checked like the URL itself."""
        import aiohttp

        try:
            for _ in range(_MAX_REDIRECTS + 1):
                answer = await self._get(url)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
            raise RefusedError(f"more than {_MAX_REDIRECTS} redirects")
        except (aiohttp.InvalidURL, ValueError) as error:
            raise RefusedError(f"not a URL: {error}") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddressError) or PrivateAddressError.__name__ in str(error):
                raise RefusedError(f"{urlsplit(url).hostname} is at a private or loopback address") from None
            raise RetryableError(f"no connection: {error}") from None
        except TimeoutError:
            raise RetryableError(f"no answer within {self.limits.timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from None

    async def _get(self, url: str) -> bytes | str:
        """Return the body, or the target of a redirect."""
        from yarl import URL

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RefusedError(f"only http and https are fetched, not {url[:80]}")
        session = self._sessions[parts.hostname not in self.limits.allowed_hosts]
        async with session.get(URL(_quoted(url), encoded=True), allow_redirects=False) as answer:
            if answer.status in _REDIRECT_STATUSES and "Location" in answer.headers:
                return answer.headers["Location"]
            if answer.status in _RETRY_STATUSES:
                after = retry_after_seconds(answer.headers.get("Retry-After"))
                raise RetryableError(f"status {answer.status}", after)
            if answer.status != 200:
                raise RefusedError(f"status {answer.status}")
            return await self._body(answer)

    async def _body(self, answer: Any) -> bytes:
        max_bytes = self.limits.max_bytes
        if (answer.content_length or 0) > max_bytes:
            raise RefusedError(f"{answer.content_length:,} bytes; at most {max_bytes:,} are fetched")
        body = bytearray()
        async for block in answer.content.iter_chunked(_BLOCK_BYTES):
            body += block
            if len(body) > max_bytes:
                raise RefusedError(f"more than {max_bytes:,} bytes")
        return bytes(body)

    def _checked(self, data: bytes) -> bytes:
        """Return the image, resized if needed; raise DataError if it is broken or too large.

        An image with transparency, 16-bit grey or an EXIF orientation is not resized: JPEG would lose them.
        """
        image = EncodedImage(data)
        width, height = image.size
        if width * height > self.limits.max_pixels:
            max_pixels = f"{self.limits.max_pixels:,}"
            raise DataError(f"image of {width} x {height} pixels; at most {max_pixels} are kept")
        image.decode()
        if image.faithful() is not image:
            return data
        return Limits(max_shorter_side_pixels=self.limits.max_shorter_side_pixels).fit(image).data


def _tar_name(number: int) -> str:
    return f"images-{number:06d}.tar"


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.is_site_local or any(ip in network for network in _HIDES_IPV4):
            return False
    return ip.is_global and not ip.is_multicast


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for a resolved address; each connection, redirect and retry passes here."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PrivateAddressError(f"{PrivateAddressError.__name__}: {address[0]}")
    return socket.socket(family, kind, protocol)


def _quoted(url: str) -> str:
    """Return the URL with escapes for what no URL may hold; a signed URL stays as it is.

    Bytes of a redirect that are not UTF-8 are surrogates here; they become escapes of these bytes.
    """
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return quote(parts._replace(netloc=host, fragment="").geturl(), _URL_CHARACTERS, errors="surrogateescape")


def retry_after_seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if it is neither."""
    if text is None or text.isdecimal():
        return float(text or 0)
    try:
        date = parsedate_to_datetime(text)
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0

"""Ask for everything that the journal lacks, many requests at a time."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from muco.core.errors import DataError, MucoError
from muco.generate.client import Client, RefusedRequestError, UnansweredError, UnreachableError
from muco.generate.inputs import Item
from muco.generate.journal import Journal
from muco.generate.requests import Answer, Request
from muco.generate.steps import Steps

_MOST_FAILURES_AT_FIRST = 3
"""Requests in a row that may fail before the first answer of a table; then the run stops."""
_MAX_RETRIES_AT_FIRST = 2
"""Further tries of a request before the first answer of a table."""
_MOST_FAILURES = 50
"""Requests in a row that may fail later."""
_OBJECTS_BETWEEN_COLLECTIONS = 20_000

ReadImage = Callable[[str], str]
"""Returns the URL of an image by its name; runs in a thread."""


@dataclass
class Progress:
    """What a run has done so far."""

    rows: int = 0
    """Images that are done, those of earlier runs included."""
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Run:
    """One run over the images."""

    def __init__(
        self,
        steps: Steps,
        client: Client,
        journal: Journal,
        read_image: ReadImage,
        *,
        concurrency: int,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._steps, self._client, self._journal = steps, client, journal
        self._read_image, self._concurrency, self._show = read_image, concurrency, progress
        self.progress = Progress()
        self._open: dict[bytes, asyncio.Future[None]] = {}
        self._failures = 0
        self._is_tried = not journal.is_empty()
        self._stop: MucoError | None = None

    async def over(self, items: Iterable[Item]) -> None:
        """Ask about all items.

        Until the first answer of a table one request is sent at a time: a wrong setting costs nothing.

        Raises:
            MucoError: the settings of the server are wrong, or it fails again and again. Answers that were
                under way are waited for and kept.
        """
        with _rare_collections():
            async with self._client:
                waiting = iter(items)
                while not self._stop and not self._is_tried:
                    item = next(waiting, None)
                    if item is None:
                        break
                    await self._item(item)
                workers = [self._worker(waiting) for _ in range(self._concurrency)]
                await asyncio.gather(*workers)
        if self._stop:
            raise self._stop

    async def _worker(self, items: Iterator[Item]) -> None:
        for item in items:
            if self._stop:
                return
            await self._item(item)

    async def _item(self, item: Item) -> None:
        steps = self._steps.requests(item)
        try:
            request = next(steps)
            while answer := self._journal.answer(request.key) or await self._asked(request):
                request = steps.send(answer)
            return
        except StopIteration:
            self.progress.rows += 1
        self._show(self.progress)
        if self.progress.rows % 64 == 0:
            await asyncio.sleep(0)  # rows of an earlier run leave time to those that wait for the server

    async def _asked(self, request: Request) -> Answer | None:
        """Ask a request, or wait for an equal one; return its answer, or None if there is none."""
        key = request.key
        if key in self._open:
            await self._open[key]
            return self._journal.answer(key)
        if self._stop or self._journal.failure(key) is not None:
            return None
        done = self._open[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._answer(request)
            self._keep(key, answer)
            return answer
        except (DataError, RefusedRequestError, UnansweredError) as error:
            self._fail(request, error)
        except MucoError as error:
            self._stop = self._stop or error
        finally:
            del self._open[key]
            done.set_result(None)
        return None

    async def _answer(self, request: Request) -> Answer:
        url = None
        if request.image is not None:
            url = await asyncio.to_thread(partial(self._read_image, request.image.name))
        if self._is_tried:
            return await self._client.ask(request.wire_body(url))
        return await self._client.ask(request.wire_body(url), max_retries=_MAX_RETRIES_AT_FIRST)

    def _keep(self, key: bytes, answer: Answer) -> None:
        self._is_tried = True
        self._journal.put(key, answer)
        self._failures = 0
        self.progress.answers += 1
        self.progress.prompt_tokens += answer.prompt_tokens
        self.progress.completion_tokens += answer.completion_tokens

    def _fail(self, request: Request, error: Exception) -> None:
        name = {DataError: "image", RefusedRequestError: "request_refused"}.get(type(error), "unanswered")
        self._journal.fail(request.key, f"{name}: {error}")
        if isinstance(error, DataError):
            return
        self._failures += 1
        first = 1 if isinstance(error, UnreachableError) else _MOST_FAILURES_AT_FIRST
        most = _MOST_FAILURES if self._is_tried else first
        if self._failures >= most and not self._stop:
            message = f"stopped: a request failed: {error}"
            if self._failures > 1:
                message = f"stopped: {self._failures} requests in a row failed. The last: {error}"
            self._stop = MucoError(message + _hint(request, error))


def _hint(request: Request, error: Exception) -> str:
    if isinstance(error, UnreachableError):
        return ". Is the server running, and is server.base_url its address?"
    if re.search("response_format|json_schema", str(error)):
        return (
            ". If the server does not know JSON schemas: --set server.structured=json_object_schema, "
            "json_object or none"
        )
    return ". If the model sees no images, give captions: --captions FILE" if request.image else ""


@contextmanager
def _rare_collections() -> Generator[None]:
    """Let Python search for garbage less often: each search visits all objects of all open requests."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)

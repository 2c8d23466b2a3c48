"""Making samples of records in order: in this process, in several, or on Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from muco.core.component import ComponentConfig
from muco.core.errors import DataError, MucoError
from muco.core.registry import default_registry
from muco.core.sample import Sample
from muco.core.source import Source
from muco.data.prepare.resize import Limits, fitted

_RECORDS_AT_ONCE = 16
_AHEAD = 4
"""Chunks of records that wait for each process."""
_RAY_CHUNKS = 64
"""Chunks that one Ray data set holds; the next one follows when it is done."""


@dataclass(frozen=True)
class Skipped:
    """A record that makes no sample: where it lies and why."""

    name: str
    reason: str


Outcome = Sample | Skipped


@dataclass(frozen=True)
class Maker:
    """What every process needs to make samples; picklable."""

    source: str
    settings: dict[str, Any]
    limits: Limits
    """Of images; what is within is copied as it is."""

    @classmethod
    def of(cls, name: str, config: ComponentConfig, limits: Limits) -> Maker:
        """Return the maker of a source's samples."""
        return cls(name, config.model_dump(mode="json"), limits)

    def open(self) -> Source:
        """Return the source."""
        found = cast(Any, default_registry().component("source", self.source))
        return found(found.Config.model_validate(self.settings))

    def make(self, source: Source, record: Any) -> Outcome:
        """Return a record's sample, its images checked; or why there is none."""
        try:
            return fitted(source.sample(record), self.limits)
        except (DataError, ValueError) as error:
            return Skipped(source.name_of(record), str(error))


def in_this_process(maker: Maker, source: Source, records: Iterator[Any]) -> Iterator[Outcome]:
    """Yield the outcome of each record."""
    return (maker.make(source, record) for record in records)


def in_processes(maker: Maker, records: Iterator[Any], number: int) -> Iterator[Outcome]:
    """Yield the outcome of each record in order, made by so many processes.

    Raises:
        DataError: a process died, for want of memory most often.
    """
    waiting: deque[Future[list[Outcome]]] = deque()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(number, context, initializer=_begin, initargs=(maker,))
    try:
        for chunk in _chunks(records):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) >= number * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that reads images was killed, most likely for want of memory. Start again to go on "
            "where it stopped, with fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def on_ray(maker: Maker, records: Iterator[Any]) -> Iterator[Outcome]:
    """Yield the outcome of each record in order, made on a Ray cluster: the one in reach, or this machine.

    Every node needs muco and the source's files under the same paths.
    """
    try:
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MucoError("--engine ray needs Ray: pip install 'muco[ray]'") from None
    import pickle

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False

    def work(row: dict[str, Any]) -> dict[str, Any]:
        _begin_once(maker)
        return {"made": pickle.dumps(_work(pickle.loads(row["records"])))}

    chunks = _chunks(records)
    while group := list(islice(chunks, _RAY_CHUNKS)):
        rows = [{"records": pickle.dumps(chunk)} for chunk in group]
        for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(work).iter_rows():
            yield from pickle.loads(row["made"])


def _chunks(records: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(records, _RECORDS_AT_ONCE)):
        yield chunk


_opened: tuple[Maker, Source] | None = None
"""Of this worker process."""


def _begin(maker: Maker) -> None:
    """Open the source in a process of a pool, which ends with its parent, killed or not."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin_once(maker)


def _begin_once(maker: Maker) -> None:
    global _opened
    if _opened is None or _opened[0] != maker:
        _opened = (maker, maker.open())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(records: list[Any]) -> list[Outcome]:
    assert _opened is not None
    maker, source = _opened
    return [maker.make(source, record) for record in records]

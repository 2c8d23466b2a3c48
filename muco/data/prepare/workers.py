"""Making samples of records, in order: in this process, in several, or on Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, cast

from muco.core.component import ComponentConfig
from muco.core.errors import DataError, MucoError
from muco.core.registry import default_registry
from muco.core.sample import Sample
from muco.core.source import Source
from muco.data.prepare.resize import Limits, resize_images

_RECORDS_PER_CHUNK = 16
_CHUNKS_PER_WORKER = 4
"""Chunks of records that are waiting or in work, per worker: they bound the memory."""


@dataclass(frozen=True)
class Skipped:
    """A record that makes no sample."""

    name: str
    reason: str


Outcome = Sample | Skipped


@dataclass(frozen=True)
class Maker:
    """Makes samples of records. A copy in another process builds a source of its own."""

    name: str
    """Of the source in the registry."""
    config: ComponentConfig
    limits: Limits
    """Larger images are reduced."""

    @cached_property
    def source(self) -> Source:
        """The source of this process."""
        return cast(Any, default_registry().component("source", self.name))(self.config)

    def make(self, records: Iterable[Any]) -> list[Outcome]:
        """Return the sample of each record, its images checked and resized; or why there is none."""
        return [self.outcome(self.source, record) for record in records]

    def outcome(self, source: Source, record: Any) -> Outcome:
        """Return the sample of one record, or why there is none."""
        try:
            return resize_images(source.sample(record), self.limits)
        except (DataError, ValueError) as error:
            return Skipped(source.name_of(record), str(error))


def in_processes(maker: Maker, records: Iterator[Any], num_workers: int) -> Iterator[Outcome]:
    """Yield the outcome of each record in order, made by processes; raise DataError if one was killed."""
    pending: deque[Future[list[Outcome]]] = deque()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_process, initargs=(maker,))
    try:
        for chunk in _chunks(records):
            pending.append(pool.submit(_make, chunk))
            if len(pending) >= num_workers * _CHUNKS_PER_WORKER:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that reads images was killed, most likely because memory ran out. Start again to "
            "continue where it stopped; `muco data convert` takes less memory with fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def on_ray(maker: Maker, records: Iterator[Any]) -> Iterator[Outcome]:
    """Yield the outcome of each record in order, made by one actor per CPU of a Ray cluster.

    Without a cluster, Ray starts on this machine. Every node needs muco, and the source's files under the
    same paths.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util import ActorPool  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MucoError("--engine ray needs Ray: pip install 'muco[ray]'") from None

    ray.init(ignore_reinit_error=True)
    num_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    actor = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(Maker)
    pool = ActorPool([actor.remote(maker.name, maker.config, maker.limits) for _ in range(num_workers)])
    num_pending = 0
    for chunk in _chunks(records):
        pool.submit(lambda worker, chunk: worker.make.remote(chunk), chunk)
        num_pending += 1
        if num_pending >= num_workers * _CHUNKS_PER_WORKER:
            yield from pool.get_next()
            num_pending -= 1
    while pool.has_next():
        yield from pool.get_next()


def _chunks(records: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(records, _RECORDS_PER_CHUNK)):
        yield chunk


_maker: Maker | None = None
"""Of this process of a pool."""


def _start_process(maker: Maker) -> None:
    """Open the source in a process of a pool; it ends when its parent ends, even by a kill."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _maker = maker


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(records: list[Any]) -> list[Outcome]:
    assert _maker is not None
    return _maker.make(records)

"""Converting a source into shards: many processes read, one writes, in the source's order."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.source import Source
from muco.data.prepare.journal import Journal
from muco.data.prepare.resize import Limits
from muco.data.prepare.workers import Maker, Outcome, Skipped, in_processes, in_this_process, on_ray
from muco.data.shards.format import FORMAT_VERSION, tar_bytes, to_members
from muco.data.shards.index import INDEX_JSON, read_index, write_index
from muco.data.shards.writer import OpenShard
from muco.io.lock import locked

SKIPPED_FILE = "skipped.jsonl"
JOURNAL_FILE = "journal.sqlite"

_SKIPPED_FLOOR = 1000
"""A share of skipped records is a share of at least so many."""
_RECORD_BYTES, _AS_JSON = 3072, 1.25
"""A sample's tar headers and keys in JSON, and how much longer its texts become there: both on the safe
side."""
_SPARE = 1.02
"""Of the disk, for the index."""

Engine = Literal["local", "ray"]

ShowProgress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Shows that items go by: (items, their number, what they are) -> the same items."""


@dataclass(frozen=True)
class Layout:
    """What decides the shards' bytes beside the samples."""

    max_shard_bytes: int = 256 * 2**20
    """A shard is closed once it is larger."""
    max_pixels: int | None = None
    """Larger images are reduced; None copies every image as it is."""
    max_shorter_side_pixels: int | None = None
    """Images whose shorter side is longer are reduced to it."""
    repeat_images: bool = False
    """Write an image into every sample that shows it, so that each can be read alone."""

    @property
    def limits(self) -> Limits:
        """Of images."""
        return Limits(self.max_pixels, self.max_shorter_side_pixels)


@dataclass(frozen=True)
class Converted:
    """What a folder of shards holds, and what is missing from it."""

    num_samples: int
    num_skipped: int
    """Records that made no sample; `skipped.jsonl` names them."""


@dataclass(frozen=True)
class Need:
    """What a conversion will write, as far as can be told without reading images."""

    num_bytes: int
    num_missing: int
    """Records whose images are not all there."""


@dataclass
class Conversion:
    """A source on its way into a folder of shards, which appears when all of it is written.

    Killed at any moment and started again, it goes on after the last closed shard, and the folder is
    the same file by file as if nothing had happened.
    """

    name: str
    """Of the source in the registry."""
    config: ComponentConfig
    source: Source
    folder: Path
    layout: Layout = field(default_factory=Layout)
    max_skipped_share: float = 0.01
    """The conversion stops where a larger share of the records so far (of 1,000 at least) makes no sample."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What made the shards; kept in their index."""
        return describe(self.name, self.config, self.source) | {"layout": vars(self.layout)}

    @property
    def work(self) -> Path:
        """Where it is written until it is whole."""
        return self.folder.parent / f".{self.folder.name}.partial"

    def need(self, progress: ShowProgress) -> Need:
        """Return what the shards will take: texts and tar headers, and each image file once."""
        total, missing = 0, 0
        seen = bytearray(2**25)  # a bit an image by the hash of its name: a few are taken for seen
        for record in progress(self.source.records(), len(self.source), "looking at records"):
            total += _RECORD_BYTES + int(_AS_JSON * _text_bytes(record))
            try:
                for name, num_bytes in self.source.files_of(record):
                    digest = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")
                    byte, bit = (digest >> 3) % len(seen), 1 << (digest & 7)
                    if not seen[byte] & bit or self.layout.repeat_images:
                        seen[byte] |= bit
                        total += 2 * tarfile.BLOCKSIZE + num_bytes
            except DataError:
                missing += 1
        return Need(int(total * _SPARE), missing)

    def check_disk(self, need: Need) -> None:
        """Raise DataError where the disk has less free than is still to be written."""
        place = next(parent for parent in (self.work, *self.work.parents) if parent.exists())
        there = (
            sum(path.stat().st_size for path in self.work.glob("shard-*.tar")) if self.work.is_dir() else 0
        )
        wanted, free = need.num_bytes - there, shutil.disk_usage(place).free
        if wanted > free:
            raise DataError(
                f"{self.folder}: {gib(wanted)} are still to be written, and {place} has {gib(free)} free. "
                "Name another folder with --to, or make room."
            )

    def run(self, *, engine: Engine = "local", workers: int = 0, progress: ShowProgress) -> Converted:
        """Write the shards, or find them written.

        Args:
            engine: local processes, or Ray.
            workers: processes of the local engine that read; 0 reads in this one.
            progress: shows the records go by.

        Raises:
            DataError: too many records make no sample, the disk is full, the folder holds something else.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.folder.parent / f".{self.folder.name}.lock"):
                if not self.folder.exists():
                    self.work.mkdir(parents=True, exist_ok=True)
                    if not self._is_whole():
                        self._write(engine, workers, progress)
                    os.rename(self.work, self.folder)
                return self._converted()
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self.folder}: the shards cannot be written: {error}") from error

    def _is_whole(self) -> bool:
        """Say whether all is written but the renaming."""
        return (self.work / INDEX_JSON).is_file() and not (self.work / JOURNAL_FILE).exists()

    def _converted(self) -> Converted:
        if not (self.folder / INDEX_JSON).is_file():
            raise DataError(f"{self.folder} exists, and is no folder of muco shards; name another one")
        index = read_index(self.folder)
        if index.about != json.loads(json.dumps(self.metadata)):
            raise DataError(
                f"{self.folder} holds other shards: of other settings, or the data changed since. "
                "Name another folder, or remove that one."
            )
        skipped = self.folder / SKIPPED_FILE
        lines = len(skipped.read_text(encoding="utf-8").splitlines()) if skipped.is_file() else 0
        return Converted(len(index), lines)

    def _write(self, engine: Engine, workers: int, progress: ShowProgress) -> None:
        journal = Journal(self.work / JOURNAL_FILE, self.metadata)
        try:
            _forget_open_shard(self.work, journal)
            start = journal.position
            records = self.source.records(start)
            maker = Maker.of(self.name, self.config, self.layout.limits)
            if engine == "ray":
                outcomes = on_ray(maker, records)
            elif workers:
                outcomes = in_processes(maker, records, workers)
            else:
                outcomes = in_this_process(maker, self.source, records)
            shown = progress(outcomes, len(self.source) - start, "writing shards")
            position = self._write_shards(enumerate(shown, start), journal)
            self._finish(journal, position)
        finally:
            journal.close()
        (self.work / JOURNAL_FILE).unlink()

    def _write_shards(self, outcomes: Iterator[tuple[int, Outcome]], journal: Journal) -> int:
        """Write shard after shard; return the number of records there were."""
        position = journal.position
        more = True
        while more:
            number = len(journal.shards())
            with OpenShard(self.work / f"shard-{number:06d}.tar") as shard:
                more = False
                for place, outcome in outcomes:
                    position, more = place + 1, True
                    self._put(outcome, place, shard, number, journal)
                    if shard.num_bytes >= self.layout.max_shard_bytes:
                        break
            journal.close_shard(shard.closed, position)
        return position

    def _put(self, outcome: Outcome, place: int, shard: OpenShard, number: int, journal: Journal) -> None:
        """Write a record's sample, or note that it has none."""
        key = journal.num_samples
        entries = self._entries(outcome, key, journal)
        if isinstance(entries, Skipped):
            journal.skip(place, entries.name, entries.reason)
            self._check_skipped(journal, place + 1, entries)
            return
        journal.add(number, key, shard.num_bytes, len(entries))
        shard.append(entries)

    def _entries(self, outcome: Outcome, key: int, journal: Journal) -> bytes | Skipped:
        """Return a sample's entries in the tar, its images written only where the folder lacks them."""
        if isinstance(outcome, Skipped):
            return outcome

        def elsewhere(image: EncodedImage, own: str) -> str | None:
            holder = journal.holder(blake2b(image.data, digest_size=16).digest(), f"{key:09d}.{own}")
            return None if holder.startswith(f"{key:09d}.") else holder

        try:
            members = to_members(outcome, elsewhere=None if self.layout.repeat_images else elsewhere)
        except ValueError as error:
            return Skipped(outcome.sample_id, f"its text cannot be written: {error}")
        return tar_bytes(f"{key:09d}", members)

    def _check_skipped(self, journal: Journal, position: int, last: Skipped) -> None:
        number = journal.num_skipped
        if number > self.max_skipped_share * max(position, _SKIPPED_FLOOR):
            raise DataError(
                f"{self.folder}: {number:,} of {position:,} records make no sample, more than "
                f"--max-skipped-share {self.max_skipped_share:g} allows. The last one: {last.name}: "
                f"{last.reason}\nMend the data, or allow more: the conversion goes on where it stopped."
            )

    def _finish(self, journal: Journal, position: int) -> None:
        if not journal.num_samples:
            first = next(journal.skipped(), None)
            told = f"The first one: {first[1]}: {first[2]}" if first else "There is none."
            raise DataError(f"{self.folder}: no record makes a sample. {told}")
        journal.close_shard(None, position)
        with open(self.work / SKIPPED_FILE, "w", encoding="utf-8") as file:
            for record, name, reason in journal.skipped():
                line = {"record": record, "name": name, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        write_index(self.work, journal.shards(), journal.rows(), self.metadata)


def describe(name: str, config: ComponentConfig, source: Source) -> dict[str, Any]:
    """Return what made a source's shards: two that are described alike hold the same samples."""
    return {
        "source": name,
        "settings": config.model_dump(mode="json"),
        "source_version": source.version,
        "source_revision": source.revision(),
        "format_version": FORMAT_VERSION,
    }


def _text_bytes(record: Any) -> int:
    """Return the bytes of a record's texts; bytes in it are images, which `files_of` tells."""
    total, left = 0, [record]
    while left:
        value = left.pop()
        if isinstance(value, list | tuple):
            left += value
        elif isinstance(value, Mapping):
            left += (*value, *value.values())
        elif is_dataclass(value):
            left.append(vars(value))
        elif not isinstance(value, bytes):
            total += len(repr(value).encode())
    return total


def gib(num_bytes: float) -> str:
    """Return a size in words, in the unit that fits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} KiB"


def _forget_open_shard(folder: Path, journal: Journal) -> None:
    """Remove what a killed process left unfinished; raise DataError where a closed shard is gone."""
    closed = {shard.file: shard.num_bytes for shard in journal.shards()}
    for path in folder.glob("shard-*.tar"):
        if path.name not in closed:
            path.unlink()
    for file, num_bytes in closed.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise DataError(f"{path} is not as it was written; remove {folder} to start over")

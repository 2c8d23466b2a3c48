"""Converting a source into shards: several processes read, one writes, in the source's order."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from hashlib import blake2b
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal, NamedTuple

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.printable import format_size
from muco.core.sample import Sample
from muco.core.source import Source
from muco.data.prepare.journal import Journal
from muco.data.prepare.resize import Limits
from muco.data.prepare.workers import Maker, Outcome, Skipped, in_processes, on_ray
from muco.data.progress import ShowProgress
from muco.data.shards.format import FORMAT_VERSION
from muco.data.shards.index import INDEX_JSON, read_index, write_index
from muco.data.shards.writer import MAX_SHARD_BYTES, ShardWriter
from muco.io.atomic import write_errors, write_text
from muco.io.lock import locked

SKIPPED_FILE = "skipped.jsonl"
JOURNAL_FILE = "journal.sqlite"

_MIN_RECORDS = 1000
"""The share of skipped records is taken of at least so many."""
_RECORD_BYTES = 4096
"""Estimate of a sample's tar headers and JSON keys."""

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Layout(Limits):
    """What decides the bytes of the shards besides the samples."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    """A shard is closed once it is larger."""
    repeat_images: bool = False
    """Write an image into every sample that uses it, so that each sample can be read without the others."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields, as the index of the shards stores them."""
        return {"max_shard_bytes": self.max_shard_bytes} | vars(self)


class Converted(NamedTuple):
    """What a folder of shards holds."""

    num_samples: int
    num_skipped: int
    """Records that made no sample; `skipped.jsonl` lists them."""


class Estimate(NamedTuple):
    """What a conversion will write, estimated without reading images."""

    num_bytes: int
    num_missing: int
    """Records with a missing image."""


@dataclass
class Conversion:
    """Converts a source into a folder of shards, which appears when all of it is written.

    A conversion that was killed continues after the last closed shard. Its files are then the same as without
    the kill.
    """

    name: str
    """Of the source in the registry."""
    config: ComponentConfig
    source: Source
    folder: Path
    layout: Layout = field(default_factory=Layout)
    max_skipped_share: float = 0.01
    """The conversion stops when a larger share of the records so far (at least 1,000) makes no sample."""

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What made the shards; stored in their index."""
        return describe(self.name, self.config, self.source) | {"layout": self.layout.metadata}

    @property
    def work(self) -> Path:
        """The folder that is written to until it is complete."""
        return self.folder.parent / f".{self.folder.name}.partial"

    def check_folder(self) -> None:
        """Raise DataError if the folder lies inside the outside data: the source would read the shards."""
        path = getattr(self.config, "path", None)
        if path and self.folder.resolve().is_relative_to(Path(expanduser(path)).resolve()):
            raise DataError(f"--to {self.folder} lies inside --from {path}; name a folder outside of it")

    def estimate(self, progress: ShowProgress) -> Estimate:
        """Estimate the size of the shards: texts, tar headers, and each image file once."""
        num_bytes, num_missing = 0, 0
        # A bit per hash of an image's name, so that memory does not grow with the data.
        seen = bytearray(2**25)
        for record in progress(self.source.records(), len(self.source), "looking at records"):
            num_bytes += _RECORD_BYTES + _text_bytes(record)
            try:
                for name, size in self.source.files_of(record):
                    digest = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")
                    byte, bit = (digest >> 3) % len(seen), 1 << (digest & 7)
                    if not seen[byte] & bit or self.layout.repeat_images:
                        seen[byte] |= bit
                        num_bytes += 2 * tarfile.BLOCKSIZE + size
            except DataError:
                num_missing += 1
        return Estimate(num_bytes, num_missing)

    def check_disk(self, estimate: Estimate) -> None:
        """Raise DataError if the disk has less free than the estimate, minus what is written already."""
        parent = next(parent for parent in (self.work, *self.work.parents) if parent.exists())
        written = sum(path.stat().st_size for path in self.work.glob("shard-*.tar"))
        remaining, free = estimate.num_bytes - written, shutil.disk_usage(parent).free
        if remaining > free:
            raise DataError(
                f"{self.folder}: about {format_size(remaining)} remain to be written, and {parent} has "
                f"{format_size(free)} free. Name another folder with --to, or make room."
            )

    def run(self, *, engine: Engine = "local", workers: int = 0, progress: ShowProgress) -> Converted:
        """Write the shards, unless the folder holds them already.

        `workers` are processes of the local engine; 0 reads in this process. Raise DataError if too many
        records make no sample, the disk is full, or the folder holds something else.
        """
        with write_errors(f"{self.folder}: the shards"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.folder.parent / f".{self.folder.name}.lock"):
                if not self.folder.exists():
                    self.work.mkdir(parents=True, exist_ok=True)
                    # Complete but for the name: the process before was killed at the very end.
                    if not (self.work / INDEX_JSON).is_file() or (self.work / JOURNAL_FILE).exists():
                        self._write(engine, workers, progress)
                    os.rename(self.work, self.folder)
                return self._converted()

    def _converted(self) -> Converted:
        if not (self.folder / INDEX_JSON).is_file():
            raise DataError(f"{self.folder} exists and is not a folder of muco shards; name another folder")
        index = read_index(self.folder)
        if index.metadata != json.loads(json.dumps(self.metadata)):
            raise DataError(
                f"{self.folder} holds other shards: other settings, or the data has changed. "
                "Name another folder, or remove that one."
            )
        skipped = self.folder / SKIPPED_FILE
        num_skipped = len(skipped.read_bytes().splitlines()) if skipped.is_file() else 0
        return Converted(len(index), num_skipped)

    def _write(self, engine: Engine, workers: int, progress: ShowProgress) -> None:
        journal = Journal(self.work / JOURNAL_FILE, self.metadata)
        try:
            _remove_open_shard(self.work, journal)
            start = journal.position
            outcomes: Iterable[Outcome] = self._outcomes(engine, workers, start)
            outcomes = progress(outcomes, len(self.source) - start, "writing shards")
            self._write_shards(enumerate(outcomes, start), journal)
            self._write_index(journal)
        finally:
            journal.close()
        (self.work / JOURNAL_FILE).unlink()

    def _outcomes(self, engine: Engine, workers: int, start: int) -> Iterator[Outcome]:
        """Return the outcomes of the records from `start` on."""
        records = self.source.records(start)
        maker = Maker(self.name, self.config, self.layout)
        if engine == "ray":
            return on_ray(maker, records)
        if workers:
            return in_processes(maker, records, workers)
        return (maker.outcome(self.source, record) for record in records)

    def _write_shards(self, outcomes: Iterator[tuple[int, Outcome]], journal: Journal) -> None:
        position = journal.position
        num_shards, num_samples = len(journal.shards()), journal.num_samples
        max_bytes = self.layout.max_shard_bytes
        with ShardWriter(self.work, max_bytes, num_shards=num_shards, num_samples=num_samples) as writer:
            for record, outcome in outcomes:
                position = record + 1
                skipped = outcome if isinstance(outcome, Skipped) else self._add(outcome, writer, journal)
                if skipped:
                    journal.skip(record, skipped.name, skipped.reason)
                    self._check_skipped(journal, position, skipped)
                if writer.is_full:
                    journal.close_shard(writer.close_shard(), position)
            journal.close_shard(writer.close_shard() if writer.is_open else None, position)

    def _add(self, sample: Sample, writer: ShardWriter, journal: Journal) -> Skipped | None:
        """Write a sample, without the images that the folder holds; or return why it cannot be written."""
        new_images: dict[bytes, str] = {}

        def elsewhere(image: EncodedImage, name: str) -> str | None:
            digest = blake2b(image.data, digest_size=16).digest()
            member = journal.member_of(digest)
            if member is None:
                new_images[digest] = f"{writer.num_samples:09d}.{name}"
            return member

        try:
            row = writer.write(sample, elsewhere=None if self.layout.repeat_images else elsewhere)
        except ValueError as error:
            return Skipped(sample.sample_id, f"its text cannot be written: {error}")
        journal.add(row, new_images)
        return None

    def _check_skipped(self, journal: Journal, position: int, last: Skipped) -> None:
        if journal.num_skipped > self.max_skipped_share * max(position, _MIN_RECORDS):
            raise DataError(
                f"{self.folder}: {journal.num_skipped:,} of {position:,} records were skipped, more than "
                f"--max-skipped-share {self.max_skipped_share:g} allows. The last one: {last.name}: "
                f"{last.reason}\nWith a larger --max-skipped-share the conversion continues where it "
                f"stopped. Or repair the data, remove {self.work} and start again."
            )

    def _write_index(self, journal: Journal) -> None:
        if not journal.num_samples:
            first = next(journal.skipped(), None)
            reason = f"The first one: {first[1]}: {first[2]}" if first else "There is none."
            raise DataError(f"{self.folder}: no record makes a sample. {reason}")
        skipped = ({"record": record, "name": name, "reason": why} for record, name, why in journal.skipped())
        lines = (json.dumps(values, ensure_ascii=False) + "\n" for values in skipped)
        write_text(self.work / SKIPPED_FILE, "".join(lines))
        write_index(self.work, journal.shards(), journal.rows(), self.metadata)


def describe(name: str, config: ComponentConfig, source: Source) -> dict[str, Any]:
    """Return what made a source's shards: equal descriptions have equal samples."""
    return {
        "source": name,
        "settings": config.model_dump(mode="json"),
        "source_version": source.version,
        "source_revision": source.revision(),
        "format_version": FORMAT_VERSION,
    }


def _text_bytes(record: Any) -> int:
    """Return the bytes of a record's texts; bytes values are images, which `files_of` counts."""
    total, stack = 0, [record]
    while stack:
        value = stack.pop()
        if isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, Mapping):
            stack += (*value, *value.values())
        elif is_dataclass(value):
            stack.append(vars(value))
        elif not isinstance(value, bytes):
            total += len(repr(value).encode())
    return total


def _remove_open_shard(folder: Path, journal: Journal) -> None:
    """Remove the shard that a killed process did not close; raise DataError if a closed one has changed."""
    closed = {shard.file: shard.num_bytes for shard in journal.shards()}
    for path in folder.glob("shard-*.tar"):
        if path.name not in closed:
            path.unlink()
    for file, num_bytes in closed.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise DataError(f"{path} has changed or is missing; remove {folder} to start over")

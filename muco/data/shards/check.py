"""Verifying shards: what the index says, byte by byte and sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from muco.core.errors import DataError
from muco.core.ids import stable_id
from muco.core.image import EncodedImage
from muco.core.sample import Sample
from muco.core.video import Video, stills
from muco.data.shards.index import Shard
from muco.data.shards.reader import ShardReader
from muco.data.shards.webdataset import digest_of
from muco.io.columns import PairColumns
from muco.io.table_text import IMAGE_TOKEN

_UNREAD = 0
"""The id of samples that cannot be read."""
MOST_NAMED = 20
"""Problems that are told; the others are counted."""

ShowProgress = Callable[[Iterable[Shard], int, str], Iterable[Shard]]


@dataclass
class Findings:
    """What a check saw."""

    num_samples: int = 0
    num_images: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """The first of them."""

    def note(self, problem: str) -> None:
        """Count a problem, and keep it if it is among the first."""
        self.num_problems += 1
        if len(self.problems) < MOST_NAMED:
            self.problems.append(problem)


def check_shards(
    folder: Path, *, columns: PairColumns | None, decode: bool, progress: ShowProgress
) -> Findings:
    """Read every shard and every sample of a folder.

    Args:
        folder: of shards.
        columns: of tars that another tool wrote.
        decode: decode the images too; else their headers are read.
        progress: shows the shards go by.

    Raises:
        DataError: there is no index, or it does not belong to the shards.
    """
    reader = ShardReader(folder, columns=columns, dataset=folder.name)
    found, first = Findings(), 0
    ids = np.zeros(len(reader), dtype=np.int64)
    for shard in progress(reader.index.shards, len(reader.index.shards), "checking shards"):
        if digest_of(folder / shard.file) != shard.blake2b:
            found.note(f"{folder / shard.file} is not what its index says, by its checksum")
        for number in range(first, first + shard.num_samples):
            found.num_samples += 1
            try:
                sample = reader[number]
                ids[number] = stable_id(sample.dataset, sample.sample_id)
                _check_sample(sample, found, decode)
            except DataError as error:
                told = str(error)
                where = f"{folder}/{reader.name(number)}"
                found.note(told if told.startswith(where) else f"{where}: {told}")
        first += shard.num_samples
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero((np.diff(ids[order]) == 0) & (ids[order][1:] != _UNREAD))
    for earlier, later in zip(order[again], order[again + 1], strict=True):
        told = f"has the id of {reader.name(int(earlier))}; training takes them for one sample"
        found.note(f"{folder}/{reader.name(int(later))} {told}")
    return found


def _check_sample(sample: Sample, found: Findings, decode: bool) -> None:
    for visual in sample.visuals():
        if isinstance(visual, Video):
            _ = visual.size
    for image in images_of(sample):
        found.num_images += 1
        if decode:
            image.decode()
        else:
            _ = image.size
    if any(IMAGE_TOKEN in content.text for content in sample.contents()):
        raise DataError(f"a text holds {IMAGE_TOKEN}, which stands for an image in tables, as plain words")


def images_of(sample: Sample) -> Iterator[EncodedImage]:
    """Yield the images of a sample and the frames of its videos, each distinct one once."""
    yield from {image.content_id: image for image in stills(sample.visuals())}.values()

"""Checking shards: the files against the index, and every sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from muco.core.errors import DataError
from muco.core.ids import stable_id
from muco.core.image import EncodedImage
from muco.core.sample import Sample
from muco.core.video import stills
from muco.data.progress import ShowProgress
from muco.data.shards.reader import ShardReader
from muco.io.columns import PairColumns
from muco.io.digest import digest_of
from muco.io.table_text import IMAGE_TOKEN

_UNREADABLE = 0
"""The id of samples that cannot be read."""
MAX_PROBLEMS = 20
"""So many problems are listed; the others are counted."""


@dataclass
class CheckResult:
    """What a check counted."""

    num_samples: int = 0
    num_images: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """The first `MAX_PROBLEMS` of them."""

    def add_problem(self, problem: str) -> None:
        """Count a problem, and list it if it is among the first."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def check_shards(
    folder: Path, *, columns: PairColumns | None, decode: bool, progress: ShowProgress
) -> CheckResult:
    """Read every shard and every sample of a folder; `decode` the images, or read their headers only.

    `columns` are those of tars that another tool wrote. Raise DataError if there is no index that belongs to
    the shards.
    """
    reader = ShardReader(folder, columns=columns, dataset=folder.name)
    result, first = CheckResult(), 0
    reader.verify_columns()
    ids = np.full(len(reader), _UNREADABLE, dtype=np.int64)
    for shard in progress(reader.index.shards, len(reader.index.shards), "checking shards"):
        if digest_of(folder / shard.file) != shard.blake2b:
            result.add_problem(f"{folder / shard.file} does not have the checksum in its index")
        for index in range(first, first + shard.num_samples):
            result.num_samples += 1
            try:
                sample = reader[index]
                ids[index] = stable_id(sample.dataset, sample.sample_id)
                _check_sample(sample, result, decode)
            except DataError as error:
                message, where = str(error), f"{folder}/{reader.name(index)}"
                result.add_problem(message if message.startswith(where) else f"{where}: {message}")
        first += shard.num_samples
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero((np.diff(ids[order]) == 0) & (ids[order][1:] != _UNREADABLE))
    for earlier, later in zip(order[repeated], order[repeated + 1], strict=True):
        result.add_problem(
            f"{folder}/{reader.name(int(later))} has the id of {reader.name(int(earlier))}; "
            "training takes them for one sample"
        )
    return result


def _check_sample(sample: Sample, result: CheckResult, decode: bool) -> None:
    for visual in sample.visuals():
        _ = visual.size
    for image in images_of(sample):
        result.num_images += 1
        if decode:
            image.decode()
    if any(IMAGE_TOKEN in content.text for content in sample.contents()):
        raise DataError(f"a text contains {IMAGE_TOKEN}, which stands for an image in tables")


def images_of(sample: Sample) -> Iterator[EncodedImage]:
    """Yield the images of a sample and the frames of its videos, each distinct one once."""
    yield from {image.content_id: image for image in stills(sample.visuals())}.values()

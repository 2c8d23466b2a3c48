"""Small folders of shards."""

from __future__ import annotations

from pathlib import Path

from muco.core import Content, EncodedImage, Pair, Sample, Video
from muco.data.shards.reader import ShardReader
from muco.data.shards.writer import write_shards


def plain(number: int, *images: EncodedImage | Video) -> Sample:
    """Return a sample of one pair."""
    query = Content(f"what is in picture {number}?")
    return Sample(f"sample {number}", "plain", images, (Pair("vqa", (query,), Content(f"thing {number}")),))


def write(folder: Path, samples: list[Sample], **options) -> Path:
    write_shards(samples, folder, metadata={"made": "by hand"}, **options)
    return folder


def all_of(folder: Path) -> list[Sample]:
    reader = ShardReader(folder)
    return [reader[number] for number in range(len(reader))]

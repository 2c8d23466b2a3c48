"""Statistics of shards: counts, tasks, lengths of texts and sizes of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.core.video import Video, Visual
from muco.data.progress import ShowProgress
from muco.data.shards.check import images_of
from muco.data.shards.reader import ShardReader


@dataclass
class Summary:
    """Statistics of the samples that were read."""

    num_samples: int
    """In the shards."""
    num_seen: int = 0
    """Samples that were read, evenly spread."""
    num_unreadable: int = 0
    num_bytes: int = 0
    """Of the shards."""
    pairs_a_sample: list[int] = field(default_factory=list)
    datasets: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    directions: Counter[str] = field(default_factory=Counter)
    """Number of pairs by direction, such as `text -> image`."""
    query_words: list[int] = field(default_factory=list)
    target_words: list[int] = field(default_factory=list)
    negatives_a_pair: list[int] = field(default_factory=list)
    image_pixels: list[tuple[int, int]] = field(default_factory=list)
    """Width and height."""
    frames_a_video: list[int] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.datasets[sample.dataset] += 1
        self.pairs_a_sample.append(len(sample.pairs))
        self.image_pixels += [image.size for image in images_of(sample)]
        videos = {each.content_id: each for each in sample.visuals() if isinstance(each, Video)}
        self.frames_a_video += [len(video.frames) for video in videos.values()]
        for pair in sample.pairs:
            self.tasks[pair.task or "without a task"] += 1
            query = _modality(pair.queries[0].text, sample.images + pair.queries[0].images)
            target = _modality(pair.target.text, pair.target.images)
            self.directions[f"{query} -> {target}"] += 1
            self.query_words += [len(wording.text.split()) for wording in pair.queries]
            self.target_words.append(len(pair.target.text.split()))
            self.negatives_a_pair.append(len(pair.negatives))

    def spreads(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the spread of each statistic."""
        for name, values in (
            ("pairs a sample", self.pairs_a_sample),
            ("words a query", self.query_words),
            ("words a target", self.target_words),
            ("hard negatives a pair", self.negatives_a_pair),
            ("frames a video", self.frames_a_video),
            ("shorter side, pixels", [*map(min, self.image_pixels)]),
            ("longer side, pixels", [*map(max, self.image_pixels)]),
        ):
            if values:
                yield name, _spread(values)


def summarize(reader: ShardReader, *, most: int, progress: ShowProgress) -> Summary:
    """Read at most `most` samples, evenly spread over the shards."""
    summary = Summary(len(reader), num_bytes=sum(shard.num_bytes for shard in reader.index.shards))
    indices = spread_over(len(reader), most)
    for index in progress(indices, len(indices), "reading samples"):
        summary.num_seen += 1
        try:
            summary.add(reader[index])
        except DataError:
            summary.num_unreadable += 1
    return summary


def spread_over(length: int, most: int) -> list[int]:
    """Return at most `most` of range(length), from the first to the last in even steps."""
    if length <= most:
        return list(range(length))
    return np.linspace(0, length - 1, most).astype(int).tolist()


def _modality(text: str, visuals: Sequence[Visual]) -> str:
    videos = [isinstance(each, Video) for each in visuals]
    parts = (("image", not all(videos)), ("video", any(videos)), ("text", bool(text)))
    return " + ".join(name for name, is_present in parts if is_present)


def _spread(values: Sequence[int]) -> str:
    if min(values) == max(values):
        return f"{values[0]:,}"
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{min(values):,} to {max(values):,}; median {middle:,.0f}, 90% within {low:,.0f} to {high:,.0f}"

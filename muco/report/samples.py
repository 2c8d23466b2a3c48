"""A page of samples: what is in a folder of shards, in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.printable import format_size
from muco.core.sample import Content, Pair, Sample
from muco.core.video import Video, Visual
from muco.data.shards.reader import ShardReader
from muco.data.shards.statistics import Summary, spread_over
from muco.io.atomic import write_bytes
from muco.io.templates import html_templates
from muco.io.thumbnails import thumbnail_uri
from muco.report.formatting import clipped

_THUMBNAIL_PIXELS = 224
_MAX_WORDINGS, _MAX_FRAMES = 3, 8


def write_page(path: Path, reader: ShardReader, summary: Summary, *, name: str, size: str, most: int) -> None:
    """Write a page of at most `most` samples, evenly spread; every string of the data is escaped."""
    templates = html_templates("report/templates")
    templates.filters |= {"sides": _sides, "clipped": partial(clipped, most=600), "thumbnails": _thumbnails}
    tables = [
        ("Data sets, samples", summary.datasets.most_common(40)),
        ("From -> to, pairs", summary.directions.most_common()),
        ("Tasks, pairs", summary.tasks.most_common(40)),
    ]
    page = templates.get_template("samples.html").render(
        name=name, size=size, summary=summary, tables=tables, samples=_samples(reader, most)
    )
    write_bytes(path, page.encode(errors="replace"))


def _samples(reader: ShardReader, most: int) -> Iterator[tuple[str, Sample | None, str]]:
    """Yield where each sample is, and the sample, or None and why it cannot be read."""
    for index in spread_over(len(reader), most):
        try:
            yield reader.name(index), reader[index], ""
        except DataError as error:
            yield reader.name(index), None, str(error)


def _sides(pair: Pair) -> Iterator[tuple[str, Content]]:
    """Yield the contents of a pair, each with a label."""
    first, *others = pair.queries[:_MAX_WORDINGS]
    yield "query", first
    yield from (("or", wording) for wording in others)
    yield "target", pair.target
    yield from (("negative", negative) for negative in pair.negatives[:_MAX_WORDINGS])


def _thumbnails(visuals: Iterable[Visual]) -> Iterator[tuple[str, str]]:
    """Yield data URI and caption of each image, and of evenly spread frames of each video."""
    for visual in visuals:
        if not isinstance(visual, Video):
            yield _thumbnail(visual)
            continue
        for index in visual.frame_indices(_MAX_FRAMES):
            uri, caption = _thumbnail(visual.frames[index])
            seconds = index * visual.seconds_per_frame
            yield uri, f"frame {index + 1} of {len(visual.frames)}, {seconds:g} s: {caption}"


def _thumbnail(image: EncodedImage) -> tuple[str, str]:
    """Return a data URI and the image's size; if it is broken, an empty text and what is wrong."""
    try:
        uri = thumbnail_uri(image, _THUMBNAIL_PIXELS)
    except DataError as error:
        return "", str(error)
    width, height = image.size
    return uri, f"{width} x {height}, {format_size(len(image.data))}"

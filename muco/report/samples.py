"""A page of samples: what is in a folder of shards, in one HTML file that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content, Sample
from muco.core.video import Video, Visual
from muco.data.shards.reader import ShardReader
from muco.data.shards.statistics import Summary, spread_over
from muco.io.atomic import write_bytes

_THUMBNAIL_PIXELS = 224
_MAX_WORDINGS, _MAX_CHARACTERS, _MAX_FRAMES = 3, 600, 8


@dataclass(frozen=True)
class ShownImage:
    """A thumbnail, as a data URI, and a caption of its size; or no data and why it cannot be shown."""

    data: str
    caption: str


@dataclass(frozen=True)
class ShownSide:
    """A query, a target or a hard negative."""

    label: str
    text: str
    images: tuple[ShownImage, ...]


@dataclass(frozen=True)
class ShownPair:
    """A pair of a sample."""

    task: str
    sides: tuple[ShownSide, ...]


@dataclass(frozen=True)
class ShownSample:
    """A sample, or why it cannot be read."""

    title: str
    position: str
    caption: str
    images: tuple[ShownImage, ...]
    pairs: tuple[ShownPair, ...]


def write_page(path: Path, reader: ShardReader, summary: Summary, *, name: str, size: str, most: int) -> None:
    """Write a page of at most `most` samples, evenly spread; every string of the data is escaped."""
    environment = Environment(
        loader=PackageLoader("muco", "report/templates"), autoescape=True, undefined=StrictUndefined
    )
    tables = [
        ("Data sets, samples", summary.datasets.most_common(40)),
        ("From -> to, pairs", summary.directions.most_common()),
        ("Tasks, pairs", summary.tasks.most_common(40)),
    ]
    page = environment.get_template("samples.html").render(
        name=name, size=size, summary=summary, tables=tables, samples=_samples(reader, most)
    )
    write_bytes(path, page.encode(errors="replace"))


def _samples(reader: ShardReader, most: int) -> Iterator[ShownSample]:
    for index in spread_over(len(reader), most):
        position = reader.name(index)
        try:
            yield _sample(reader[index], position)
        except DataError as error:
            yield ShownSample("cannot be read", position, str(error), (), ())


def _sample(sample: Sample, position: str) -> ShownSample:
    pairs = []
    for pair in sample.pairs:
        first, *others = pair.queries[:_MAX_WORDINGS]
        sides = [_side("query", first), *(_side("or", wording) for wording in others)]
        sides.append(_side("target", pair.target))
        sides += [_side("negative", negative) for negative in pair.negatives[:_MAX_WORDINGS]]
        pairs.append(ShownPair(pair.task, tuple(sides)))
    title = f"{sample.dataset} / {sample.sample_id}"
    return ShownSample(title, position, _clip(sample.caption), _images(sample.images), tuple(pairs))


def _side(label: str, content: Content) -> ShownSide:
    return ShownSide(label, _clip(content.text), _images(content.images))


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."


def _images(visuals: Iterable[Visual]) -> tuple[ShownImage, ...]:
    """Return the images, and evenly spread frames of each video."""
    images: list[ShownImage] = []
    for visual in visuals:
        if not isinstance(visual, Video):
            images.append(_image(visual))
            continue
        for index in visual.frame_indices(_MAX_FRAMES):
            frame = _image(visual.frames[index])
            seconds = index * visual.seconds_per_frame
            moment = f"frame {index + 1} of {len(visual.frames)}, {seconds:g} s"
            images.append(replace(frame, caption=f"{moment}: {frame.caption}"))
    return tuple(images)


def _image(image: EncodedImage) -> ShownImage:
    try:
        thumbnail = image.decode()
        caption = f"{thumbnail.width} x {thumbnail.height}, {len(image.data) / 1024:,.0f} KiB"
        thumbnail.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    except DataError as error:
        return ShownImage("", str(error))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return ShownImage(f"data:image/jpeg;base64,{data}", caption)

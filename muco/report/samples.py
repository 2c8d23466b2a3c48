"""A page of samples that needs nothing else: what lies in a folder of shards, to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content, Sample
from muco.core.video import Video, Visual
from muco.data.shards.reader import ShardReader
from muco.data.shards.statistics import Summary, spread_over

_THUMBNAIL_PIXELS = 224
_MOST_WORDINGS, _MOST_CHARACTERS, _MOST_FRAMES = 3, 600, 8

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{ name }}</title>
<style>
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --quiet: color-mix(in srgb, currentColor 62%, transparent);
  --fill: color-mix(in srgb, currentColor 5%, transparent); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p, .quiet { color: var(--quiet); margin: 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 2.5rem; }
table { width: 100%; border-collapse: collapse; align-self: start; margin-top: 1.25rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
td { padding: .25rem 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td + td { text-align: right; font-variant-numeric: tabular-nums; padding-left: 1rem; }
.wide { grid-column: 1 / -1; }
article { border: 1px solid var(--line); border-radius: 8px; margin-top: 1rem; overflow: hidden; }
header { padding: .6rem 1rem; background: var(--fill); overflow-wrap: anywhere; }
.sample { display: flex; gap: 1.25rem; padding: 1rem; flex-wrap: wrap; }
.images { display: flex; white-space: normal; font-weight: normal; flex-wrap: wrap; gap: .5rem; }
.seen { flex: 0 0 224px; flex-direction: column; }
figure { margin: 0; }
figcaption { font-size: .8rem; color: var(--quiet); max-width: 224px; }
img { display: block; max-width: 224px; max-height: 224px; border-radius: 4px; }
.side img { max-height: 128px; }
.pairs { flex: 1 1 360px; min-width: 0; }
.pair { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .25rem .9rem; padding: .6rem 0;
  border-top: 1px solid var(--line); }
.pair:first-child { border: 0; padding-top: 0; }
.label { color: var(--quiet); font-size: .85rem; padding-top: .1rem; }
.side { white-space: pre-wrap; overflow-wrap: anywhere; }
.target { font-weight: 600; }
.task { grid-column: 1 / -1; font-size: .8rem; color: var(--quiet); }
@media (max-width: 600px) { .pair { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p>{{ "{:,}".format(summary.num_samples) }} samples, {{ size }}.
{% if summary.num_seen < summary.num_samples -%}
The figures are those of {{ "{:,}".format(summary.num_seen) }} of them, evenly spread.
{%- endif %}
{% if summary.num_unreadable %} {{ "{:,}".format(summary.num_unreadable) }} cannot be read.{% endif %}</p>
<div class="tables">
<table class="wide"><caption>Sizes</caption>
{% for what, spread in summary.spreads() %}<tr><td>{{ what }}</td><td>{{ spread }}</td></tr>
{% endfor %}</table>
{% for caption, counts in tables %}
<table><caption>{{ caption }}</caption>
{% for what, number in counts %}<tr><td>{{ what }}</td><td>{{ "{:,}".format(number) }}</td></tr>
{% endfor %}</table>
{% endfor %}
</div>
<h2>Samples</h2>
{% for shown in samples %}
<article>
<header>{{ shown.title }} <span class="quiet">{{ shown.place }}</span></header>
<div class="sample">
{% if shown.images %}<div class="images seen">{{ pictures(shown.images) }}
{% if shown.caption %}<p>{{ shown.caption }}</p>{% endif %}</div>{% endif %}
<div class="pairs">
{% for pair in shown.pairs %}
<div class="pair">
{% if pair.task %}<div class="task">{{ pair.task }}</div>{% endif %}
{% for side in pair.sides %}
<div class="label">{{ side.label }}</div>
<div class="side {{ side.label }}">
{%- if side.images %}<div class="images">{{ pictures(side.images) }}</div>{% endif %}{{ side.text -}}
</div>
{% endfor %}
</div>
{% endfor %}
</div>
</div>
</article>
{% endfor %}
</body>
</html>
"""
_PICTURES = """{% for image in images %}<figure>
{% if image.data %}<img alt="" src="{{ image.data }}">{% endif %}
<figcaption>{{ image.told }}</figcaption></figure>{% endfor %}"""


@dataclass(frozen=True)
class ShownImage:
    """A picture made small, and its size; or why it cannot be shown."""

    data: str
    told: str


@dataclass(frozen=True)
class Side:
    """A query, a target or a hard negative."""

    label: str
    text: str
    images: tuple[ShownImage, ...]


@dataclass(frozen=True)
class ShownPair:
    """A pair of a sample."""

    task: str
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class ShownSample:
    """A sample, or why it cannot be read."""

    title: str
    place: str
    caption: str
    images: tuple[ShownImage, ...]
    pairs: tuple[ShownPair, ...]


def write_page(path: Path, reader: ShardReader, summary: Summary, *, name: str, size: str, most: int) -> None:
    """Write a page of at most so many samples, spread evenly; every string of the data is escaped."""
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    pictures = environment.from_string(_PICTURES)
    environment.globals["pictures"] = lambda images: Markup(pictures.render(images=images))
    tables = [
        ("Data sets, samples", summary.datasets.most_common(40)),
        ("From -> to, pairs", summary.directions.most_common()),
        ("Tasks, pairs", summary.tasks.most_common(40)),
    ]
    page = environment.from_string(_PAGE).render(
        name=name, size=size, summary=summary, tables=tables, samples=list(_samples(reader, most))
    )
    path.write_text(page, encoding="utf-8", errors="replace")


def _samples(reader: ShardReader, most: int) -> Iterator[ShownSample]:
    for number in spread_over(len(reader), most):
        place = reader.name(number)
        try:
            yield _sample(reader[number], place)
        except DataError as error:
            yield ShownSample("cannot be read", place, str(error), (), ())


def _sample(sample: Sample, place: str) -> ShownSample:
    pairs = []
    for pair in sample.pairs:
        wordings = pair.queries[:_MOST_WORDINGS]
        sides = [_side("query" if not at else "or", query) for at, query in enumerate(wordings)]
        sides.append(_side("target", pair.target))
        sides += [_side("negative", wrong) for wrong in pair.negatives[:_MOST_WORDINGS]]
        pairs.append(ShownPair(pair.task, tuple(sides)))
    images = _images(sample.images)
    title = f"{sample.dataset} / {sample.sample_id}"
    return ShownSample(title, place, _clipped(sample.caption), images, tuple(pairs))


def _side(label: str, content: Content) -> Side:
    return Side(label, _clipped(content.text), _images(content.images))


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def _images(visuals: Iterable[Visual]) -> tuple[ShownImage, ...]:
    """Return the images as they are shown, and some frames of each video, spread evenly."""
    found: list[ShownImage] = []
    for visual in visuals:
        if isinstance(visual, Video):
            for place in visual.frame_indices(_MOST_FRAMES):
                frame = _image(visual.frames[place])
                moment = f"frame {place + 1} of {len(visual.frames)}, {place * visual.seconds_per_frame:g} s"
                found.append(replace(frame, told=f"{moment}: {frame.told}"))
        else:
            found.append(_image(visual))
    return tuple(found)


def _image(image: EncodedImage) -> ShownImage:
    try:
        small = image.decode()
        told = f"{small.width} x {small.height}, {len(image.data) / 1024:,.0f} KiB"
        small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    except DataError as error:
        return ShownImage("", str(error))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return ShownImage(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", told)

"""Guess from names and values what the columns of a table hold, and which parts of a pair they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muco.core.errors import DataError, MucoError, did_you_mean
from muco.io.columns import embedded_image, has_image, image_name
from muco.io.image_files import is_image
from muco.io.table_text import is_missing, parsed_list

Kind = Literal["image", "missing image", "video", "URL", "text", "number", "id", "other"]

_IDS = {"id", "ids", "uuid", "guid", "sku", "key", "index", "idx", "unnamed", "split", "width", "height"}
_QUERY = {"query", "qry", "question", "anchor", "search", "prompt", "source", "src", "before", "reference"}
_TARGET = {"target", "tgt", "positive", "pos", "answer", "response", "document", "doc", "passage", "after"}
_NEGATIVE = {"negative", "negatives", "neg", "wrong", "distractor", "distractors"}
_VIDEO = {"video", "videos", "clip", "clips", "frames"}
_VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
VIDEO_HINT = (
    "`muco init` does not set up videos. Write the frames of each video as images into a folder of its own "
    "(ffmpeg -i v1.mp4 -vf fps=2 frames/v1/%05d.jpg). Give the table a column with these folders, and name "
    "the column in the recipe: `columns: {query_video: COLUMN}`, or target_video. See the source `pairs`"
)
"""What to do with a column or a folder of videos."""
_LABELS = {"label", "class", "category", "species", "breed"}
_PARTS = tuple(f"{side}_{kind}" for side in ("query", "target", "negative") for kind in ("text", "image"))
_TEXTS = ("caption", "title", "label", "class", "category", "description", "text", "name", "sentence")
"""Names of columns that describe an image, the likeliest first."""


@dataclass(frozen=True)
class Column:
    """What is known of one column."""

    name: str
    kind: Kind
    distinct_share: float
    """Distinct values by values, in the rows that were looked at; 0 if there are none."""
    mean_length: float
    """Of its texts, in characters."""
    why: str
    """Why it is of its kind, for people."""

    @property
    def words(self) -> set[str]:
        """The words of the name, in small letters."""
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name)
        return set(re.findall(r"[a-z]+", spaced.lower()))

    @property
    def is_label(self) -> bool:
        """Whether it holds classes rather than texts of their own."""
        return bool(self.words & _LABELS) or self.distinct_share < 0.5


def describe_columns(
    rows: Sequence[Mapping[str, Any]], exists: Callable[[str], bool], is_folder: Callable[[str], bool]
) -> list[Column]:
    """Return what each column of some rows holds; the functions say whether an image or folder exists."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_describe(name, [row.get(name) for row in rows], exists, is_folder) for name in names]


def is_video(name: str) -> bool:
    """Return whether a file of that name is a video."""
    return name.lower().endswith(_VIDEO_SUFFIXES) and not name.startswith(".")


def image_names(value: Any) -> Iterator[str]:
    """Yield the names in a value that end as those of images do, or are URLs."""
    for item in _items(value):
        if not embedded_image(item) and has_image(item):
            try:
                name = image_name(item)
            except DataError:
                continue
            if is_image(name) or name.startswith(("http://", "https://")):
                yield name


def guess_parts(columns: Sequence[Column], chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each part of a pair.

    `chosen` are the columns that the user named, by part; an empty name leaves the part out. Raise MucoError
    if one is not there, or a query or a target is not found.
    """
    known = [column.name for column in columns]
    for part, name in chosen.items():
        if name and name not in known:
            near = did_you_mean(name, known)
            raise MucoError(
                f"--{part.replace('_', '-')} {name}: no such column.{near} Columns: {', '.join(known)}"
            )
    parts = _Parts([column for column in columns if column.name not in chosen.values()], chosen)
    for side, words in (("negative", _NEGATIVE), ("query", _QUERY), ("target", _TARGET)):
        parts.take_hinted(side, words)
    parts.take_images()
    parts.take_texts()
    found = {part: name for part in _PARTS if (name := parts.columns.get(part))}
    for side in ("query", "target"):
        if not (found.get(f"{side}_text") or found.get(f"{side}_image")):
            seen = ", ".join(f"{column.name} ({column.kind})" for column in columns)
            raise MucoError(
                f"no column for the {side} was found. Name it: --{side}-text or --{side}-image. "
                f"Columns: {seen}" + (f". {VIDEO_HINT}" if any(map(_is_video_column, columns)) else "")
            )
    return found


class _Parts:
    """The parts that have a column so far, and the columns that are free."""

    def __init__(self, columns: Sequence[Column], chosen: Mapping[str, str]) -> None:
        self.columns = dict(chosen)
        self.images = [column for column in columns if column.kind == "image"]
        texts = [column for column in columns if column.kind == "text"]
        self.texts = sorted(texts, key=_text_rank)

    def take_hinted(self, side: str, words: set[str]) -> None:
        """Give the parts of a side the columns whose names say so."""
        for kind, free in (("image", self.images), ("text", self.texts)):
            hinted = [column for column in free if column.words & words]
            if hinted:
                self._take(f"{side}_{kind}", hinted[0], free)

    def take_images(self) -> None:
        """Give the images that no name hints at a side."""
        for image in list(self.images):
            if not self._has("query_image") and not self._is_searched_by_text(image):
                self._take("query_image", image, self.images)
            elif not self._has("target_image") and not (self._has("target_text") and self.texts == []):
                self._take("target_image", image, self.images)

    def take_texts(self) -> None:
        """Fill the sides that are still empty, the query first."""
        for side in ("query", "target"):
            if not (self._has(f"{side}_text") or self._has(f"{side}_image")) and self.texts:
                self._take(f"{side}_text", self.texts[0], self.texts)

    def _is_searched_by_text(self, image: Column) -> bool:
        """Return whether an image is the target of a text: each image has a text of its own."""
        if self._has("target_image") or self._has("target_text") or len(self.images) > 1:
            return False
        if self._has("query_text"):
            return not self.texts
        own_text = bool(self.texts) and not self.texts[0].is_label
        return own_text and image.distinct_share > 0.9

    def _has(self, part: str) -> bool:
        return bool(self.columns.get(part))

    def _take(self, part: str, column: Column, free: list[Column]) -> None:
        if part not in self.columns:
            self.columns[part] = column.name
            free.remove(column)


def _is_video_column(column: Column) -> bool:
    return column.kind == "video"


def _text_rank(column: Column) -> tuple[int, float]:
    """Order the likeliest name first, then the longest texts."""
    ranks = [rank for rank, name in enumerate(_TEXTS) if name in column.words]
    return (ranks[0] if ranks else len(_TEXTS)), -column.mean_length


def _describe(
    name: str, values: Sequence[Any], exists: Callable[[str], bool], is_folder: Callable[[str], bool]
) -> Column:
    present = [value for value in values if not is_missing(value) and value not in ("", [], {})]
    items = [item for value in present for item in _items(value)]
    texts = [str(item) for item in items if not isinstance(item, bytes | Mapping)]
    distinct = len({embedded_image(item) or str(item) for item in items}) / len(items) if items else 0.0
    length = sum(map(len, texts)) / len(texts) if texts else 0.0
    column = Column(name, "other", distinct, length, "")
    kind, why = _kind(column, items, exists)
    if _are_videos(column, values, texts, is_folder):
        kind, why = "video", "videos, which need a recipe of their own"
    return Column(name, kind, distinct, length, why)


def _are_videos(
    column: Column, values: Sequence[Any], texts: Sequence[str], is_folder: Callable[[str], bool]
) -> bool:
    """Return whether values are video files, folders of frames, or lists of frames."""
    if any(len(_items(value)) > 1 for value in values):
        return bool(column.words & _VIDEO)
    repeats = column.distinct_share <= 0.5  # a class, whose pictures may lie in a folder of its name
    videos = [text for text in texts if is_video(text) or (is_folder(text) and not repeats)]
    return len(videos) > 0.8 * len(texts)


def _kind(column: Column, items: Sequence[Any], exists: Callable[[str], bool]) -> tuple[Kind, str]:
    if not items:
        return "other", "empty"
    if all(isinstance(item, bytes | Mapping) for item in items):
        named = [name for item in items for name in image_names(item)]
        if any(map(embedded_image, items)):
            return "image", "images in the table"
        return _named_images(named, exists) if named else ("other", "neither text nor image")
    named = [name for item in items for name in image_names(item)]
    if len(named) > 0.8 * len(items):
        return _named_images(named, exists)
    if column.words & _IDS:
        return "id", "by its name"
    if any(isinstance(item, bool | bytes | Mapping) for item in items):
        return "other", "neither text nor image"
    if all(map(_is_number, items)):
        return "number", "numbers"
    return "text", f"texts of {column.mean_length:.0f} characters, {column.distinct_share:.0%} distinct"


def _named_images(names: Sequence[str], exists: Callable[[str], bool]) -> tuple[Kind, str]:
    there = sum(map(exists, names))
    why = f"{there:,} of {len(names):,} images are there"
    if there > 0.5 * len(names):
        return "image", why
    return ("URL" if names[0].startswith("http") else "missing image"), why


def _items(value: Any) -> list[Any]:
    """Return the items of a list, or of a list written as text; else the value as the only item."""
    if isinstance(value, str):
        return parsed_list(value) or [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True

"""Make pairs of the columns of a table, or of the members of a tar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import PositiveFloat, model_validator

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.image import ImageDecoding
from muco.core.sample import Content, Pair
from muco.core.video import Video, Visual
from muco.io.table_text import ReadImage, content_of, negatives_of, parsed_list, text_list, text_of

ListFrames = Callable[[str], Sequence[Any]]
"""List the frames of a folder in order, each as an image column would name it."""


class PairColumns(ComponentConfig):
    """The column of each part of a pair. Query and target need at least one of text, image and video.

    A text column may hold lists: several wordings of a query, several hard negatives. In tars a column is a
    member's suffix (`jpg`), or a key of its JSON (`json.caption`).
    """

    query_text: str | None = None
    """The query's text; a list holds several wordings of it."""
    query_image: str | None = None
    """The query's image: a path, a URL that was downloaded, or the bytes, as `datasets` writes them too."""
    query_video: str | None = None
    """The query's video: a list of its frames, named as images are, or the folder that holds them, in the
    order of their names. It comes before an image."""
    target_text: str | None = None
    """The text that answers the query."""
    target_image: str | None = None
    """The image that answers the query."""
    target_video: str | None = None
    """The video that answers the query."""
    seconds_column: str | None = None
    """The seconds from one frame of a row's videos to the next; a number."""
    seconds_per_frame: PositiveFloat = 1.0
    """The same for all videos, if no column holds it; not a column."""
    target_caption: str | None = None
    """A description of the target's image; not encoded with the target."""
    negative_text: str | None = None
    """Hard negatives: a text, or a list."""
    negative_image: str | None = None
    """Their images: one, or a list as long as that of the texts."""
    task: str | None = None
    """The kind of question, for statistics."""
    instruction: str = ""
    """Put before every query's text, the same for all; not a column."""
    image_decoding: ImageDecoding = "faithful"
    """`faithful`: transparency on white, 16-bit grey scaled to 8 bits, EXIF orientation applied; `plain`: as
    Pillow's `convert("RGB")`, which the public code of the benchmarks calls; not a column."""

    @model_validator(mode="after")
    def _both_sides(self) -> PairColumns:
        for side in ("query", "target"):
            parts = [f"{side}_{part}" for part in ("text", "image", "video")]
            has_text = side == "query" and self.instruction
            if not (has_text or any(getattr(self, part) for part in parts)):
                raise ValueError(f"name the column of a {side}: `{'`, `'.join(parts)}`, or more than one")
        return self

    @property
    def has_videos(self) -> bool:
        """Whether a column holds videos."""
        return bool(self.query_video or self.target_video)

    def needs(self) -> frozenset[Feature]:
        """Return what a backbone must offer for these pairs."""
        targets: set[Feature] = {"image_targets"} if self.target_image or self.target_video else set()
        videos: set[Feature] = {"video"} if self.has_videos else set()
        return frozenset(targets | videos)

    def used(self) -> list[str]:
        """Return the names of all columns, each once."""
        return list(dict.fromkeys(self.parts().values()))

    def parts(self) -> dict[str, str]:
        """Return the column of each part that has one."""
        names = self.model_dump(exclude={"instruction", "seconds_per_frame", "image_decoding"})
        return {part: name for part, name in names.items() if name}


def pair_from(
    columns: PairColumns, values: Mapping[str, Any], read: ReadImage, list_frames: ListFrames | None = None
) -> tuple[tuple[Visual, ...], Pair]:
    """Return the query's images and the pair that a row or a tar's record holds, from its values by column.

    `read` returns the image for a column's value; `list_frames` is None if videos cannot be folders. Raise
    DataError if query or target is empty, a text is of another type, or a part of a video is missing.
    """
    names = columns.model_dump()

    def value(part: str) -> Any:
        return values.get(names[part]) if names[part] else None

    def visuals(side: str) -> tuple[Visual, ...]:
        video, image = value(f"{side}_video"), value(f"{side}_image")
        seconds = _seconds(value("seconds_column"), columns.seconds_per_frame)
        videos = (Video(tuple(map(read, frame_list(video, list_frames))), seconds),) if video else ()
        return (*videos, *((read(image),) if has_image(image) else ()))

    def message(problem: str, side: str) -> str:
        used = [names[f"{side}_{part}"] for part in ("text", "image") if names[f"{side}_{part}"]]
        return problem + (f" in {', '.join(used)}" if used else "")

    images = visuals("query")
    wordings = text_list(value("query_text"), "the query") or [""]
    queries = [
        Content(content_of(columns.instruction + wording, images, what="query").text) for wording in wordings
    ]
    if not images and not all(queries):
        raise DataError(message("the query has neither text nor image", "query"))
    text = text_of(value("target_text"), "the target")
    caption = text_of(value("target_caption"), "the caption")
    target = content_of(text, visuals("target"), what="target", caption=caption)
    if not target:
        raise DataError(message("no positive: the target has neither text nor image", "target"))
    texts = text_list(value("negative_text"), "the negative")
    negatives = negatives_of(texts, image_list(value("negative_image")), read)
    return images, Pair(text_of(value("task"), "the task"), tuple(queries), target, tuple(negatives))


def frame_list(value: Any, list_frames: ListFrames | None) -> list[Any]:
    """Return the frames of a list, of a list as text, or of a folder; raise DataError if there are none."""
    frames = parsed_list(value) if isinstance(value, str) else value
    if isinstance(value, str) and frames is None:
        if list_frames is None:
            raise DataError("a folder of frames can be named in a table only")
        frames = list_frames(text_of(value, "the video"))
    if not isinstance(frames, list | tuple):
        raise DataError(f"a video is a {type(frames).__name__}, not a folder or a list of frames")
    if not frames:
        raise DataError("a video has no frame")
    return list(cast(Sequence[Any], frames))


def image_list(value: Any) -> list[Any]:
    """Return the images of a list, of a list written as text, or the one image; empty for null."""
    if value is None or isinstance(value, str):
        return text_list(value, "the negative's image")
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]


def embedded_image(value: Any) -> bytes | None:
    """Return an image that is in the table itself: bytes, or `{"bytes": ..., "path": ...}` of `datasets`."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def image_name(value: Any) -> str:
    """Return the path or URL that names an image; raise DataError if the value is no image."""
    if isinstance(value, Mapping):
        value = value.get("path")
    if not isinstance(value, str):
        raise DataError(f"an image is a {type(value).__name__}, not a path, a URL or bytes")
    return text_of(value, "the image's name")


def has_image(value: Any) -> bool:
    """Return whether the value of an image column holds or names an image."""
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        return any(value.values())
    return bool(value)


def _seconds(value: Any, default: float) -> float:
    """Return the seconds from frame to frame; raise DataError if they are no positive number."""
    if value is None or value == "":
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{value!r} instead of the seconds from frame to frame") from None
    if not (seconds > 0 and math.isfinite(seconds)):
        raise DataError(f"a video with {seconds} seconds from frame to frame")
    return seconds

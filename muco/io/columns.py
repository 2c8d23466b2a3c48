"""Which columns of a table, or members of a tar, make a query and its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import PositiveFloat, model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Content, Pair
from muco.core.video import Video, Visual
from muco.io.table_text import listed, negatives_of, text_content, text_of

Frames = Callable[[str], Sequence[Any]]
"""Gives the frames of the folder of that name, each as a column of images would name it, in their order."""


class PairColumns(ComponentConfig):
    """Columns by what they hold. One of a query and one of a target are needed; text, image, video or more
    than one.

    A column of texts may hold lists. Of a query's they are wordings, of the negatives' several wrong
    answers. In tars a column is a member's suffix (`jpg`), or a key of its JSON (`json.caption`).
    """

    query_text: str | None = None
    """The query's words; a list of them is as many wordings."""
    query_image: str | None = None
    """The query's image: a path, a URL that was downloaded, or the bytes themselves."""
    query_video: str | None = None
    """The query's video: a list of its frames, named as images are, or the folder that they lie in, in the
    order of their names. It comes before an image."""
    target_text: str | None = None
    """What answers the query."""
    target_image: str | None = None
    """The image that answers the query."""
    target_video: str | None = None
    """The video that answers the query."""
    seconds_column: str | None = None
    """The seconds from one frame of a row's videos to the next; a number."""
    seconds_per_frame: PositiveFloat = 1.0
    """The same for all videos, where no column says it; no column."""
    target_caption: str | None = None
    """What the target's image shows, in words; not encoded with the target."""
    negative_text: str | None = None
    """Hard negatives: a text, or a list."""
    negative_image: str | None = None
    """Their images: one, or a list as long as that of the texts."""
    task: str | None = None
    """The kind of question, for statistics."""
    instruction: str = ""
    """Said before every query's text, the same for all; no column."""

    @model_validator(mode="after")
    def _both_sides(self) -> PairColumns:
        for side in ("query", "target"):
            parts = [f"{side}_{part}" for part in ("text", "image", "video")]
            said = side == "query" and self.instruction
            if not (any(getattr(self, part) for part in parts) or said):
                raise ValueError(f"name the column of a {side}: `{'`, `'.join(parts)}`, or more than one")
        return self

    @property
    def has_videos(self) -> bool:
        """Whether a column holds videos."""
        return bool(self.query_video or self.target_video)

    def used(self) -> list[str]:
        """Return the names of all columns, each once."""
        named = self.model_dump(exclude={"instruction", "seconds_per_frame"}).values()
        return list(dict.fromkeys(name for name in named if name))


def pair_from(
    columns: PairColumns,
    values: Mapping[str, Any],
    read: Callable[[Any], EncodedImage],
    frames: Frames | None = None,
) -> tuple[tuple[Visual, ...], Pair]:
    """Return the query's images and the pair that a row or a tar's record holds.

    Args:
        columns: what stands where.
        values: by column.
        read: gives an image from its column's value.
        frames: lists the frames of a folder; None where there are no folders.

    Raises:
        DataError: an empty query or target, a text for an image that is not there, something that is no text,
            a video without frames.
    """
    names = columns.model_dump()

    def value(part: str) -> Any:
        name = names[part]
        return values.get(name) if name else None

    def shown(side: str) -> tuple[Visual, ...]:
        video, image = value(f"{side}_video"), value(f"{side}_image")
        pace = _seconds(value("seconds_column"), columns.seconds_per_frame)
        videos = (Video(tuple(map(read, frames_listed(video, frames))), pace),) if video else ()
        return (*videos, *((read(image),) if image else ()))

    images = shown("query")
    wordings = [columns.instruction + text for text in listed(value("query_text"), "the query")]
    queries = [
        text_content(text, has_image=bool(images), what="query") for text in wordings or [columns.instruction]
    ]
    if not images and not all(queries):
        raise DataError(f"the query has neither text nor image{_in(names, 'query')}")
    answer = shown("target")
    words = text_content(text_of(value("target_text"), "the target"), has_image=bool(answer), what="target")
    caption = text_of(value("target_caption"), "the caption")
    target = Content(words.text, answer, caption if answer else "")
    if not target:
        raise DataError(f"no positive: the target has neither text nor image{_in(names, 'target')}")
    negatives = negatives_of(
        listed(value("negative_text"), "the negative"), images_listed(value("negative_image")), read
    )
    return images, Pair(text_of(value("task"), "the task"), tuple(queries), target, tuple(negatives))


def frames_listed(value: Any, frames: Frames | None) -> list[Any]:
    """Return the frames of a list, of a list written as text, or of the folder of that name.

    Raises:
        DataError: there are none, or it is something else.
    """
    if isinstance(value, str) and not value.startswith("["):
        if frames is None:
            raise DataError("a folder of frames can be named in a table only")
        found = list(frames(text_of(value, "the video")))
    else:
        found = listed(value, "the video") if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise DataError(f"a {type(found).__name__} stands where a video belongs: a folder or list of frames")
    if not found:
        raise DataError("a video has no frame")
    return list(cast(Sequence[Any], found))


def _seconds(value: Any, default: float) -> float:
    """Return the time from frame to frame; raise DataError where it is no positive number."""
    if value is None or value == "":
        return default
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{value!r} stands where the seconds from frame to frame belong") from None
    if not (found > 0 and math.isfinite(found)):
        raise DataError(f"a video with {found} seconds from frame to frame")
    return found


def _in(names: Mapping[str, Any], side: str) -> str:
    """Return where a side was looked for, in words."""
    columns = [names[f"{side}_{part}"] for part in ("text", "image") if names[f"{side}_{part}"]]
    return f" in {', '.join(columns)}" if columns else ""


def images_listed(value: Any) -> list[Any]:
    """Return the images of a list, of a list written as text, or the one."""
    if value is None or isinstance(value, str):
        return listed(value, "the negative's image")
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]

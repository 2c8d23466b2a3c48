"""Which columns of a table, or members of a tar, make a query and its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.row_texts import content_of, listed, negatives_of, said, text_of
from muco.core.sample import Pair


class PairColumns(ComponentConfig):
    """Columns by what they hold. One of a query and one of a target are needed; text, image or both.

    A column of texts may hold lists. Of a query's they are wordings, of the negatives' several wrong
    answers. In tars a column is a member's suffix (`jpg`), or a key of its JSON (`json.caption`).
    """

    query_text: str | None = None
    """The query's words; a list of them is as many wordings."""
    query_image: str | None = None
    """The query's image: a path, a URL that was downloaded, or the bytes themselves."""
    target_text: str | None = None
    """What answers the query."""
    target_image: str | None = None
    """The image that answers the query."""
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
        if not (self.query_text or self.query_image or self.instruction):
            raise ValueError("name the column of a query: `query_text`, `query_image`, or both")
        if not (self.target_text or self.target_image):
            raise ValueError("name the column of a target: `target_text`, `target_image`, or both")
        return self

    def used(self) -> list[str]:
        """Return the names of all columns, each once."""
        named = self.model_dump(exclude={"instruction"}).values()
        return list(dict.fromkeys(name for name in named if name))


def pair_from(
    columns: PairColumns, values: Mapping[str, Any], read: Callable[[Any], EncodedImage]
) -> tuple[tuple[EncodedImage, ...], Pair]:
    """Return the query's images and the pair that a row or a tar's record holds.

    Args:
        columns: what stands where.
        values: by column.
        read: gives an image from its column's value.

    Raises:
        DataError: an empty query or target, a text for an image that is not there, something that is no text.
    """
    names = columns.model_dump()

    def value(part: str) -> Any:
        name = names[part]
        return values.get(name) if name else None

    image = value("query_image")
    images = (read(image),) if image else ()
    wordings = [columns.instruction + text for text in listed(value("query_text"), "the query")]
    queries = [said(text, has_image=bool(images), what="query") for text in wordings or [columns.instruction]]
    if not images and not all(queries):
        raise DataError(f"the query has neither text nor image{_in(names, 'query')}")
    target = content_of(
        text_of(value("target_text"), "the target"),
        value("target_image"),
        read,
        what="target",
        caption=text_of(value("target_caption"), "the caption"),
    )
    if not target:
        raise DataError(f"no positive: the target has neither text nor image{_in(names, 'target')}")
    negatives = negatives_of(
        listed(value("negative_text"), "the negative"), images_listed(value("negative_image")), read
    )
    return images, Pair(text_of(value("task"), "the task"), tuple(queries), target, tuple(negatives))


def _in(names: Mapping[str, Any], side: str) -> str:
    """Return where a side was looked for, in words."""
    columns = [names[f"{side}_{part}"] for part in ("text", "image") if names[f"{side}_{part}"]]
    return f" in {', '.join(columns)}" if columns else ""


def images_listed(value: Any) -> list[Any]:
    """Return the images of a list, of a list written as text, or the one."""
    if value is None or isinstance(value, str):
        return listed(value, "the negative's image")
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]

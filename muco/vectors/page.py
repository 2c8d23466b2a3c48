"""The result of a search as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.io.atomic import write_bytes
from muco.io.thumbnails import data_uri
from muco.vectors.search import Hit


def write_page(path: Path, text: str, image: Path | None, hits: Sequence[Hit], *, title: str) -> None:
    """Write a page of the items that a search returned, with thumbnails.

    Args:
        path: of the page.
        text: of the query.
        image: of the query.
        hits: the items, the best first.
        title: what was searched.
    """
    templates = Environment(
        loader=PackageLoader("muco", "vectors/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("search.html").render(
        title=title,
        text=text,
        image=_thumbnail(image),
        hits=[(hit, _thumbnail(hit.image)) for hit in hits],
    )
    write_bytes(path, page.encode(errors="replace"))


def _thumbnail(path: str | Path | None) -> str:
    """Return an image as a data URI; empty if there is none, or if it can no longer be read."""
    with suppress(OSError, DataError):
        return data_uri(EncodedImage(Path(path).read_bytes()).faithful()) if path else ""
    return ""

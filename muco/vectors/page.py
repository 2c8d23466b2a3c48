"""The result of a search as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from muco.core.errors import MucoError
from muco.core.image import EncodedImage
from muco.io.atomic import write_bytes
from muco.io.templates import html_templates
from muco.io.thumbnails import data_uri
from muco.vectors.search import Hit
from muco.vectors.store import VectorStore


def write_page(path: Path, text: str, image: Path | None, hits: Sequence[Hit], store: VectorStore) -> None:
    """Write a page of the items that a search for a text and an image returned, with thumbnails."""
    templates = html_templates("vectors/templates")
    page = templates.get_template("search.html").render(
        title=str(store.path),
        text=text,
        image=_thumbnail(lambda: EncodedImage(image.read_bytes()).faithful()) if image else "",
        hits=[(hit, _thumbnail(partial(store.images.image, hit.image)) if hit.image else "") for hit in hits],
    )
    write_bytes(path, page.encode(errors="replace"))


def _thumbnail(read: Callable[[], EncodedImage]) -> str:
    """Return an image as a data URI; empty if it can no longer be read."""
    with suppress(OSError, MucoError):
        return data_uri(read())
    return ""

"""The report of a generated table as one page that needs nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from muco.core.errors import MucoError
from muco.generate.counts import Counts
from muco.generate.inputs import Inputs
from muco.generate.settings import Generation
from muco.io.atomic import write_bytes
from muco.io.templates import html_templates
from muco.io.thumbnails import thumbnail_uri

_THUMBNAIL_PIXELS, _MOST_ANSWERS, _MAX_CHARACTERS = 224, 40, 600


def write_page(path: Path, table: Path, counts: Counts, inputs: Inputs, settings: Generation) -> None:
    """Write counts, lengths, frequent answers, cost, examples, and what was left out; all text is escaped."""
    templates = html_templates("generate/templates")
    templates.filters["clipped"] = _clipped

    def thumbnail(name: str) -> str:
        """Return an image as a data URI; empty if it cannot be read."""
        with suppress(OSError, MucoError):
            return thumbnail_uri(inputs.images.image(name), _THUMBNAIL_PIXELS)
        return ""

    page = templates.get_template("generate.html").render(
        title=table.name,
        counts=counts,
        cost=cost_of(counts.usage.prompt_tokens, counts.usage.completion_tokens, settings),
        answers=counts.answers.most_common(_MOST_ANSWERS),
        thumbnail=thumbnail,
    )
    write_bytes(path, page.encode(errors="replace"))


def cost_of(prompt_tokens: int, completion_tokens: int, settings: Generation) -> float:
    """Return what tokens cost by the prices of the settings."""
    server = settings.server
    return (prompt_tokens * server.prompt_price + completion_tokens * server.completion_price) / 1e6


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."

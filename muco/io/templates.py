"""Templates of pages and of other files."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def html_templates(folder: str) -> Environment:
    """Return the templates of a folder of this package, `report/templates`; all text in them is escaped."""
    return _templates(folder, is_html=True)


def text_templates(folder: str) -> Environment:
    """Return the templates of a folder of this package; no text in them is escaped."""
    return _templates(folder, is_html=False)


def _templates(folder: str, *, is_html: bool) -> Environment:
    return Environment(
        loader=PackageLoader("muco", folder),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_html,
    )
